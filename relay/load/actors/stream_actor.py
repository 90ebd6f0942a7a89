"""An actor with streams: it receives alerts about them, and checks what it receives."""

from __future__ import annotations

from attrs import define, field

from relay.load.actors.actor import Actor
from relay.load.actors.network.client import IncomingMessage
from relay.load.measures.reconciliation.integrity import AlertChecker, FrameChecker
from relay.load.measures.reconciliation.observations import StreamObservation

MAX_NUMBER_CHARS = 15
"""Digits of a number in an alert."""


@define(eq=False)
class StreamWatch:
    """One stream on one connection. Times are in seconds of the run."""

    stream: str
    since: float
    checker: FrameChecker | None
    """None if only alerts are received, or frames are only counted."""
    last_seq: int | None = None
    """Of the last frame that was only counted."""
    is_settled: bool = False
    """Whether two of these have come: the first may be an old one, behind which there is a gap."""
    last_frame_at: float | None = None
    last_layer: str | None = None
    """The layer of the last picture; None for one without."""
    longest_gap: float = 0.0
    """Longest time between two frames."""
    alerts: dict[str, AlertChecker] = field(factory=dict)
    """By sender."""


@define(eq=False)
class StreamActor(Actor):
    """The common part of phones and viewers."""

    watches: dict[str, StreamWatch] = field(factory=dict)
    """By stream, for the current connection."""

    def receive(self, incoming: IncomingMessage, size: int) -> None:
        if incoming.type == "alert":
            self._receive_alert(incoming)
        else:
            super().receive(incoming, size)

    def _receive_alert(self, incoming: IncomingMessage) -> None:
        words = (incoming.message or "").split(" ")
        watch = self.watches.get(incoming.stream_id or "")
        if watch is None or len(words) != 5 or words[:2] != ["load", self.context.run]:
            if watch is None:
                self.stats.error("an alert of another stream")
            return
        sender, number, due = words[2], _number(words[3]), _number(words[4]) / 1_000_000
        if number < 1 or due < 0 or not self._is_service(sender):
            self.stats.error("an alert of this run that no service of it has sent")
            return
        checker = watch.alerts.get(sender)
        if checker is None:
            checker = watch.alerts[sender] = AlertChecker(self.stats.counts)
        if checker.check(number):
            self.stats.time("alert_age").record(self.context.now() - due)

    def _is_service(self, sender: str) -> bool:
        """Whether a service of the run has this name."""
        name, _, number = sender.rpartition("-")
        timeline = self.context.timeline
        return name in timeline.scenario.services and 0 <= _number(number) < timeline.most(name)

    def end_connection(self) -> None:
        # A gap lasts until the phones stop sending, even if no frame ends it.
        now = self.context.now()
        end = min(now, self.context.timeline.end)
        watched = sum(watch.checker is not None for watch in self.watches.values())
        self.context.count_watched(self.name, -watched)
        for watch in self.watches.values():
            checker = watch.checker
            if watch.last_frame_at is not None:
                gap = max(watch.longest_gap, end - watch.last_frame_at)
                self.stats.time("gap").record(gap)
            self.context.observations.add_stream(
                StreamObservation(
                    group=self.name,
                    target=self.target,
                    stream=watch.stream,
                    start=watch.since,
                    end=now,
                    watched=checker is not None,
                    first=checker.first if checker else None,
                    last=checker.last.number if checker and checker.last else None,
                    missed=checker.missed if checker else 0,
                    alerts={sender: each.ranges for sender, each in watch.alerts.items()},
                )
            )
        self.watches.clear()


def _number(words: str) -> int:
    """A whole number as an alert of the load has it; -1 for anything else."""
    is_number = len(words) <= MAX_NUMBER_CHARS and words.isascii() and words.isdecimal()
    return int(words) if is_number else -1
