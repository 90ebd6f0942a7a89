"""Measurements of a participant, at its own end of the connection."""

from __future__ import annotations

from collections import Counter

import trio
from attrs import define, field, frozen

from relay.client import Alert, ClientEvent, Frame, Meter
from relay.protocol.messages import now_ms


@frozen
class Reading:
    """Totals at one moment."""

    at: float
    frames: int
    bytes: int


@frozen
class Throughput:
    """Frames and megabits per second between two readings."""

    fps: float
    megabits: float

    @classmethod
    def between(cls, earlier: Reading, later: Reading) -> Throughput:
        seconds = later.at - earlier.at
        if seconds <= 0:
            return cls(0, 0)
        bits = 8 * (later.bytes - earlier.bytes)
        return cls((later.frames - earlier.frames) / seconds, bits / seconds / 1_000_000)


@define(eq=False)
class ParticipantStats:
    """The measurements of one participant."""

    name: str
    meter: Meter = field(factory=Meter)
    """Bytes on its link in both directions."""
    frames_out: int = 0
    frames_in: int = 0
    missed: int = 0
    """Frames that a producer skipped because it was late, or that a viewer lacks in `seq`."""
    alerts_out: int = 0
    alerts_in: int = 0
    first: Reading | None = None
    """Totals right after the first frame, from which rates count."""
    _ages: Counter[int] = field(factory=Counter)
    """Number of frames by their age on arrival, in ms."""
    _last_seq: int | None = None

    def count_event(self, event: ClientEvent) -> None:
        """Count a frame or an alert that the client received."""
        match event:
            case Frame():
                self._count_frame(event)
            case Alert():
                self.alerts_in += 1

    def count_sent_frame(self) -> None:
        self.frames_out += 1
        self.first = self.first or self.read()

    def read(self) -> Reading:
        frames = self.frames_in + self.frames_out
        return Reading(trio.current_time(), frames, self.meter.received + self.meter.sent)

    def age(self, share: float) -> int | None:
        """The age in ms that this share of the frames (0.5: half) did not exceed."""
        rank = share * self.frames_in
        for age in sorted(self._ages):
            rank -= self._ages[age]
            if rank <= 0:
                return age
        return None

    def _count_frame(self, frame: Frame) -> None:
        self.frames_in += 1
        self.first = self.first or self.read()
        self._ages[now_ms() - frame.received_at] += 1
        if self._last_seq is not None and frame.seq > self._last_seq:
            self.missed += frame.seq - self._last_seq - 1
        self._last_seq = frame.seq
