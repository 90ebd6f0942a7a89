"""Two relays with one PostgreSQL: a phone at one, viewers at both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay

# Without a grace: a node that ends gives the phones that it had as long to come back elsewhere.
CLUSTER = ("--cluster-bind", "127.0.0.1:0", "--offline-grace", "0.1")


@pytest.fixture(scope="module")
def nodes(database_url: str) -> Iterator[tuple[RelayProcess, RelayProcess]]:
    with (
        start_relay(*CLUSTER, database_url=database_url) as first,
        start_relay(*CLUSTER, database_url=database_url) as second,
    ):
        yield first, second


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    return Accounts(database_url)


@pytest.mark.parametrize("viewer_packs", [False, True])
@pytest.mark.parametrize("phone_packs", [False, True])
async def test_a_viewer_at_another_node_gets_frames_in_either_encoding(
    nodes: tuple[RelayProcess, RelayProcess],
    accounts: Accounts,
    *,
    phone_packs: bool,
    viewer_packs: bool,
) -> None:
    first, second = nodes
    stream_id = new_stream_id()
    token = accounts.session()
    async with (
        login(first, token, msgpack=phone_packs) as phone,
        login(second, token, msgpack=viewer_packs) as viewer,
    ):
        await phone.register(stream_id)
        await phone.send_frame(b"before")
        await viewer.subscribe(stream_id)
        frame = await viewer.receive_type("video-frame")
        assert frame["seq"] == 1
        assert (await phone.receive_type("status"))["consumers"] == 1
        for number in range(2, 12):
            await phone.send_frame(b"x" * 1000 * number)
            frame = await viewer.receive_type("video-frame")
            assert frame["seq"] == number
            assert frame["streamId"] == stream_id
