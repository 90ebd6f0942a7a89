"""What actors count and measure, in a form that can be merged without loss. No I/O.

Times are HdrHistograms: histograms of several processes are merged value by value, and percentiles
are taken of the merged one only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import define, field, frozen

from relay.load.measures.histogram import HdrHistogram
from relay.load.measures.watch_time import WATCHED

MICROSECONDS_PER_SECOND = 1_000_000

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
    "mislabeled": ("received",),
    "undecodable": ("received",),
    "misnumbered": ("received",),
    "skipped": ("received", "skipped"),
    "unserved": (),
    "pictures": ("received",),
    "switches": ("pictures",),
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
    "attacks": (),
    "ledger.wrong": (),
    "bytes.in": (),
    "bytes.out": (),
    "frames.bytes": (),
}
"""Each count, with the counts whose sum is 100 % if it is given as a percentage."""

LAYER_PREFIX = "layer."
"""Of the counts of pictures by layer; a layer's id follows."""

ENDING_PREFIX = "ended."
"""Of the counts of how attacks of hostile clients ended; a code or a few words follow."""
MAX_ENDINGS = 40
"""Different endings of one group; the rest are counted as others."""
OTHER_ENDINGS = f"{ENDING_PREFIX}otherwise"

RATES = {
    "pictures_per_second": ("pictures", 1.0),
    "switches_per_minute": ("switches", 60.0),
}
"""Each rate, with the count that it is of and its seconds. It is the mean over all streams that are
watched, once for each viewer."""

TIMES = {
    "frame_age": "from a frame's intended send time to the viewer",
    "alert_age": "from an alert's intended send time to the client that receives it",
    "ack_time": "from an alert's intended send time to its acknowledgement",
    "connect_time": "from the intended connection time to being authenticated",
    "first_frame": "from subscribing to the first frame",
    "gap": "the longest time that a viewer received no frame of a stream, after its first",
    "lateness": "how late the generator itself was",
    "background_lateness": "how late its process for groups in the background was",
}
MAX_ERROR_LENGTH = 300
"""Characters of an error message that are kept."""
MAX_ERROR_KINDS = 200
"""Different error messages of one group; the rest are counted as others."""


