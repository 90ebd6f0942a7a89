"""What a relay of several worker processes says about itself: any of them answers for all.

Counters and histograms of workers add up, and what workers had counted that have ended stays, so no
counter falls. What is about one process has a label for its worker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from attrs import define, frozen
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from relay.hub.ledger import Drop
from relay.model.access.change import Change
from relay.protocol.reports import FrameCounts, ReadyReport, StatsReport, StreamCounts
from relay.web.exposition import Exposition, encode_registry
from relay.web.reports import Reports

TOTALS, FIGURES, READY = "totals", "figures", "ready"
"""What workers ask each other."""
REVOKE, END_CONNECTION = "revoke", "end-connection"
"""What workers have each other do."""
OF_ONE_PROCESS = ("process_", "relay_service_state")
"""How the names of metrics begin that do not add up."""
GREATEST_COUNTS = (
    "relay_alert_dispatch_stalled_seconds",
    "relay_nodes",
    "relay_nodes_unreachable",
)
"""Gauges of which the greatest is that of the machine."""


class CountedSample(msgspec.Struct, frozen=True, array_like=True):
    """One value of a metric."""

    name: str
    labels: dict[str, str]
    value: float


class CountedMetric(msgspec.Struct, frozen=True, array_like=True):
    """A metric with its values."""

    name: str
    about: str
    kind: str
    samples: list[CountedSample]


class ProcessTotals(msgspec.Struct, frozen=True, array_like=True):
    """All that one worker has counted, or several together."""

    stats: StatsReport
    metrics: list[CountedMetric]


@frozen
class WorkerAnswer:
    """What a worker says."""

    slot: int
    content: bytes
    late: bool = False
    """Whether it did not answer in time, and this is what it said before."""


@frozen
class MachineAnswers:
    """What all workers say."""

    answers: Sequence[WorkerAnswer]
    states: Mapping[str, int]
    """How many workers are in each state."""
    ended: bytes | None = None
    """The totals of those that have ended."""


_decode_totals = msgspec.msgpack.Decoder(ProcessTotals).decode
_decode_ready = msgspec.msgpack.Decoder(ReadyReport).decode
_decode_changes = msgspec.msgpack.Decoder(list[Change]).decode
_decode_number = msgspec.msgpack.Decoder(int).decode
_encode = msgspec.msgpack.Encoder().encode


class MachineSilent(Exception):
    """The parent of the workers does not answer. What one worker knows is no answer for all: its
    counters are smaller."""


class AskWorkers(Protocol):
    """Asks all workers of the machine, the one that asks as well; `MachineSilent`."""

    async def __call__(self, what: str, content: bytes = b"", /) -> MachineAnswers: ...


@frozen
class Machine:
    """The reports of all workers, as one of them gathers them."""

    _reports: Reports
    """Those of this worker, like what follows."""
    _exposition: Exposition
    _figures: Callable[[], Awaitable[bytes]]
    _revoke: Callable[[Change], int]
    """Ends the connections that a revocation concerns; returns how many."""
    _end: Callable[[int], bool]
    """Ends a connection by its number; returns whether there is one."""
    _ask: AskWorkers

    async def answer(self, what: str, content: bytes = b"") -> bytes | None:
        """What this worker says or does when one of them asks."""
        if what == REVOKE:
            return _encode(sum(map(self._revoke, _decode_changes(content))))
        if what == END_CONNECTION:
            return _encode(int(self._end(_decode_number(content))))
        if what == TOTALS:
            return self.totals()
        if what == FIGURES:
            return await self._figures()
        if what == READY:
            return _encode(await self._reports.ready())
        return None

    def totals(self) -> bytes:
        """All that this worker has counted."""
        return _encode(ProcessTotals(self._reports.stats(), list(_counted(self._exposition))))

    async def ready(self) -> ReadyReport:
        """That of this worker, or of one that is ready."""
        own = await self._reports.ready()
        if own.ready:
            return own
        with suppress(MachineSilent):
            found = (_decode_ready(each.content) for each in (await self._ask(READY)).answers)
            return next((each for each in found if each.ready), own)
        return own

    async def stats(self) -> StatsReport:
        machine = await self._ask(TOTALS)
        return total(machine).stats

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """As `Exposition.encode` does."""
        machine = await self._ask(TOTALS)
        registry = CollectorRegistry()
        registry.register(_Counted(total(machine).metrics, machine.states))
        return encode_registry(registry, accept)

    async def revoke(self, changes: Sequence[Change]) -> int:
        """End the connections that revocations concern, of all workers; returns how many."""
        return await self._sum(REVOKE, _encode(changes))

    async def end(self, number: int) -> bool:
        """End a connection of any worker by its number; returns whether there is one."""
        return await self._sum(END_CONNECTION, _encode(number)) > 0

    async def _sum(self, what: str, content: bytes) -> int:
        answers = (await self._ask(what, content)).answers
        return sum(_decode_number(each.content) for each in answers)

    async def figures(self) -> bytes:
        """The figures of the streams of all workers, as JSON."""
        streams: list[msgspec.Raw] = []
        nodes: list[msgspec.Raw] = []
        for each in (await self._ask(FIGURES)).answers:
            figures = msgspec.json.decode(each.content, type=_Figures)
            streams += figures.streams
            nodes += figures.nodes
        return msgspec.json.encode(_Figures(streams, nodes))


class _Figures(msgspec.Struct, omit_defaults=True):
    streams: list[msgspec.Raw]
    nodes: list[msgspec.Raw] = []


@define(eq=False)
class _Counted(Collector):
    """The metrics of a machine, for the encoders of prometheus-client."""

    _metrics: Iterable[CountedMetric]
    _states: Mapping[str, int]

    def collect(self) -> Iterator[Metric]:
        for each in self._metrics:
            metric = Metric(each.name, each.about, each.kind)
            metric.samples = [Sample(s.name, s.labels, s.value) for s in each.samples]
            yield metric
        workers = GaugeMetricFamily(
            "relay_workers", "Worker processes, by state", labels=("state",)
        )
        for state, count in self._states.items():
            workers.add_metric((state,), count)
        yield workers


def _counted(exposition: Exposition) -> Iterator[CountedMetric]:
    for metric in exposition.metrics():
        samples = [CountedSample(s.name, dict(s.labels), float(s.value)) for s in metric.samples]
        yield CountedMetric(metric.name, metric.documentation, metric.type, samples)


# -- sums


def total(machine: MachineAnswers) -> ProcessTotals:
    """The totals of a machine. Of who is late, only what never falls counts."""
    parts = []
    slots: set[int] = set()
    for each in machine.answers:
        found = _decode_totals(each.content)
        if each.late:
            parts.append(without_gauges(found))
        else:  # one that drains comes behind the one that took its place
            parts.append(_of_worker(found, None if each.slot in slots else each.slot))
            slots.add(each.slot)
    if machine.ended is not None:
        parts.append(_decode_totals(machine.ended))
    return add_up(parts)


def retire(ended: bytes | None, last: bytes) -> bytes:
    """What workers had counted that have ended, with the last totals of one more."""
    parts = [] if ended is None else [_decode_totals(ended)]
    return _encode(add_up([*parts, without_gauges(_decode_totals(last))]))


def without_gauges(totals: ProcessTotals) -> ProcessTotals:
    """Only what never falls. Frames that waited for consumers have left with the worker."""
    stats, frames = totals.stats, totals.stats.frames_to_consumers
    left = {} if not frames.waiting else {Drop.LEFT.value: frames.waiting}
    return ProcessTotals(
        msgspec.structs.replace(
            stats,
            connections=0,
            authenticated=0,
            unauthenticated=0,
            streams=StreamCounts(),
            frames_to_consumers=FrameCounts(
                frames.accepted, frames.written, _sum_counts([frames.dropped, left]), 0
            ),
        ),
        [
            _with_left(each, frames.waiting)
            for each in totals.metrics
            if each.kind in ("counter", "histogram") and not each.name.startswith(OF_ONE_PROCESS)
        ],
    )


def add_up(parts: Sequence[ProcessTotals]) -> ProcessTotals:
    """The totals of several processes together; there must be at least one."""
    metrics: dict[str, tuple[CountedMetric, dict[Any, CountedSample]]] = {}
    for part in parts:
        for metric in part.metrics:
            _, samples = metrics.setdefault(metric.name, (metric, {}))
            greatest = metric.name in GREATEST_COUNTS
            for sample in metric.samples:
                key = (sample.name, *sample.labels.items())
                before = samples.get(key)
                if before is not None:
                    values = (before.value, sample.value)
                    value = max(values) if greatest else sum(values)
                    sample = CountedSample(sample.name, sample.labels, value)  # noqa: PLW2901
                samples[key] = sample
    return ProcessTotals(
        _sum_stats([part.stats for part in parts]),
        [
            CountedMetric(metric.name, metric.about, metric.kind, list(samples.values()))
            for metric, samples in metrics.values()
        ],
    )


def _of_worker(totals: ProcessTotals, slot: int | None) -> ProcessTotals:
    """The same, with a label for the worker where a metric is about its process; None leaves these
    metrics out."""
    worker = {"worker": str(slot)}
    return ProcessTotals(
        totals.stats,
        [
            CountedMetric(
                metric.name,
                metric.about,
                metric.kind,
                [CountedSample(s.name, s.labels | worker, s.value) for s in metric.samples],
            )
            if metric.name.startswith(OF_ONE_PROCESS)
            else metric
            for metric in totals.metrics
            if slot is not None or not metric.name.startswith(OF_ONE_PROCESS)
        ],
    )


def _with_left(metric: CountedMetric, waiting: int) -> CountedMetric:
    if metric.name != "relay_frames_dropped" or not waiting:
        return metric
    return CountedMetric(
        metric.name,
        metric.about,
        metric.kind,
        [
            CountedSample(s.name, s.labels, s.value + waiting)
            if s.labels.get("reason") == Drop.LEFT.value
            else s
            for s in metric.samples
        ],
    )


def _sum_stats(parts: Sequence[StatsReport]) -> StatsReport:
    fields: dict[str, Any] = {}
    for name in StatsReport.__struct_fields__:
        values = [getattr(part, name) for part in parts]
        first = values[0]
        if isinstance(first, dict):
            fields[name] = _sum_counts(values)
        elif isinstance(first, int):
            fields[name] = sum(values)
        elif isinstance(first, StreamCounts):
            fields[name] = StreamCounts(
                sum(each.online for each in values),
                sum(each.streaming for each in values),
                sum(each.consumers for each in values),
            )
        elif isinstance(first, FrameCounts):
            fields[name] = FrameCounts(
                sum(each.accepted for each in values),
                sum(each.written for each in values),
                _sum_counts([each.dropped for each in values]),
                sum(each.waiting for each in values),
            )
        else:  # a text, which is the same everywhere
            fields[name] = first
    return StatsReport(**fields)


def _sum_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            found[name] = found.get(name, 0) + count
    return found
