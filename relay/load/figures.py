"""What actors count and measure, in a form that can be added up exactly. Floor 6.

Times are HdrHistograms: those of several processes are merged value by value, and a percentile is
only ever taken of the merged one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import define, field, frozen

from relay.load.histogram import HdrHistogram

MICROSECONDS = 1_000_000

COUNTS: Mapping[str, tuple[str, ...]] = {
    "sent": ("sent", "withheld"),
    "withheld": ("sent", "withheld"),
    "received": ("received", "missed", "lost"),
    "missed": ("received", "missed", "lost"),
    "lost": ("received", "missed", "lost"),
    "torn": ("received",),
    "doubled": ("received",),
    "disordered": ("received",),
    "foreign": ("received",),
    "unserved": (),
    "connect.done": ("connect.done", "connect.failed"),
    "connect.failed": ("connect.done", "connect.failed"),
    "auth.done": ("auth.done", "auth.failed"),
    "auth.failed": ("auth.done", "auth.failed"),
    "reconnects": (),
    "closes": (),
    "closes.unexpected": ("closes",),
    "closes.unannounced": ("closes",),
    "alerts.sent": (),
    "alerts.accepted": ("alerts.sent",),
    "alerts.failed": ("alerts.sent",),
    "alerts.received": ("alerts.received", "alerts.lost"),
    "alerts.lost": ("alerts.received", "alerts.lost"),
    "alerts.doubled": ("alerts.received", "alerts.lost"),
    "alerts.disordered": ("alerts.received", "alerts.lost"),
    "errors": (),
    "scripts.done": ("scripts.done", "scripts.failed"),
    "scripts.failed": ("scripts.done", "scripts.failed"),
    "ledger.wrong": (),
    "bytes.in": (),
    "bytes.out": (),
    "frames.bytes": (),
}
"""Each count, with those that make up the whole of which it may be a percentage."""

TIMES = {
    "frame_age": "from a frame's intended send time to the viewer",
    "alert_age": "from an alert's intended send time to whoever gets it",
    "ack_time": "from an alert's intended send time to its acknowledgement",
    "connect_time": "from the intended time of connecting to being authenticated",
    "first_frame": "from subscribing to the first frame",
    "gap": "the longest that a viewer went without a frame of a stream, once it had begun",
    "lateness": "of the generator itself",
}
LONGEST = 300
"""Characters of an error."""
KINDS_OF_ERRORS = 200
"""So many different errors are told apart."""


def plain(words: str) -> str:
    """Words that a server chose, as one line without what a terminal would obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in words).split())[
        :LONGEST
    ]


@define(eq=False)
class Times:
    """A distribution of times."""

    histogram: HdrHistogram = field(factory=HdrHistogram)
    """Of microseconds."""

    def record(self, seconds: float) -> None:
        self.histogram.record(max(0, int(seconds * MICROSECONDS)))

    @property
    def count(self) -> int:
        return self.histogram.total

    def statistic(self, name: str) -> float | None:
        """`p0` to `p99`, `p999` being 99.9 %, `mean`, `min`, `max`, in seconds; or `count`."""
        if not self.count:
            return None
        match name:
            case "count":
                return float(self.count)
            case "mean":
                return self.histogram.mean() / MICROSECONDS
            case "min":
                return self.histogram.lowest() / MICROSECONDS
            case "max":
                return self.percentile(100)
        return self.percentile(float(f"{name[1:3]}.{name[3:] or 0}"))

    def percentile(self, percent: float) -> float:
        return self.histogram.value_at(percent) / MICROSECONDS

    def buckets(self) -> list[tuple[float, int]]:
        """The values that were recorded, in seconds, and how often."""
        return [(max(value, 1) / MICROSECONDS, count) for value, count in self.histogram]

    def encode(self) -> str:
        return self.histogram.encode()

    def add_encoded(self, encoded: str) -> None:
        self.histogram.add(HdrHistogram.decode(encoded))

    def add(self, other: Times) -> None:
        self.histogram.add(other.histogram)


@frozen
class Part:
    """What a group did since the last one was taken; goes from process to process."""

    counts: dict[str, int]
    errors: dict[str, int]
    times: dict[str, str]
    connected: int


@define(eq=False)
class Figures:
    """The figures of one group."""

    counts: Counter[str] = field(factory=Counter)
    errors: Counter[str] = field(factory=Counter)
    """How often, by what was said."""
    times: dict[str, Times] = field(factory=dict)
    connected: int = 0

    def time(self, name: str) -> Times:
        found = self.times.get(name)
        if found is None:
            found = self.times[name] = Times()
        return found

    def error(self, words: str, number: int = 1) -> None:
        words = plain(words)
        if words not in self.errors and len(self.errors) >= KINDS_OF_ERRORS:
            words = "others"
        self.errors[words] += number

    def take(self) -> Part:
        """What there is so far, of which nothing stays but who is connected."""
        part = Part(
            dict(self.counts),
            dict(self.errors),
            {name: times.encode() for name, times in self.times.items()},
            self.connected,
        )
        self.counts.clear()
        self.errors.clear()
        self.times.clear()
        return part

    def add_part(self, part: Part) -> None:
        self.counts.update(part.counts)
        for words, number in part.errors.items():
            self.error(words, number)
        for name, encoded in part.times.items():
            self.time(name).add_encoded(encoded)

    def add(self, other: Figures) -> None:
        self.counts.update(other.counts)
        self.errors.update(other.errors)
        for name, times in other.times.items():
            self.time(name).add(times)
        self.connected += other.connected


@frozen
class Wire:
    """What a group's network lets through, by which a frame's time on the wire is known."""

    bandwidth: float | None = None
    """Bits per second."""
    delay: float = 0.0


@define(eq=False)
class Book:
    """The figures of all groups."""

    wires: Mapping[str, Wire] = field(factory=dict)
    groups: dict[str, Figures] = field(factory=dict)

    def group(self, name: str) -> Figures:
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = Figures()
        return found

    def total(self) -> Figures:
        total = Figures()
        for figures in self.groups.values():
            total.add(figures)
        return total

    def wire_time(self, name: str | None, figures: Figures) -> float | None:
        """Seconds that a frame of the mean size takes on this group's network."""
        wire = self.wires.get(name or "", Wire())
        received = figures.counts["received"]
        if wire.bandwidth is None or not received:
            return None
        return figures.counts["frames.bytes"] / received * 8 / wire.bandwidth + wire.delay