def plain(words: str) -> str:
    """A server's text as one line, without control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in words).split())[
        :MAX_ERROR_LENGTH
    ]


def is_count(figure: str) -> bool:
    """Whether a figure is a count."""
    return figure in COUNTS or (figure.startswith(LAYER_PREFIX) and figure != LAYER_PREFIX)


def endings_of(counts: Mapping[str, int]) -> dict[str, int]:
    """How attacks ended, the most frequent first."""
    found = {
        name.removeprefix(ENDING_PREFIX): number
        for name, number in counts.items()
        if name.startswith(ENDING_PREFIX) and number
    }
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def whole_of(count: str) -> tuple[str, ...]:
    """The counts whose sum is 100 % of a count."""
    return ("pictures",) if count.startswith(LAYER_PREFIX) else COUNTS[count]


def layer_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """The pictures of each layer, by its id."""
    return {
        name.removeprefix(LAYER_PREFIX): number
        for name, number in counts.items()
        if name.startswith(LAYER_PREFIX) and number
    }


@define(eq=False)
class TimeDistribution:
    """A distribution of times, given and returned in seconds."""

    histogram: HdrHistogram = field(factory=HdrHistogram)
    """In microseconds."""

    def record(self, seconds: float) -> None:
        self.histogram.record(max(0, int(seconds * MICROSECONDS_PER_SECOND)))

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
                return self.histogram.mean() / MICROSECONDS_PER_SECOND
            case "min":
                return self.histogram.lowest() / MICROSECONDS_PER_SECOND
            case "max":
                return self.percentile(100)
        return self.percentile(float(f"{name[1:3]}.{name[3:] or 0}"))

    def percentile(self, percent: float) -> float:
        return self.histogram.value_at(percent) / MICROSECONDS_PER_SECOND

    def buckets(self) -> list[tuple[float, int]]:
        """The recorded values and their counts."""
        return [(max(value, 1) / MICROSECONDS_PER_SECOND, count) for value, count in self.histogram]

    def encode(self) -> str:
        return self.histogram.encode()

    def add_encoded(self, encoded: str) -> None:
        self.histogram.add(HdrHistogram.decode(encoded))

    def add(self, other: TimeDistribution) -> None:
        self.histogram.add(other.histogram)


@frozen
class StatsDelta:
    """What a group did since the last delta. It goes from process to process as JSON."""

    counts: dict[str, int]
    errors: dict[str, int]
    times: dict[str, str]
    connected: int


DeltasByTarget = Mapping[str, Mapping[str, StatsDelta]]
"""By group, and then by the target that its actors used; "" for what has none, or the only one."""


@define(eq=False)
class GroupStats:
    """The counts, errors and times of one group."""

    counts: Counter[str] = field(factory=Counter)
    errors: Counter[str] = field(factory=Counter)
    """Counts by error message."""
    times: dict[str, TimeDistribution] = field(factory=dict)
    connected: int = 0

    def time(self, name: str) -> TimeDistribution:
        found = self.times.get(name)
        if found is None:
            found = self.times[name] = TimeDistribution()
        return found

    def rate(self, name: str) -> float | None:
        """One of `RATES`; None if nobody watched."""
        count, seconds = RATES[name]
        watched = self.counts[WATCHED] / 1000
        return self.counts[count] / watched * seconds if watched else None

    def error(self, words: str, number: int = 1) -> None:
        words = plain(words)
        if words not in self.errors and len(self.errors) >= MAX_ERROR_KINDS:
            words = "others"
        self.errors[words] += number

    def note_ending(self, words: str) -> None:
        """Count how an attack ended."""
        name = ENDING_PREFIX + plain(words)
        known = sum(each.startswith(ENDING_PREFIX) for each in self.counts)
        if name not in self.counts and known >= MAX_ENDINGS:
            name = OTHER_ENDINGS
        self.counts[name] += 1

    def drain(self) -> StatsDelta:
        """Return everything and forget it, except the number of connections."""
        delta = StatsDelta(
            dict(self.counts),
            dict(self.errors),
            {name: times.encode() for name, times in self.times.items()},
            self.connected,
        )
        self.counts.clear()
        self.errors.clear()
        self.times.clear()
        return delta

    def add_delta(self, delta: StatsDelta) -> None:
        self.counts.update(delta.counts)
        for words, number in delta.errors.items():
            self.error(words, number)
        for name, encoded in delta.times.items():
            self.time(name).add_encoded(encoded)

    def add(self, other: GroupStats) -> None:
        self.counts.update(other.counts)
        self.errors.update(other.errors)
        for name, times in other.times.items():
            self.time(name).add(times)
        self.connected += other.connected


@frozen
class LinkCapacity:
    """The capacity of a group's network."""

    bandwidth: float | None = None
    """Bits per second."""
    delay: float = 0.0
    """Seconds."""


@define(eq=False)
class RunStats:
    """The statistics of all groups."""

    links: Mapping[str, LinkCapacity] = field(factory=dict)
    groups: dict[str, GroupStats] = field(factory=dict)
    stages: Mapping[str, RunStats] = field(factory=dict)
    """What was measured during each stage, by its name."""
    targets: dict[str, GroupStats] = field(factory=dict)
    """The same as in `groups`, by target, where there are several."""

    def group(self, name: str) -> GroupStats:
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = GroupStats()
        return found

    def target(self, name: str) -> GroupStats:
        found = self.targets.get(name)
        if found is None:
            found = self.targets[name] = GroupStats()
        return found

    def add(self, deltas: DeltasByTarget, stage: str = "") -> None:
        """Add what a process saw during a stage."""
        for name, of_group in deltas.items():
            for target, delta in of_group.items():
                self.group(name).add_delta(delta)
                if target:
                    self.target(target).add_delta(delta)
        if stage in self.stages:
            self.stages[stage].add(deltas)

    def total(self) -> GroupStats:
        total = GroupStats()
        for stats in self.groups.values():
            total.add(stats)
        return total

    def wire_time(self, name: str | None, stats: GroupStats) -> float | None:
        """Seconds that a frame of mean size takes on the group's network; None without limit."""
        link = self.links.get(name or "", LinkCapacity())
        received = stats.counts["received"]
        if link.bandwidth is None or not received:
            return None
        return stats.counts["frames.bytes"] / received * 8 / link.bandwidth + link.delay
