"""`relay load record --link`: measures the link to a relay over time, for clients of a scenario.

A phone sends frames of a stream of its own over the link, and several viewers on the same link get
them, so that the downlink has several times as much to carry as the uplink. The relay says which
frames have come (`received`). Again and again both stop until nothing is under way, and one small
frame finds the round trip of the idle link.
"""

from __future__ import annotations

import math
import secrets
import signal
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

from relay.client import ServerError
from relay.client.dial import open_stream, with_stream
from relay.client.errors import Closed, DialFailed
from relay.client.websocket import open_websocket
from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.load.actors.network.client import MSGPACK_SUBPROTOCOL, IncomingMessage, LoadClient
from relay.load.actors.network.endpoint import TlsVerification, path_or_default
from relay.load.record import RECORD_CONNECT_TIMEOUT, RecordFailed
from relay.load.report.outputs import OutputFiles
from relay.load.scenario.link_measurement import (
    Direction,
    Interval,
    LinkArrival,
    RoundTrip,
    idle_parts,
    link_steps,
)
from relay.load.scenario.link_trace import (
    MIN_TRACE_SECONDS,
    LinkHead,
    LinkStep,
    LinkTrace,
    write_link,
)
from relay.protocol.messages import now_ms

WARM_UP = 3.0
"""Seconds before the recording, in which the load grows to what the link carries."""
LOADED = 0.75
"""Seconds in which frames are sent, before the link is let idle for a round trip."""
DRAIN_TIMEOUT = 2.0
"""Seconds without an end of what is under way after which a cycle has no round trip."""
RETRY = 0.5
FRAME_SECONDS = 0.02
"""A frame is what the uplink carries in this time: many small ones show holes."""
MIN_FRAME_BYTES, MAX_FRAME_SIZE = 1024, 64 * 1024
FIRST_WINDOW = 16 * 1024
MIN_DEPTH = 0.05
"""Seconds of the uplink that are under way at least, twice."""
FULL_PART = 0.9
"""Part of what could have come down from which on the downlink was hardly ever full."""


@frozen(kw_only=True)
class LinkRecordOptions:
    """What a recording of a link may use."""

    seconds: float | None = None
    """None to record until Ctrl-C."""
    max_rate: float = 10e6
    """Bits per second of the uplink at most."""
    viewers: int = 4
    """The downlink gets up to so many times as much."""

    def warning(self) -> str:
        """How much data it takes."""
        megabytes = self.max_rate * (1 + self.viewers) / 8e6
        return f"records the link; this takes up to {megabytes:.3g} MB per second, up and down"


@frozen
class RecordedLink:
    """A recording, and how far it can be trusted."""

    trace: LinkTrace
    was_uplink_full: bool
    """Whether the uplink carried less than was allowed."""
    was_downlink_full: bool
    """Whether the downlink carried less than there was for it."""

    def doubts(self) -> Iterator[str]:
        """What could not be measured."""
        if not self.was_uplink_full:
            yield "the uplink carried all that --max-rate allows, and may carry more"
        if not self.was_downlink_full:
            yield "the downlink carried all that came up, and may carry more: try more --viewers"


@define(eq=False)
class _CountingStream(trio.abc.Stream):
    """Notes when bytes come."""

    below: trio.abc.Stream
    on_bytes: Callable[[int], object]

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.below.receive_some(max_bytes)
        self.on_bytes(len(data))
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.below.aclose()


