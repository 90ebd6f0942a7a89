"""What a run gives to monitoring systems each second. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from attrs import define, field, frozen

from relay.load.measures.results import GroupSecond, Second

JOB = "relay-load"


@frozen
class Metric:
    name: str
    """After `relay_load`."""
    unit: str
    """As OpenTelemetry writes it (UCUM)."""
    suffix: str
    """Of the name in Prometheus."""
    is_counter: bool = False
    """Whether it only grows, from 0 at the start of the run."""


FRAMES = Metric("frames", "{frame}", "_total", is_counter=True)
BYTES_OF_FRAMES = Metric("frame_bytes", "By", "_total", is_counter=True)
CLOSES = Metric("closes", "{connection}", "_total", is_counter=True)
ERRORS = Metric("errors", "{error}", "_total", is_counter=True)
CONNECTIONS = Metric("connections", "{connection}", "")
FRAME_AGE = Metric("frame_age", "s", "_seconds")
LATENESS = Metric("lateness", "s", "_seconds")
GENERATOR_BUSY = Metric("generator_busy", "1", "_ratio")
GC_PAUSE = Metric("generator_gc_pause", "s", "_seconds")
TARGET_CPU = Metric("target_cpu", "{core}", "_cores")
TARGET_MEMORY = Metric("target_memory", "By", "_bytes")
QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99", "max": "1"}

Labels = tuple[tuple[str, str], ...]


@frozen
class MetricSample:
    metric: Metric
    labels: Labels
    value: float


@define(eq=False)
class MetricTotals:
    """Turns seconds into samples."""

    _totals: Counter[tuple[Metric, Labels]] = field(factory=Counter)

    def add(self, second: Second) -> list[MetricSample]:
        """All samples at the end of a second."""
        gauges = list(_gauges(second))
        for name, group in second.groups.items():
            for metric, labels, count in _counts(name, group):
                self._totals[metric, labels] += count
        counters = [MetricSample(*each, value) for each, value in self._totals.items()]
        return [*counters, *gauges]


def _counts(name: str, group: GroupSecond) -> Iterator[tuple[Metric, Labels, int]]:
    labels = (("group", name),)
    for outcome in ("sent", "received", "missed"):
        yield FRAMES, (*labels, ("outcome", outcome)), getattr(group, outcome)
    yield BYTES_OF_FRAMES, labels, group.bytes_in
    yield CLOSES, labels, group.closes
    yield ERRORS, labels, group.errors


def _gauges(second: Second) -> Iterator[MetricSample]:
    for name, group in second.groups.items():
        yield MetricSample(CONNECTIONS, (("group", name),), group.connected)
        for statistic, age in group.age.items():
            labels = (("group", name), ("quantile", QUANTILES[statistic]))
            yield MetricSample(FRAME_AGE, labels, age)
    yield MetricSample(LATENESS, (("quantile", QUANTILES["p99"]),), second.lateness)
    yield MetricSample(GENERATOR_BUSY, (), second.generator.busy)
    yield MetricSample(GC_PAUSE, (), second.generator.gc_pause)
    for name, each in second.generators.items():
        which = (("generator", name),)
        yield MetricSample(GENERATOR_BUSY, which, each.busy)
        yield MetricSample(GC_PAUSE, which, each.gc_pause)
    if second.cpu is not None:
        yield MetricSample(TARGET_CPU, (), second.cpu)
    if second.memory is not None:
        yield MetricSample(TARGET_MEMORY, (), second.memory)
