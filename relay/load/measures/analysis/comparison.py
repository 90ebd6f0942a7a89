"""Judges a run against one before it. No I/O.

For each group: the age of frames (p50 and p99) and the share of frames that were missed; for the
relay, the CPU time per frame that viewers received.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from attrs import frozen

from relay.errors import RelayError
from relay.load.measures.analysis.noise import (
    MIN_COMPARED_SECONDS,
    UNKNOWN,
    Judgement,
    PairedBlocks,
    paired_percentiles,
    paired_quotients,
)
from relay.load.measures.histogram import HdrHistogram
from relay.load.measures.results import Comparison, FigureChange, GroupSecond, RunResult, Second

MIN_SHARE_CHANGE = 0.001
"""A smaller change of the share of missed frames does not matter."""
AGE_PERCENTILES = {"frame_age.p50": 50.0, "frame_age.p99": 99.0}
MISSED = "missed"
CPU_PER_FRAME = "CPU per frame"
RELAY = "relay"
"""Stands for all targets, in place of a group."""
MICROSECONDS = 1e-6


class IncomparableRuns(RelayError):
    """Two runs that say nothing about each other."""


@frozen
class RecordedRun:
    """A run, and where it was read."""

    name: str
    result: RunResult
    seconds: Sequence[Second]

    @property
    def whole_seconds(self) -> list[Second]:
        """Without the last, which is shorter."""
        return [each for each in self.seconds if each.at == int(each.at)]


def check_ages(run: RecordedRun) -> None:
    """Check that its histograms can be read; `IncomparableRuns`."""
    for second in run.seconds:
        for name, group in second.groups.items():
            try:
                if group.ages:
                    HdrHistogram.decode(group.ages)
            except ValueError as problem:
                words = f"{run.name}: the frame ages of {name} at {second.at:g} s: {problem}"
                raise IncomparableRuns(words) from None


def check_baseline(run: RecordedRun) -> None:
    """Check that other runs can be judged against this one; `IncomparableRuns`."""
    check_ages(run)
    if run.seconds and not any(each.groups for each in run.seconds):
        raise IncomparableRuns(
            f"{run.name} has no figures of its groups by second: an older relay wrote it"
        )
    if (count := len(run.whole_seconds)) < MIN_COMPARED_SECONDS:
        raise IncomparableRuns(
            f"{run.name} has {count} whole seconds; at least {MIN_COMPARED_SECONDS} are needed"
        )


def check_same_load(before: RecordedRun, scenario: str, load: str) -> None:
    """Check that a run is of this scenario; `IncomparableRuns`. `load` is the scenario's digest."""
    if before.result.scenario != scenario:
        raise IncomparableRuns(
            f"{before.name} is of another scenario: {before.result.scenario}, not {scenario}"
        )
    if before.result.load and load and before.result.load != load:
        raise IncomparableRuns(
            f"{before.name} is of another version of {scenario}, with other groups or stages"
        )


def compare_runs(before: RecordedRun, after: RecordedRun, tolerance: float) -> Comparison:
    """Judge each figure. A change up to `tolerance`, as a part of the figure, does not matter."""
    pairs = list(zip(before.whole_seconds, after.whole_seconds, strict=False))
    figures = list(_figures(pairs))
    judged = sum(each.is_enough for each in figures)
    changes = [each.judged(tolerance, judged) for each in figures]
    machines = (before.result.machine, after.result.machine)
    return Comparison(
        baseline=before.name,
        tolerance=tolerance,
        seconds=len(pairs),
        changes=changes,
        machines=list(machines) if machines[0] != machines[1] else [],
    )


@frozen(kw_only=True)
class PairedFigure:
    """A figure of both runs, in the seconds in which both have it."""

    group: str
    figure: str
    seconds: int
    unit: float
    """What the figure is to be multiplied by."""
    blocks: PairedBlocks | None

    @property
    def is_enough(self) -> bool:
        return self.blocks is not None and self.seconds >= MIN_COMPARED_SECONDS

    def judged(self, tolerance: float, figures: int) -> FigureChange:
        blocks = self.blocks
        if blocks is None:
            return self._change(UNKNOWN, None, None)
        before = blocks.measure(range(blocks.number)) * self.unit
        after = blocks.measure(range(blocks.number, 2 * blocks.number)) * self.unit
        if not self.is_enough:
            return self._change(UNKNOWN, before, after)
        if blocks.is_ratio:
            judgement = blocks.judge(math.log1p(tolerance), figures=figures)
        else:
            judgement = blocks.judge(max(MIN_SHARE_CHANGE, tolerance * before), figures=figures)
        return self._change(judgement, before, after)

    def _change(
        self, judgement: Judgement, before: float | None, after: float | None
    ) -> FigureChange:
        is_ratio = self.blocks is None or self.blocks.is_ratio
        low, high = (
            math.expm1(each) if is_ratio and each is not None else each
            for each in (judgement.low, judgement.high)
        )
        return FigureChange(
            group=self.group, figure=self.figure, before=before, after=after, low=low, high=high,
            is_ratio=is_ratio, seconds=self.seconds, verdict=judgement.verdict,
        )  # fmt: skip


Pairs = Sequence[tuple[Second, Second]]


def _figures(pairs: Pairs) -> Iterator[PairedFigure]:
    names = dict.fromkeys(name for pair in pairs for each in pair for name in each.groups)
    for name in names:
        groups = [
            (before.groups[name], after.groups[name])
            for before, after in pairs
            if name in before.groups and name in after.groups
        ]
        yield from _ages(name, groups)
        yield from _missed(name, groups)
    yield from _cpu(pairs)


GroupPairs = Sequence[tuple[GroupSecond, GroupSecond]]


def _ages(name: str, groups: GroupPairs) -> Iterator[PairedFigure]:
    both = [(old.ages, new.ages) for old, new in groups if old.ages and new.ages]
    if not both:
        return
    before, after = ([HdrHistogram.decode(pair[run]) for pair in both] for run in (0, 1))
    for figure, percent in AGE_PERCENTILES.items():
        yield PairedFigure(
            group=name, figure=figure, seconds=len(both), unit=MICROSECONDS,
            blocks=paired_percentiles(before, after, percent),
        )  # fmt: skip


def _missed(name: str, groups: GroupPairs) -> Iterator[PairedFigure]:
    both = [
        ((old.missed, old.received + old.missed), (new.missed, new.received + new.missed))
        for old, new in groups
        if old.received + old.missed or new.received + new.missed
    ]
    if both:
        before, after = zip(*both, strict=True)
        blocks = paired_quotients(before, after, is_ratio=False)
        yield PairedFigure(group=name, figure=MISSED, seconds=len(both), unit=1.0, blocks=blocks)


def _cpu(pairs: Pairs) -> Iterator[PairedFigure]:
    both = [
        ((old.cpu, old.received), (new.cpu, new.received))
        for old, new in pairs
        if old.cpu is not None and new.cpu is not None and old.received and new.received
    ]
    if both:
        before, after = zip(*both, strict=True)
        blocks = paired_quotients(before, after, is_ratio=True)
        yield PairedFigure(
            group=RELAY, figure=CPU_PER_FRAME, seconds=len(both), unit=1.0, blocks=blocks
        )
