"""Viewers that do not name their stream end at the worker of its phone, and none is lost or
answered twice on the way."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, until
from tests.integration.workers.processes import metric, until_ready, workers_of

MOVED = 'relay_viewer_moves_total{outcome="moved"}'
STAYED = 'relay_viewer_moves_total{outcome="stayed"}'
VIEWERS = 4
IN_THE_MIDDLE = 0.1
"""Seconds after which a viewer is on its way to a worker that stands still."""


@pytest.fixture
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--workers", "2", database_url=database_url) as relay:
        yield relay


async def join(stack: AsyncExitStack, relay: RelayProcess, token: str) -> Peer:
    """A client that names no stream, at the worker with the fewest connections."""
    return await stack.enter_async_context(login(relay, token, path="/streams/subscribe"))


async def test_viewers_end_at_the_worker_of_their_stream(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("moving")
    await until_ready(relay)
    async with AsyncExitStack() as stack:
        phones = {new_stream_id(): await join(stack, relay, token) for _ in range(4)}
        for stream_id, phone in phones.items():
            await phone.register(stream_id)
        viewers = {
            each: [await join(stack, relay, token) for _ in range(VIEWERS)] for each in phones
        }
        for stream_id, group in viewers.items():
            for viewer in group:
                await viewer.subscribe(stream_id)
        for stream_id, phone in phones.items():
            for number in range(1, 4):
                await phone.send_frame(b"frame")
                for viewer in viewers[stream_id]:
                    frame = await viewer.receive_type("video-frame")
                    assert (frame["streamId"], frame["seq"]) == (stream_id, number)
        assert await metric(relay, MOVED) >= VIEWERS
        assert await metric(relay, "relay_carried_streams") == 0
        assert (await relay.stats())["authenticated"] == 4 + 4 * VIEWERS
    await until_gone(relay)
    assert await metric(relay, "relay_connections_accepted_total") == 4 + 4 * VIEWERS


async def until_gone(relay: RelayProcess) -> None:
    async def gone() -> bool:
        stats = await relay.stats()
        return bool(stats["connections"] == 0)

    await until(gone)


def worker_of(relay: RelayProcess, stream_id: str) -> int:
    """The process that has a stream, as the log tells."""
    (line,) = [each for each in relay.log.splitlines() if stream_id in each and "register" in each]
    found = re.search(r"worker=(\d)", line)
    assert found is not None
    return sorted(workers_of(relay))[int(found[1]) - 1]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
async def test_viewers_on_their_way_to_a_worker_that_is_killed_stay_and_are_answered_once(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("staying")
    await until_ready(relay)
    async with AsyncExitStack() as stack:
        phone = await join(stack, relay, token)
        stream_id = new_stream_id()
        await phone.register(stream_id)
        viewers = [await join(stack, relay, token) for _ in range(VIEWERS)]
        target = worker_of(relay, stream_id)
        os.kill(target, signal.SIGSTOP)
        for viewer in viewers:
            await viewer.send(
                {"type": "subscribe", "streamId": stream_id, "consumes": ["video-frame"]}
            )
        await trio.sleep(IN_THE_MIDDLE)
        os.kill(target, signal.SIGKILL)
        answered: list[str] = []

        async def follow(viewer: Peer) -> None:
            with suppress(ConnectionClosed):  # of the worker that was killed
                reply = await viewer.receive_type("success")
                await viewer.ask({"type": "streams"})
                replies = [reply, *(each for each in viewer.passed_over if "code" in each)]
                answered.extend(each["code"] for each in replies)

        async with trio.open_nursery() as nursery:
            for viewer in viewers:
                nursery.start_soon(follow, viewer)
        # A phone and four viewers on two workers: at least two of them were elsewhere.
        assert len(answered) >= 2
        assert set(answered) == {"SUBSCRIBED"}
        await until_ready(relay)
        assert await metric(relay, STAYED) == len(answered)


@pytest.mark.slow
async def test_viewers_whose_sessions_are_revoked_on_their_way_end(
    relay: RelayProcess, accounts: Accounts
) -> None:
    await until_ready(relay)
    async with AsyncExitStack() as stack:
        phone = await join(stack, relay, accounts.session("revoking"))
        stream_id = new_stream_id()
        await phone.register(stream_id)
        tokens = [accounts.session("revoking") for _ in range(VIEWERS)]
        viewers = [await join(stack, relay, each) for each in tokens]
        with stopped(worker_of(relay, stream_id)):
            for viewer in viewers:
                await viewer.send(
                    {"type": "subscribe", "streamId": stream_id, "consumes": ["video-frame"]}
                )
            await trio.sleep(IN_THE_MIDDLE)
            accounts.execute("delete from session where token = any(%s)", tokens)
        for viewer in viewers:
            heard, _ = await viewer.hear_end()
            assert heard[-1]["code"] == "SESSION_REVOKED"
        await phone.send_frame(b"frame")
        assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"
