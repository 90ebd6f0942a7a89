"""Workers carry streams for each other, and for the workers of other machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay

CLUSTER = ("--workers", "2", "--cluster-bind", "127.0.0.1:0")
VIEWERS = 6


@pytest.fixture(scope="module")
def machines(database_url: str) -> Iterator[tuple[RelayProcess, RelayProcess]]:
    with (
        start_relay(*CLUSTER, database_url=database_url) as first,
        start_relay(*CLUSTER, database_url=database_url) as second,
    ):
        yield first, second


async def test_streams_cross_between_the_workers_of_two_machines(
    machines: tuple[RelayProcess, RelayProcess], accounts: Accounts
) -> None:
    token = accounts.session("many")
    first, second = machines
    async with AsyncExitStack() as stack:

        async def join(relay: RelayProcess) -> Peer:
            # Without the name of a stream in the URL each goes to the worker with the fewest.
            return await stack.enter_async_context(login(relay, token, path="/streams/subscribe"))

        phone = await join(first)
        stream_id = new_stream_id()
        await phone.register(stream_id)
        viewers = [await join(relay) for relay in (first, second) for _ in range(VIEWERS)]
        for viewer in viewers:
            await viewer.subscribe(stream_id)
        for number in range(1, 21):
            await phone.send_frame(b"frame %d" % number)
            for viewer in viewers:
                assert (await viewer.receive_type("video-frame"))["seq"] == number
        while (await phone.receive_type("status"))["consumers"] != len(viewers):
            pass