@define(eq=False)
class LinkRecorder:
    """Measures one link; times are in seconds of the recording."""

    url: str
    token: str = field(repr=False)
    options: LinkRecordOptions
    tls: ssl.SSLContext | None = None
    stream: str = field(factory=lambda: f"link-{secrets.token_hex(6)}")
    epoch: float = 0.0
    """Trio's time when the recording begins; before, times are negative."""
    down: list[LinkArrival] = field(factory=list)
    up: list[LinkArrival] = field(factory=list)
    trips: list[RoundTrip] = field(factory=list)
    pauses: list[Interval] = field(factory=list)
    """When neither direction was meant to be full."""
    _under_way: deque[int] = field(factory=deque)
    """Sizes of frames that have not come yet."""
    _known: int = 0
    """Frames of this connection that have come."""
    _byte_rate: float = 0.0
    """What the uplink last carried, in bytes per second."""
    _least_trip: float = math.inf
    _came: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _noise: bytes = field(factory=lambda: secrets.token_bytes(MAX_FRAME_SIZE), repr=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure until cancelled. `RelayError` if it cannot connect at first."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._keep, self._send)
            for _ in range(self.options.viewers):
                await nursery.start(self._keep, self._watch)
            self.epoch = trio.current_time() + WARM_UP
            self.up, self.down, self.trips, self.pauses = [], [], [], []
            await trio.sleep(WARM_UP)
            task_status.started()

    def steps(self, length: float) -> list[LinkStep]:
        """What was measured from the start of the recording on."""
        down, up = (
            [each for each in found if 0 <= each.at < length] for found in (self.down, self.up)
        )
        pauses = idle_parts(self.pauses, down)  # viewers still get what came up before
        trips = [each for each in self.trips if each.at >= 0]
        return link_steps(Direction(down, pauses), Direction(up, self.pauses), trips, length)

    # -- connections

    async def _keep(
        self,
        work: Callable[[LoadClient, Callable[[], None]], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Work on one connection after the other; only the first one must succeed."""
        was_ready = False

        def is_ready() -> None:
            nonlocal was_ready
            if not was_ready:
                task_status.started()
            was_ready = True

        while True:
            try:
                async with self._connect(is_phone=work == self._send) as client:
                    await work(client, is_ready)
            except (Closed, ServerError, DialFailed):
                if not was_ready:
                    raise
            await trio.sleep(RETRY)

    @asynccontextmanager
    async def _connect(self, *, is_phone: bool) -> AsyncIterator[LoadClient]:
        with trio.move_on_after(RECORD_CONNECT_TIMEOUT) as connecting:
            wrap = None if is_phone else self._counted
            stream, host, resource = await open_stream(self.url, tls=self.tls, wrap=wrap)
            path = with_stream(path_or_default(resource, phone=is_phone), self.stream)
            async with open_websocket(
                stream, host, path, required_subprotocol=MSGPACK_SUBPROTOCOL
            ) as socket:
                client = LoadClient(socket, msgpack=True, on_message=self._receive)
                await client.request("auth", token=self.token)
                connecting.deadline = math.inf
                yield client
                return
        raise DialFailed(f"no answer in {RECORD_CONNECT_TIMEOUT:g} s")

    def _counted(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        return _CountingStream(stream, self._note_down)

    def _now(self) -> float:
        return trio.current_time() - self.epoch

    def _note_down(self, size: int) -> None:
        if size:
            self.down.append(LinkArrival(self._now(), size))

    def _receive(self, incoming: IncomingMessage, _size: int) -> None:
        if incoming.type != "received":
            return
        size = 0
        while self._known < incoming.frames and self._under_way:
            self._known += 1
            size += self._under_way.popleft()
        self.up.append(LinkArrival(self._now(), size))
        self._came.unpark_all()

    # -- viewers

    async def _watch(self, client: LoadClient, is_ready: Callable[[], None]) -> None:
        await client.request("subscribe", streamId=self.stream, consumes=["video-frame"])
        is_ready()
        while True:
            await client.read()

    # -- the phone

    async def _send(self, client: LoadClient, is_ready: Callable[[], None]) -> None:
        self._under_way.clear()
        self._known = 0
        await client.request(
            "register", streamId=self.stream, produces=["video-frame"], consumes=[], window=1024
        )
        async with client.listening():
            is_ready()
            while True:
                await self._load(client)
                await self._measure(client)

    async def _load(self, client: LoadClient) -> None:
        """Keep the uplink full for a while, or at the rate that is allowed."""
        end, arrived, size = trio.current_time() + LOADED, len(self.up), self._frame_size()
        due = trio.current_time()
        while trio.current_time() < end:
            if sum(self._under_way) + size > self._window:
                with trio.move_on_at(end):
                    await self._came.park()
            elif trio.current_time() < due:
                await trio.sleep_until(min(due, end))
            else:
                due += size * 8 / self.options.max_rate
                await self._send_frame(client, size)
        self._byte_rate = sum(each.size for each in self.up[arrived:]) / LOADED

    @property
    def _window(self) -> int:
        """Bytes that may be under way: twice what the link held last time, so that it may grow."""
        depth = max(MIN_DEPTH, self._least_trip if math.isfinite(self._least_trip) else 0.0)
        return max(FIRST_WINDOW, int(2 * self._byte_rate * depth))

    def _frame_size(self) -> int:
        return min(MAX_FRAME_SIZE, max(MIN_FRAME_BYTES, int(self._byte_rate * FRAME_SECONDS)))

    async def _measure(self, client: LoadClient) -> None:
        """Wait until nothing is under way, and then for one small frame."""
        with trio.move_on_after(DRAIN_TIMEOUT) as draining:
            await self._drain()
        if draining.cancelled_caught:
            return
        begun = trio.current_time()
        with trio.move_on_after(DRAIN_TIMEOUT) as waiting:
            await self._send_frame(client, MIN_FRAME_BYTES)
            await self._drain()
        if waiting.cancelled_caught:
            return
        trip = trio.current_time() - begun
        self._least_trip = min(self._least_trip, trip)
        self.trips.append(RoundTrip(self._now(), trip))
        # The next frames need as long before they have come.
        self.pauses.append(Interval(begun - self.epoch, self._now() + trip))

    async def _drain(self) -> None:
        while self._under_way:
            await self._came.park()

    async def _send_frame(self, client: LoadClient, size: int) -> None:
        self._under_way.append(size)
        await client.send("video-frame", timestamp=now_ms(), data=self._noise[:size])


def record_link(
    url: str,
    token: str,
    path: Path,
    options: LinkRecordOptions,
    tls_verification: TlsVerification | None = None,
) -> RecordedLink:
    """Record until the time is over or Ctrl-C, and write the file; `RelayError`."""
    tls = (tls_verification or TlsVerification()).context_for(url)
    recorder = LinkRecorder(url, token, options, tls)
    try:
        OutputFiles(json=path).try_to_open()  # before a long recording rather than after it
        length = trio.run(measure_link, recorder)
        recorded = _finish(recorder, length, str(path))
        path.write_bytes(write_link(recorded.trace.head, recorded.trace.steps))
    except OSError as error:
        raise RecordFailed(f"cannot write {path}: {error.strerror}") from None
    return recorded


async def measure_link(recorder: LinkRecorder) -> float:
    """Measure until the time is over or Ctrl-C; returns the seconds. `RelayError`."""
    seconds = recorder.options.seconds
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(recorder.run)
                with trio.move_on_after(math.inf if seconds is None else seconds):
                    await anext(signals)
                length = round(trio.current_time() - recorder.epoch, 3)
                nursery.cancel_scope.cancel()
    except* (Closed, ServerError) as problems:
        raise RecordFailed(str(next(leaves(problems)))) from None
    except* RelayError as problems:
        raise RecordFailed(str(next(leaves(problems)))) from None
    return length


def _finish(recorder: LinkRecorder, length: float, name: str) -> RecordedLink:
    if length < MIN_TRACE_SECONDS:
        raise RecordFailed(
            f"a recording of {length:g} s is too short: {MIN_TRACE_SECONDS:g} s at least"
        )
    steps = recorder.steps(length)
    if not any(step.up for step in steps) or not any(step.down for step in steps):
        raise RecordFailed("nothing came over the link: it cannot be recorded")
    options = recorder.options
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    source = (
        f"recorded over a relay, {when}; uplink with up to {options.max_rate / 1e6:g} Mbit/s,"
        f" downlink with up to {options.viewers} times what came up"
    )
    head = LinkHead(length=length, source=source)
    up, down = (
        sum(each.size for each in found if 0 <= each.at < length)
        for found in (recorder.up, recorder.down)
    )
    full_time = length - sum(pause.overlap(0.0, length) for pause in recorder.pauses)
    return RecordedLink(
        LinkTrace(name, head, tuple(steps)),
        was_uplink_full=up * 8 < FULL_PART * options.max_rate * full_time,
        was_downlink_full=down < FULL_PART * options.viewers * up,
    )
