"""What proxies and radios hide: a window bounds it, and costs a fast viewer nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from attrs import define, field

from relay.client import Frame, Status, connect, open_relay_client
from relay.client.simple_client import DEFAULT_WINDOW
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import PATIENCE, RelayProcess

QUEUE = 4 << 20
"""Bytes that the proxy takes from the relay before the viewer has them."""
PICTURE = bytes(30_000)
ON_THE_WIRE = 40_000
"""Bytes of a frame with it, in base64."""
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@define(eq=False)
class Proxy:
    """Between a viewer and the relay, with a long queue and a slow way out of it."""

    url: str
    delay: float
    """Seconds that bytes are under way in either direction."""
    rate: float
    """Bytes a second."""
    most_held: int = 0
    _queue: deque[tuple[float, bytes]] = field(factory=deque)
    _held: int = 0

    async def serve(self, viewer: trio.SocketStream, port: int) -> None:
        relay = await trio.open_tcp_stream("127.0.0.1", port)
        async with viewer, relay, trio.open_nursery() as nursery:
            nursery.start_soon(self._upwards, viewer, relay)
            nursery.start_soon(self._fill, relay)
            await self._drain(viewer)
            nursery.cancel_scope.cancel()

    async def _upwards(self, viewer: trio.SocketStream, relay: trio.SocketStream) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](10_000)

        async def forward() -> None:
            async for due, data in receive:
                await trio.sleep_until(due)
                await relay.send_all(data)

        with suppress(*GONE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward)
                async for data in viewer:
                    await send.send((trio.current_time() + self.delay, bytes(data)))
                nursery.cancel_scope.cancel()

    async def _fill(self, relay: trio.SocketStream) -> None:
        with suppress(*GONE):
            while True:
                while self._held >= QUEUE:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                data = bytes(await relay.receive_some(65536))
                self._queue.append((trio.current_time() + self.delay, data))
                self._held += len(data)
                self.most_held = max(self.most_held, self._held)
                if not data:
                    return

    async def _drain(self, viewer: trio.SocketStream) -> None:
        with suppress(*GONE):
            while True:
                while not self._queue:  # noqa: ASYNC110
                    await trio.sleep(0.002)
                due, data = self._queue.popleft()
                await trio.sleep_until(due)
                if not data:
                    return
                for start in range(0, len(data), 4096):
                    piece = data[start : start + 4096]
                    await viewer.send_all(piece)
                    self._held -= len(piece)
                    await trio.sleep(len(piece) / self.rate)


@asynccontextmanager
async def open_proxy(relay: RelayProcess, *, delay: float, rate: float) -> AsyncIterator[Proxy]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    proxy = Proxy(f"ws://127.0.0.1:{port}", delay, rate)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            trio.serve_listeners, lambda stream: proxy.serve(stream, relay.port), [listener]
        )
        yield proxy
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("window", [DEFAULT_WINDOW, 2, None])
async def test_behind_a_proxy_that_takes_everything_little_is_under_way(
    relay: RelayProcess, accounts: Accounts, window: int | None
) -> None:
    """No more than the window, or than what the link carries at once."""
    token, stream_id = accounts.session(), new_stream_id()
    sent = 60
    async with (
        login(relay, token) as phone,
        open_proxy(relay, delay=0, rate=1 << 20) as proxy,
        connect(proxy.url, token) as viewer,
    ):
        await phone.register(stream_id)
        await viewer.subscribe(stream_id, window=window)
        for _ in range(sent):
            await phone.send_frame(PICTURE)
            await trio.sleep(0.005)
        seqs: list[int] = []
        with trio.fail_after(PATIENCE):
            async for event in viewer:
                if isinstance(event, Frame):
                    seqs.append(event.seq)
                    if event.seq == sent:
                        break
        assert proxy.most_held < ((window or 2) + 1) * ON_THE_WIRE + 65536
        assert len(seqs) < sent


async def test_a_proxy_that_takes_everything_holds_much_where_nothing_may_be_left_out(
    relay: RelayProcess, accounts: Accounts
) -> None:
    """So the test above would notice."""
    token, stream_id = accounts.session(), new_stream_id()
    sent = 24
    async with (
        login(relay, token) as phone,
        open_proxy(relay, delay=0, rate=1 << 20) as proxy,
        open_relay_client(proxy.url, token) as viewer,
    ):
        await phone.register(stream_id)
        viewer.subscribe(stream_id, policy="lossless", alerts=False)
        with trio.fail_after(PATIENCE):
            async for event in viewer:
                if isinstance(event, Status):
                    for _ in range(sent):
                        await phone.send_frame(PICTURE)
                elif isinstance(event, Frame) and event.seq == sent:
                    break
    assert proxy.most_held > DEFAULT_WINDOW * ON_THE_WIRE


async def test_a_fast_viewer_loses_nothing_by_its_window_over_a_long_way(
    relay: RelayProcess, accounts: Accounts
) -> None:
    sent = 60
    # A viewer that a busy machine lets answer late seems to have a slower link for a moment.
    for _ in range(3):
        if await written_over_a_long_way(relay, accounts, sent) >= sent - 6:
            return
    raise AssertionError("frames were left out in each of three attempts")


async def written_over_a_long_way(relay: RelayProcess, accounts: Accounts, sent: int) -> int:
    """How many frames of so many the relay wrote; the client itself may skip to the newest of those
    that wait in it."""
    token, stream_id = accounts.session(), new_stream_id()
    under_way = 2  # as many as 30 a second are in 60 ms, one way
    async with (
        login(relay, token) as phone,
        open_proxy(relay, delay=0.06, rate=1 << 30) as proxy,  # 120 ms there and back
        connect(proxy.url, token) as viewer,
    ):
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        before = (await relay.stats())["frames_to_consumers"]
        for _ in range(under_way):
            await phone.send_frame(b"a small picture")
        with trio.fail_after(PATIENCE):
            seen = 0
            while seen < sent:
                event = await anext(viewer)
                if isinstance(event, Frame):
                    for _ in range(seen, min(event.seq, sent - under_way)):
                        await phone.send_frame(b"a small picture")
                    seen = event.seq
        after = (await relay.stats())["frames_to_consumers"]
    return int(after["written"] - before["written"])
