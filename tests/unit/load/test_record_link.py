"""Recordings of links: what is measured over a link that is known, on a mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
import trio_websocket
from attrs import define, field

from relay.load import record_link
from relay.load.actors.network.shaped_link import NetworkAt, open_network
from relay.load.record import RecordFailed
from relay.load.record_link import LinkRecorder, LinkRecordOptions, measure_link
from relay.load.report.words.links import recorded_lines
from relay.load.scenario.groups import Network
from relay.load.scenario.link_measurement import (
    Direction,
    Interval,
    LinkArrival,
    RoundTrip,
    link_steps,
)
from relay.load.scenario.link_trace import LinkHead, LinkStep, parse_link, write_link

SUBPROTOCOL = "relay.v1.msgpack"
VIEWERS = 4


@define(eq=False)
class Echo:
    """A server that tells a phone what has come, and gives viewers its newest frame."""

    newest: bytes = b""
    number: int = 0
    came: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    refuses: bool = False

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            with suppress(trio_websocket.ConnectionClosed, trio.BrokenResourceError):
                request = await trio_websocket.wrap_server_stream(nursery, stream)
                socket = await request.accept(subprotocol=SUBPROTOCOL)
                frames = 0
                while True:
                    message = msgspec.msgpack.decode(as_bytes(await socket.get_message()))
                    if message["type"] == "video-frame":
                        frames += 1
                        self.newest, self.number = message["data"], self.number + 1
                        self.came.unpark_all()
                        await send(socket, type="received", frames=frames, timestamp=1)
                        continue
                    await self.answer(socket, message)
                    if message["type"] == "subscribe":
                        nursery.start_soon(self.show, socket)
            nursery.cancel_scope.cancel()

    async def answer(self, socket: trio_websocket.WebSocketConnection, message: Any) -> None:
        fields = {"type": "success", "code": "OK"}
        if self.refuses:
            fields = {"type": "error", "code": "AUTH_FAILED", "message": "Invalid token"}
        await send(socket, id=message["id"], **fields)

    async def show(self, socket: trio_websocket.WebSocketConnection) -> None:
        shown = 0
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                while shown == self.number:
                    await self.came.park()
                shown = self.number
                await send(socket, type="video-frame", seq=shown, data=self.newest)


def as_bytes(message: str | bytes) -> bytes:
    assert isinstance(message, bytes)
    return message


async def send(socket: trio_websocket.WebSocketConnection, **fields: Any) -> None:
    await socket.send_message(msgspec.msgpack.encode(fields))


@asynccontextmanager
async def links(server: Echo, network_at: NetworkAt) -> AsyncIterator[None]:
    """Connections to the server go over such links."""
    async with trio.open_nursery() as nursery:

        async def shaped(
            near: trio.abc.Stream, *, task_status: trio.TaskStatus[trio.abc.Stream]
        ) -> None:
            async with open_network(near, network_at, Random(1)) as link:
                task_status.started(link)
                await trio.sleep_forever()

        async def dial(_url: str, *, tls: Any, wrap: Any) -> tuple[trio.abc.Stream, str, str]:
            near, far = trio.testing.lockstep_stream_pair()
            nursery.start_soon(server.serve, far)
            link = await nursery.start(shaped, near)
            return wrap(link) if wrap else link, "relay.test", "/"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(record_link, "open_stream", dial)
            yield
        nursery.cancel_scope.cancel()


def rate_in(steps: list[LinkStep], start: float, end: float, which: str) -> float:
    """The mean of a rate between two times."""
    edges = [*(step.at for step in steps[1:]), end]
    carried = [
        getattr(step, which) * max(0.0, min(edge, end) - max(step.at, start))
        for step, edge in zip(steps, edges, strict=True)
    ]
    return float(sum(carried)) / (end - start)


async def test_rates_round_trip_and_a_hole_are_found(autojump_clock: object) -> None:
    begun = trio.current_time()
    fast = Network(upload=1e6, bandwidth=0.5e6, delay=0.03)
    slow = Network(upload=0.4e6, bandwidth=0.5e6, delay=0.03)
    hole = Network(upload=0.0, bandwidth=0.0, delay=0.03)
    changes = ((9.0, fast), (11.0, hole), (1e9, slow))

    def network_at(at: float) -> tuple[Network, float]:
        until, network = next(each for each in changes if at - begun < each[0])
        return network, begun + until

    recorder = LinkRecorder("ws://x", "t", LinkRecordOptions(seconds=14.0, viewers=VIEWERS))
    async with links(Echo(), network_at):
        length = await measure_link(recorder)
    steps, offset = recorder.steps(length), recorder.epoch - begun
    assert length == pytest.approx(14, abs=0.1)
    for start, end, expected in ((1, 5, 1e6), (10, 14, 0.4e6)):
        found = rate_in(steps, start, end, "up")
        assert found == pytest.approx(expected, rel=0.1), (start, end)
    assert rate_in(steps, 9.6 - offset, 10.9 - offset, "up") == 0
    assert rate_in(steps, 9.6 - offset, 10.9 - offset, "down") == 0
    assert rate_in(steps, 1, 5, "down") == pytest.approx(VIEWERS * 0.5e6, rel=0.1)
    assert min(step.round_trip or 1 for step in steps) == pytest.approx(0.07, abs=0.02)
    head = LinkHead(length=length)
    assert parse_link(write_link(head, steps), "x").steps == tuple(steps)


async def test_a_token_that_is_refused_is_said(autojump_clock: object) -> None:
    recorder = LinkRecorder("ws://x", "secret", LinkRecordOptions(seconds=5.0))
    async with links(Echo(refuses=True), lambda _at: (Network(delay=0.01), 1e9)):
        with pytest.raises(RecordFailed, match="AUTH_FAILED") as raised:
            await measure_link(recorder)
    assert "secret" not in str(raised.value)
    assert "secret" not in repr(recorder)


async def test_a_fast_link_is_not_loaded_with_more_than_allowed(autojump_clock: object) -> None:
    options = LinkRecordOptions(seconds=6.0, max_rate=2e6, viewers=2)
    recorder = LinkRecorder("ws://x", "t", options)
    async with links(Echo(), lambda _at: (Network(delay=0.005), 1e9)):
        length = await measure_link(recorder)
    sent = sum(each.size for each in recorder.up if 0 <= each.at < length)
    assert sent * 8 / length < 2.1e6  # of each turn, the first frame leaves at once
    recorded = record_link._finish(recorder, length, "fast.link")
    words = list(recorded_lines(recorded.trace, recorded.doubts()))
    assert len([line for line in words if line.startswith("MARK")]) == 2


def test_a_pause_of_the_load_is_no_hole_and_costs_no_rate() -> None:
    arrivals = [LinkArrival(0.02 * n, 2500) for n in range(1, 251) if not 1 <= 0.02 * n % 2 < 1.4]
    direction = Direction(arrivals, [Interval(1.0 + 2 * n, 1.42 + 2 * n) for n in range(3)])
    steps = link_steps(direction, direction, [RoundTrip(1.2, 0.05)], 5.0)
    assert all(step.up == pytest.approx(1e6, rel=0.1) for step in steps)
    assert {step.round_trip for step in steps} == {0.05}


def test_holes_begin_and_end_at_their_own_times() -> None:
    arrivals = [LinkArrival(at, 1000) for n in range(500) if not 2.13 < (at := n * 0.01) < 3.27]
    steps = link_steps(Direction(arrivals), Direction(arrivals), [], 5.0)
    (hole,) = [step for step in steps if step.down == 0]
    after = steps[steps.index(hole) + 1]
    assert (hole.at, after.at) == (2.13, 3.27)
    assert {step.round_trip for step in steps} == {None}
    carried = sum(1000 * 8 for each in arrivals if each.at > 3.27)
    assert rate_in(steps, 3.27, 5.0, "down") * 1.73 == pytest.approx(carried, rel=0.02)


def test_a_link_over_which_nothing_came_is_one_hole() -> None:
    (step,) = link_steps(Direction([]), Direction([]), [], 3.0)
    assert (step.down, step.up, step.round_trip) == (0.0, 0.0, None)
