"""What a participant of the demo measured at its own end of the connection. Floor 6."""

from __future__ import annotations

from collections import Counter

import trio
from attrs import define, field, frozen

from relay.client import Alert, ClientEvent, Frame, Meter
from relay.protocol.messages import now_ms


@frozen
class Reading:
    """What had passed at one moment."""

    at: float
    frames: int
    bytes: int


@frozen
class Rate:
    """What passed between two readings, per second."""

    fps: float
    megabits: float

    @classmethod
    def between(cls, earlier: Reading, later: Reading) -> Rate:
        seconds = later.at - earlier.at
        if seconds <= 0:
            return cls(0, 0)
        bits = 8 * (later.bytes - earlier.bytes)
        return cls((later.frames - earlier.frames) / seconds, bits / seconds / 1_000_000)


@define(eq=False)
class Figures:
    """The counts of one participant."""

    name: str
    meter: Meter = field(factory=Meter)
    """Of its whole link, both ways."""
    frames_out: int = 0
    frames_in: int = 0
    missed: int = 0
    """Frames that it left out: a producer as it saw that it is late, a viewer as `seq` shows."""
    alerts_out: int = 0
    alerts_in: int = 0
    first: Reading | None = None
    """Right after the first frame: rates are taken from there."""
    _ages: Counter[int] = field(factory=Counter)
    """How many frames were so many ms old when they came."""
    _last_seq: int | None = None

    def take(self, event: ClientEvent) -> None:
        """Count what a client received."""
        match event:
            case Frame():
                self._take_frame(event)
            case Alert():
                self.alerts_in += 1

    def count_sent_frame(self) -> None:
        self.frames_out += 1
        self.first = self.first or self.read()

    def read(self) -> Reading:
        frames = self.frames_in + self.frames_out
        return Reading(trio.current_time(), frames, self.meter.received + self.meter.sent)

    def age(self, share: float) -> int | None:
        """So many ms this share of the frames (0.5: half of them) was old at most."""
        rank = share * self.frames_in
        for age in sorted(self._ages):
            rank -= self._ages[age]
            if rank <= 0:
                return age
        return None

    def _take_frame(self, frame: Frame) -> None:
        self.frames_in += 1
        self.first = self.first or self.read()
        self._ages[now_ms() - frame.received_at] += 1
        if self._last_seq is not None and frame.seq > self._last_seq:
            self.missed += frame.seq - self._last_seq - 1
        self._last_seq = frame.seq
