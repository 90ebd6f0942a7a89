"""Writes everything that leaves a connection.

The unsent rest of a frame (`_tail`) belongs to the outlet and not to a task: the next write
finishes it first. So no cancellation can cut a frame, and no tail means a frame boundary.
All that waits to write takes turns under one first-in, first-out lock. A ping or a pong waits in
no task: there is a place for one of each, and the next write takes them along, between two
fragments of a long message if one is being written.

A frame is written at once, without waiting and without the lock, when the whole connection is idle:
the writer is parked or was never needed, no source is in line, there is no tail, and little is
unsent in the kernel. Otherwise its source gets in line, and the writer asks it for a frame as late
as possible. The writer is a task that starts when a frame first has to wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio
from attrs import define, field, frozen

from relay.metrics import LinkHistograms
from relay.transport import wire
from relay.transport.input_lag import input_lag
from relay.transport.link import Buffer, Link
from relay.transport.pacing import PING_LEAD, Pacer

RATE_SECONDS = 1.0
"""Over which the bytes that are sent are averaged."""
MIN_HELD_BYTES = 64 * 1024
"""From this size on, the rest of a frame is counted as kept."""


Unready = Callable[[], Awaitable[Buffer | None]]
"""Makes the frame to write, while other connections go on; None when there is none after all."""


class Source(Protocol):
    """A queue of frames, from which the writer takes one frame at each turn."""

    in_line: bool
    """Kept by the outlet."""

    def take(self) -> Buffer | Unready | None:
        """Return the next frame to write, chosen now; None when there is none after all."""

    def waiting(self) -> bool:
        """Whether there is another frame."""


class PacedSource(Source, Protocol):
    """A source that asks the pacer before it sends."""

    def pacer_changed(self) -> None:
        """Look again whether to send, since the pacer knows more than before."""


@frozen
class ByteRate:
    """About how many bytes a second are sent, as reckoned with the last of them."""

    _rate: float = 0.0
    _reckoned_at: float = 0.0

    def at(self, now: float) -> float:
        """The bytes a second, if nothing was sent since."""
        return self._rate * math.exp((self._reckoned_at - now) / RATE_SECONDS)

    def with_more(self, size: int, now: float) -> ByteRate:
        """The rate with so many bytes that are sent now."""
        return ByteRate(self.at(now) + size / RATE_SECONDS, now)


NO_BYTES = ByteRate()
"""Shared by all that have sent nothing yet."""


@define(eq=False, repr=False)
class Outlet:
    """The outgoing half of one connection."""

    link: Link
    stall_timeout: float
    """Seconds after which a peer that takes no byte has stalled."""
    stalled: bool = False
    """Whether the peer has stalled."""
    last_progress: float = field(factory=trio.current_time)
    """When the peer last made room for a frame that waited, by Trio's clock."""
    _lock: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)
    held: object | None = None
    """What the unsent rest of a large frame belongs to, which lives as long as that."""
    _tail: Buffer = b""
    _begun: Buffer = b""
    """The frames that `_tail` is the end of."""
    _controls: tuple[bytes, ...] = ()
    """Control frames that wait, at most one of each kind."""
    _inserted: bool = False
    """Whether `_tail` ends with control frames."""
    _behind: Buffer = b""
    """The fragments to write after these."""
    _parked: bool = False
    """Whether the writer waits for a source, or has not been needed."""
    _start_writer: Callable[[], object] | None = None
    """Starts `run` in a task; None once it was called."""
    _closing: bool = False
    """Whether no data frame may follow: a Close was or will be sent, or the link is broken."""
    _broken: bool = False
    """Whether a write has failed."""
    _closed: bool = False
    """Whether nothing may follow: a Close was sent, or begun."""
    # Lists, because the lines are short and an empty deque takes ten times the memory.
    _first: list[Source] = field(factory=list)
    _turns: list[Source] = field(factory=list)
    _lot: trio.lowlevel.ParkingLot | None = None
    """Where the writer waits."""
    pacer: Pacer | None = None
    """Paces what is sent by `_paced`; None before the first of these."""
    _paced: list[PacedSource] = field(factory=list, repr=False)
    raised_at: float = -math.inf
    """When a paced source last took larger frames than before, by Trio's clock."""
    _paced_rate: ByteRate = NO_BYTES
    _recheck_at: float = math.inf
    """When the pacer should be asked again."""

    @property
    def cut(self) -> bool:
        """Whether the peer has only a part of the last frame."""
        return bool(self._tail)

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def is_at_rest(self) -> bool:
        """Whether the link is open for frames and has taken all that there was to write."""
        waits = self._tail or self._controls or self._first or self._turns
        return self._parked and not (waits or self._closing)

    def open(self, start_writer: Callable[[], object]) -> None:
        """Write frames from now on. `start_writer` has to start `run` in a task; it is called when
        a frame first has to wait."""
        self._start_writer, self._parked = start_writer, True

    def write_now(self, frame: Buffer, held: object | None = None) -> bool:
        """Write a frame if the connection is idle; False when it has to be queued. Never waits,
        never raises. `held` is kept until it is written, if it is large."""
        if not self._parked or self._tail:
            return False
        try:
            sent = self.link.send_if_low(frame)
        except BlockingIOError:
            return False
        except OSError:
            self._broken = True
            self.stop()
            return False
        if sent < len(frame):
            self._begun, self._tail = frame, memoryview(frame)[sent:]
            if len(frame) >= MIN_HELD_BYTES:
                self.held = held
            self._wake()
        return True

    def write_burst_now(
        self, whole: Buffer, ends: Sequence[int], held: object | None = None
    ) -> int:
        """Write as many of the joined frames as the connection takes at once.

        Returns their number; of the last one perhaps only a part was taken, and the rest is kept.
        """
        if not self.write_now(whole, held):
            return 0
        sent = len(whole) - len(self._tail)
        begun = bisect_left(ends, sent) + 1
        self._tail = self._tail[: ends[begun - 1] - sent]
        self._begun = memoryview(whole)[: ends[begun - 1]] if self._tail else b""
        if not self._tail:
            self.held = None
        return begun

    def line_up(self, source: Source, *, first: bool = False) -> None:
        """Give a source a turn; those with `first` go before the others."""
        if not source.in_line:
            source.in_line = True
            (self._first if first else self._turns).append(source)
            self._wake()

    def pace(self, source: PacedSource, histograms: LinkHistograms) -> Pacer:
        """Tell a source of what the pacer learns, from now on. The pacer of the first source counts
        in `histograms` what it measures."""
        if self.pacer is None:
            self.pacer = Pacer(input_lag, PING_LEAD, histograms=histograms)
        if source not in self._paced:
            self._paced.append(source)
        return self.pacer

    @property
    def is_shared(self) -> bool:
        """Whether several paced sources take turns."""
        return len(self._paced) > 1

    def count_paced(self, size: int, now: float) -> None:
        """Count the bytes of a paced frame that was sent."""
        self._paced_rate = self._paced_rate.with_more(size, now)

    def paced_rate(self, now: float) -> float:
        """The bytes a second that all paced sources send, about."""
        return self._paced_rate.at(now)

    def stop_pacing(self, source: PacedSource) -> None:
        """Tell a source nothing more; for one that sends nothing more."""
        if source in self._paced:
            self._paced.remove(source)

    def give_turn(self, source: PacedSource) -> None:
        """Let the other paced sources be first next time."""
        if len(self._paced) > 1 and source in self._paced:
            self._paced.remove(source)
            self._paced.append(source)

    def take_answers(self, tokens: Sequence[int], now: float) -> int:
        """Take answers to probes that were read at this time; returns the number of probes that are
        answered by them."""
        pacer = self.pacer
        if pacer is None:
            return 0
        answered, was_calm = 0, pacer.calm
        for token in tokens:
            answered += pacer.answer(token, now)
        if answered and not (was_calm and pacer.calm):  # on a calm link nothing waits for an answer
            self.tell_paced()
        return answered

    def expect_no_answers(self) -> None:
        """Expect no answer to what was sent so far, and wait for none."""
        if self.pacer is not None:
            self.pacer.forget()
            self.tell_paced()

    def tell_paced(self) -> None:
        """Tell the paced sources that the pacer knows more than before."""
        for source in tuple(self._paced):
            source.pacer_changed()

    def recheck_at(self, when: float) -> None:
        """Tell the paced sources again at this time, if nothing happens before."""
        if when < self._recheck_at:
            self._recheck_at = when
            self._stir()  # which may still be written to at once

    def post_control(self, frame: bytes) -> bool:
        """Write a ping or a pong as soon as possible, in place of one that still waits: the latest
        pong answers all pings (RFC 6455, section 5.5.3). Never waits, never raises.

        Returns False when the link is broken. When a Close is on its way, nothing is written.
        """
        if not self.write_now(frame) and not self._closing:
            self._controls = (*[each for each in self._controls if each[0] != frame[0]], frame)
            self._wake()
        return not self._broken

    @property
    def expects_pong(self) -> bool:
        """Whether a pong is to come for what was written. Another ping now might be answered in its
        place: a peer may answer only the last."""
        return not self._tail and self.pacer is not None and self.pacer.expects_answer

    @property
    def answers_until(self) -> float:
        """Until when the peer may well take to answer what was written, which may be long under
        way."""
        return -math.inf if self.pacer is None else self.pacer.answers_until

    def stop(self) -> None:
        """Write no further data frame. The next write still finishes one that was begun."""
        self._closing = True
        self._start_writer = None
        self._wake()

    def forget_sources(self) -> None:
        """Keep no source in line; for a link that is closed."""
        self._first.clear()
        self._turns.clear()
        self._paced.clear()

    async def run(self) -> None:
        """Write until the outlet stops or the link breaks, which the reader notices."""
        if self._lot is None:
            self._lot = trio.lowlevel.ParkingLot()
        try:
            while not self._closing:
                if self._first or self._turns or self._tail or self._controls:
                    async with self._lock:
                        await self._serve_one()
                else:
                    await self._park()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.stop()
            self.link.reset()

    async def _park(self) -> None:
        """Wait until there may be something to write."""
        assert self._lot is not None
        self._parked = True
        if self._recheck_at == math.inf:
            await self._lot.park()
            return
        with trio.move_on_at(self._recheck_at) as scope:
            await self._lot.park()
        if scope.cancelled_caught:
            self._recheck_at = math.inf
            self.tell_paced()

    async def _serve_one(self) -> None:
        await self._flush()
        if self._controls and not self._closing:
            controls, self._controls = b"".join(self._controls), ()
            await self._write(controls)
        if not self._closing and self._may_be_above_low():
            await self._wait_writable()
        frame = None if self._closing else self._pick()
        if callable(frame):
            unready = frame
            frame = await unready()
            if self._closing:
                return
        if frame is not None:
            await self._write(frame)

    async def send(self, data: Buffer) -> None:
        """Write whole frames in their turn; before there are frames, any bytes.

        Like the methods below, it raises `trio.ClosedResourceError` after a Close.
        """
        async with self._lock:
            await self._write(data)

    async def send_first(self, data: Buffer) -> None:
        """Write the first bytes of a connection, before anybody else may write. No checkpoint if
        the link takes them at once."""
        await self._write(data)

    async def send_close(self, data: Buffer) -> None:
        """Write a Close frame; nothing follows it."""
        self.stop()
        async with self._lock:
            await self._write(data, closes=True)

    async def drain(self, source: Source, *last: bytes) -> None:
        """After `run` has ended, write what is left in one source, and then the last frames."""
        self.stop()
        async with self._lock:
            while (frame := source.take()) is not None:
                assert not callable(frame)  # there are no video frames
                await self._write(frame)
            for frame in last:
                await self._write(frame)

    def _may_be_above_low(self) -> bool:
        """Whether to wait for a writable link, which has the same low-water mark."""
        unsent = self.link.unsent()
        return unsent is None or unsent >= self.link.low_water

    def _wake(self) -> None:
        """Let the writer write: nobody else does until it waits again."""
        self._parked = False
        self._stir()

    def _stir(self) -> None:
        """Let the writer look what there is to do."""
        if self._lot is not None:
            self._lot.unpark_all()
        elif self._start_writer is not None and not self._closing:
            start, self._start_writer = self._start_writer, None
            start()

    def _pick(self) -> Buffer | Unready | None:
        line = self._first or self._turns
        if not line:
            return None
        source = line.pop(0)
        frame = source.take()
        source.in_line = source.waiting()
        if source.in_line:
            line.append(source)
        return frame

    async def _write(self, data: Buffer, *, closes: bool = False) -> None:
        await self._flush()
        if self._closed:
            raise trio.ClosedResourceError
        self._begun = self._tail = data
        self._closed = closes
        await self._flush()

    async def _flush(self) -> None:
        if not self._tail:
            return
        while self._tail:
            if self._controls and not self._inserted and not self._closing:
                self._insert_controls()
            try:
                sent = self.link.send(self._tail)
            except BlockingIOError:
                await self._wait_writable()
            except OSError as problem:
                self._broken = True
                self.stop()
                raise trio.BrokenResourceError from problem
            else:
                self._tail = memoryview(self._tail)[sent:] if sent < len(self._tail) else b""
                if not self._tail:
                    self._end_tail()
        self.held = None

    def _insert_controls(self) -> None:
        """Put the control frames that wait behind the frame that is being written."""
        end = wire.end_of_frame(self._begun, len(self._begun) - len(self._tail))
        rest = end - (len(self._begun) - len(self._tail))
        self._behind = memoryview(self._tail)[rest:]
        self._tail = b"".join((memoryview(self._tail)[:rest], *self._controls))
        self._inserted, self._controls = True, ()

    def _end_tail(self) -> None:
        """Go on with what was put off for control frames, if any was."""
        self._inserted = False
        self._begun = self._tail = self._behind
        self._behind = b""

    async def _wait_writable(self) -> None:
        with trio.move_on_after(self.stall_timeout) as scope:
            await self.link.wait_writable()
        if scope.cancelled_caught:
            self.stalled = True
            self.stop()
            self.link.reset()
            raise trio.BrokenResourceError("the peer stopped reading")
        self.last_progress = trio.current_time()
