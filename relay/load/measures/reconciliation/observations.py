"""What clients saw and sent on each connection, for `reconcile`. No I/O."""

from __future__ import annotations

from typing import Self

from attrs import define, field, frozen

MAX_OBSERVATIONS = 200_000
"""Stream observations that are kept until the next update."""


@frozen(kw_only=True)
class StreamObservation:
    """What one client saw of one stream on one connection. Times are in seconds of the run."""

    group: str
    stream: str
    start: float
    end: float
    watched: bool
    """Whether it subscribed to frames, not only to alerts."""
    first: int | None
    """Number of the first frame it received."""
    last: int | None
    alerts: dict[str, list[tuple[int, int]]]
    """Ranges of alert numbers, by sender; both ends are included."""
    missed: int = 0
    """Frames that were missing between those that came."""
    target: str = ""
    """Where the connection went, if there are several targets."""


@frozen
class SentFrames:
    """What a phone sent on one connection: from when to when, from which number to which."""

    stream: str
    start: float
    end: float
    first: int
    last: int


@frozen
class AcknowledgedAlert:
    """An alert that the relay acknowledged."""

    sender: str
    stream: str
    number: int
    due: float
    accepted: float


@define(eq=False)
class Observations:
    """All of the above. They go from process to process as JSON."""

    streams: list[StreamObservation] = field(factory=list)
    sent: list[SentFrames] = field(factory=list)
    alerts: list[AcknowledgedAlert] = field(factory=list)
    dropped: int = 0
    """Observations for which there was no room."""

    @property
    def number(self) -> int:
        """How many there are; each range of alert numbers is one, too."""
        ranges = sum(len(each) for seen in self.streams for each in seen.alerts.values())
        return len(self.streams) + len(self.sent) + len(self.alerts) + ranges

    def add_stream(self, observation: StreamObservation) -> None:
        if len(self.streams) < MAX_OBSERVATIONS:
            self.streams.append(observation)
        else:
            self.dropped += 1

    def add(self, other: Self) -> None:
        self.streams += other.streams
        self.sent += other.sent
        self.alerts += other.alerts
        self.dropped += other.dropped

    def drain(self) -> Observations:
        """Return everything and forget it."""
        drained = Observations(self.streams, self.sent, self.alerts, self.dropped)
        self.streams, self.sent, self.alerts, self.dropped = [], [], [], 0
        return drained
