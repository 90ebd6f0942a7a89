"""One subscription: a stream's frames on their way to one connection. Floor 2."""

from __future__ import annotations

import trio
from attrs import define, field

from relay.hub.frame import Burst, Frame
from relay.hub.ledger import Drop, Ledger
from relay.hub.peer import ConsumingPeer
from relay.hub.terms import Pace, Terms, Window
from relay.hub.waiting import Latest, Lossless, TooSlow, Waiting
from relay.metrics import Histogram
from relay.model import Identity
from relay.protocol.codec import Codec
from relay.transport.link import Buffer
from relay.transport.outlet import Outlet


@define(eq=False)
class Consumer:
    """Takes what is offered at the pace of its connection. A `Source` of the connection's outlet.

    A frame that cannot be written at once waits in a bounded memory channel, by the policy of the
    terms. What a decoder could not use, because it builds on a dropped frame, is not sent at all.
    """

    stream_id: str
    wants_frames: bool
    wants_alerts: bool
    peer: ConsumingPeer
    _outlet: Outlet
    _ages: Histogram
    _terms: Terms
    _lossless_bytes: int
    """That may wait under the policy `lossless`."""
    in_line: bool = False
    ledger: Ledger = field(factory=Ledger)
    _waiting: Waiting = field(init=False)
    _pace: Pace | None = field(init=False)
    _window: Window | None = field(init=False)
    _codec: Codec = field(init=False)
    _needs_keyframe: bool = False
    _closed: bool = False

    def __attrs_post_init__(self) -> None:
        self._codec = self.peer.codec
        terms = self._terms
        lossless = terms.policy == "lossless"
        self._waiting = Lossless(self._lossless_bytes) if lossless else Latest()
        self._pace = None if terms.max_fps is None else Pace(1 / terms.max_fps)
        self._window = None if terms.window is None else Window(terms.window)

    @property
    def identity(self) -> Identity:
        """Who consumes, by what is known of them now."""
        return self.peer.identity

    @property
    def waiting_frames(self) -> int:
        return self._waiting.count

    def offer(self, frame: Frame) -> bool:
        """Write the frame if the connection is idle, else let it wait; whether it was written.

        Never waits, never raises. The caller observes the age of a frame that was written.
        """
        if self._closed:
            return False
        self.ledger.accepted += 1
        if (self._needs_keyframe or frame.baseless) and frame.is_delta:
            self._drop(Drop.UNDECODABLE)
        elif self._pace is not None and not self._pace.is_due(trio.current_time()):
            self._drop(Drop.THINNED)
        elif (encoded := frame.encoded(self._codec)) is None:
            self._drop(Drop.UNENCODABLE)
        else:
            self._needs_keyframe = False
            window = self._window
            if (
                not self._waiting.count
                and (window is None or window.is_open)
                and self._outlet.write_now(encoded)
            ):
                self._count_written(frame)
                return True
            self._let_wait(frame, len(encoded))
        return False

    def offer_burst(self, burst: Burst) -> int:
        """Offer frames that came at once, if possible in one write; how many were written.

        Those that the link does not take at once are offered one by one: they may be skipped.
        """
        begun = 0
        plain = self._pace is None and self._window is None and not self._needs_keyframe
        if plain and not burst.baseless and not self._waiting.count and not self._closed:
            row = burst.encoded(self._codec)
            if row is not None:
                begun = self._outlet.write_row_now(row.whole, row.ends)
                self.ledger.accepted += begun
                self.ledger.written += begun
                if begun == len(burst.frames):
                    return begun
        return begun + sum(map(self.offer, burst.frames[begun:]))

    def begin_life(self) -> None:
        """A new life of the stream begins: nothing of the last one may come after its status."""
        if self._window is not None:
            self._window = Window(self._window.size)
        if isinstance(self._waiting, Lossless) and self._waiting.count:
            self._give_up()
        elif self._waiting.take() is not None:
            self._drop(Drop.SUPERSEDED)

    def skip_to_keyframe(self) -> None:
        """Send no delta before the next keyframe."""
        self._needs_keyframe = True

    def acknowledge(self, seq: int) -> None:
        """The consumer has got this frame and all before it."""
        if self._window is not None:
            self._window.acknowledge(seq)
            if self.waiting():
                self._outlet.line_up(self)

    def take(self) -> Buffer | None:
        if not self._may_send():
            return None
        frame = self._waiting.take()
        if frame is None:
            return None
        self._count_written(frame)
        self._ages.observe(trio.current_time() - frame.accepted_at)
        return frame.encoded(self._codec)

    def waiting(self) -> bool:
        return self._waiting.count > 0 and self._may_send()

    def close(self) -> None:
        """Take no further frame; those that wait are dropped."""
        self._closed = True
        while self._waiting.take() is not None:
            self._drop(Drop.LEFT)

    def reopen(self) -> None:
        """Take frames again, as if for the first time."""
        self._closed = False
        if self._window is not None:
            self._window = Window(self._window.size)

    def _may_send(self) -> bool:
        return self._window is None or self._window.is_open

    def _let_wait(self, frame: Frame, size: int) -> None:
        try:
            displaced = self._waiting.put(frame, size)
        except TooSlow:
            self._drop(Drop.LEFT)
            self._give_up()
            return
        if displaced is frame:
            self._drop(Drop.SUPERSEDED)
        elif displaced is not None:
            # By a frame that builds on none, so there is nothing to wait for.
            self.ledger.dropped[Drop.SUPERSEDED] += 1
        if self.waiting():
            self._outlet.line_up(self)

    def _give_up(self) -> None:
        self.close()
        self.peer.too_slow()

    def _drop(self, why: Drop) -> None:
        self.ledger.dropped[why] += 1
        self._needs_keyframe = True

    def _count_written(self, frame: Frame) -> None:
        self.ledger.written += 1
        if self._window is not None:
            self._window.sent(frame.seq)
