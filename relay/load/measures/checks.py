"""The checks of a scenario: thresholds for its figures. No I/O.

[group.]figure[.statistic] comparison number[unit] [x wire] [during stage]

A figure that is a distribution of times needs a statistic (`p99`, `mean`, `max`). A figure that is
a count may be compared with a percentage of the counts that it is a part of. A rate is compared
with a number. `wire` is the time that a frame of the group takes on the group's bandwidth. `during`
limits a time, a rate or a layer to what arrived in a stage.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from attrs import frozen

from relay.load.measures.stats import (
    COUNTS,
    LAYER_PREFIX,
    RATES,
    TIMES,
    GroupStats,
    RunStats,
    is_count,
    whole_of,
)
from relay.load.suggestions import suggestion
from relay.load.units import TIME_UNITS, seconds_in_words

_THRESHOLD = re.compile(
    r"\s*(?P<left>[a-z][A-Za-z0-9_.-]*)\s*(?P<comparison><=|>=|==|!=|<|>)\s*"
    r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>us|ms|s|min|m|h|%)?\s*(?P<wire>[x\u00d7*]\s*wire)?\s*"
    r"(?:\bduring\s+(?P<stage>\S.*?)\s*)?"
)
_STATISTIC = re.compile(r"p[0-9]{1,2}|p999|mean|max|min|count")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
FIGURE_PREFIXES = frozenset(name.split(".")[0] for name in (*COUNTS, *TIMES, *RATES, LAYER_PREFIX))
"""First words of figures; a group must not have one of these names."""
MIN_VALUES = 100
"""Values that a distribution needs before a check of it can fail during the run."""
SYNTAX = "FIGURE < NUMBER, such as frame_age.p99 < 200ms or alerts.lost == 0"

Evaluation = Literal["kept", "failed", "unknown"]
Unit = Literal["time", "percent", "wire", "count", "rate"]


@frozen
class Threshold:
    """One line of `check`."""

    line: str
    group: str | None
    figure: str
    statistic: str | None
    comparison: str
    number: float
    """Seconds for a time, a fraction for a percentage."""
    unit: Unit
    stage: str | None = None
    """The stage that it is about; None for the whole run."""

    def measured(self, run_stats: RunStats) -> float | None:
        """The figure's current value, in the unit of `number`; None if nothing was measured."""
        run_stats = self._of_stage(run_stats)
        stats = run_stats.group(self.group) if self.group else run_stats.total()
        if self.statistic is not None:
            value = (
                stats.times[self.figure].statistic(self.statistic)
                if (self.figure in stats.times)
                else None
            )
            if value is None or self.unit != "wire":
                return value
            wire = run_stats.wire_time(self.group, stats)
            return None if wire is None else value / wire
        if self.unit == "rate":
            return stats.rate(self.figure)
        count = stats.counts[self.figure]
        if self.unit == "percent":
            whole = self._whole(stats)
            return count / whole if whole else None
        return float(count)

    def evaluate(self, run_stats: RunStats, *, final: bool) -> Evaluation:
        """Whether the check passes. During the run it fails only if it can no longer pass."""
        value = self.measured(run_stats)
        if value is None:
            return "failed" if final else "unknown"
        kept = _COMPARE[self.comparison](value, self.number)
        if final or kept:
            return "kept" if kept else "failed"
        return "failed" if self._cannot_recover(run_stats, value) else "unknown"

    def in_words(self, value: float | None) -> str:
        """A measured value, written as in the line."""
        if value is None:
            return "nothing measured"
        match self.unit:
            case "time":
                return seconds_in_words(value)
            case "percent":
                return f"{value * 100:.3g}%"
            case "wire":
                return f"{value:.3g} x wire"
            case "rate":
                return f"{value:.3g}"
        return f"{value:g}"

    def _of_stage(self, run_stats: RunStats) -> RunStats:
        return run_stats if self.stage is None else run_stats.stages[self.stage]

    def _cannot_recover(self, run_stats: RunStats, value: float) -> bool:
        if self.comparison in {">", ">=", "!="} or self.unit == "rate":
            return False
        if self.unit == "count":
            return value > self.number  # counts only grow
        run_stats = self._of_stage(run_stats)
        stats = run_stats.group(self.group) if self.group else run_stats.total()
        if self.statistic is not None:
            return stats.times[self.figure].count >= MIN_VALUES
        return self._whole(stats) >= MIN_VALUES

    def _whole(self, stats: GroupStats) -> int:
        return sum(stats.counts[name] for name in whole_of(self.figure))


@frozen
class CheckResult:
    """The result of a check at the end of a run."""

    line: str
    kept: bool
    measured: str


def evaluate_all(checks: Collection[Threshold], run_stats: RunStats) -> list[CheckResult]:
    return [
        CheckResult(
            check.line,
            check.evaluate(run_stats, final=True) == "kept",
            check.in_words(check.measured(run_stats)),
        )
        for check in checks
    ]


def parse_threshold(
    line: str,
    groups: Collection[str],
    *,
    scripted: bool = False,
    stages: Sequence[str] = (),
) -> Threshold:
    """Read a line; `ValueError` says what is wrong.

    With a script, groups other than `groups` may exist.
    """
    found = _THRESHOLD.fullmatch(line)
    if found is None:
        raise ValueError(f"expected {SYNTAX}, not {line!r}")
    names = found["left"].split(".")
    is_group = names[0] in groups or (scripted and names[0] not in FIGURE_PREFIXES)
    group = names.pop(0) if is_group else None
    statistic = None
    is_layer = f"{'.'.join(names)}.".startswith(LAYER_PREFIX)  # its id may be a statistic's name
    if len(names) > 1 and _STATISTIC.fullmatch(names[-1]) and not is_layer:
        statistic = names.pop()
    if not names:
        raise ValueError(f"name a figure of {group}, as in {group}.frame_age.p99")
    figure = ".".join(names)
    if not _is_figure(figure):
        raise ValueError(_no_figure(figure, group, groups))
    number, unit = _number(found, figure, statistic, group)
    if found["stage"] is not None:
        _check_stage(found["stage"], figure, stages)
    return Threshold(
        line=line.strip(),
        group=group,
        figure=figure,
        statistic=statistic,
        comparison=found["comparison"],
        number=number,
        unit=unit,
        stage=found["stage"],
    )


def _is_figure(name: str) -> bool:
    return name in TIMES or name in RATES or is_count(name)


def _no_figure(figure: str, group: str | None, groups: Collection[str]) -> str:
    if f"{figure}." == LAYER_PREFIX:
        return f"{figure} needs the id of a layer, as in {LAYER_PREFIX}m >= 50%"
    first, _, rest = figure.partition(".")
    if group is None and _is_figure(rest) and groups:
        return f"there is no group {first!r}{suggestion(first, groups)}"
    hint = suggestion(figure, {*COUNTS, *TIMES, *RATES, *groups})
    return f"there is no figure or group {figure!r}{hint}"


def _check_stage(stage: str, figure: str, stages: Sequence[str]) -> None:
    if stage not in stages:
        raise ValueError(f"there is no stage {stage!r}{suggestion(stage, stages)}")
    if stages.count(stage) > 1:
        raise ValueError(f"more than one stage is named {stage!r}")
    of_stages = figure in TIMES or figure in RATES or figure.startswith(LAYER_PREFIX)
    if not of_stages or figure == "gap":
        raise ValueError(
            f"{figure} is of the whole run: during needs another time, such as frame_age.p50,"
            " a rate or a layer"
        )


def _check_statistic(figure: str, statistic: str | None) -> None:
    if figure in TIMES:
        if statistic is None:
            raise ValueError(f"{figure} is a distribution: choose a statistic, as in {figure}.p99")
    elif statistic is not None:
        kind = "rate" if figure in RATES else "count"
        raise ValueError(f"{figure} is a {kind} and has no {statistic}")


def _number(
    found: re.Match[str], figure: str, statistic: str | None, group: str | None
) -> tuple[float, Unit]:
    number, unit = float(found["number"]), found["unit"]
    is_time = figure in TIMES
    _check_statistic(figure, statistic)
    if found["wire"]:
        if not is_time or unit or group is None or statistic == "count":
            raise ValueError("wire needs a time of one group, as in slow.frame_age.p50")
        return number, "wire"
    if is_time and statistic != "count":
        if unit is None or unit == "%":
            raise ValueError(f"{figure} is a time: give it a unit such as ms")
        return number * TIME_UNITS[unit], "time"
    if unit == "%" and figure not in RATES:
        if is_time or not whole_of(figure):
            raise ValueError(f"{figure} is not a part of anything: compare it with a number")
        return number / 100, "percent"
    kind: Unit = "rate" if figure in RATES else "count"
    if unit:
        raise ValueError(f"{figure} is a {kind}: compare it with a number without {unit}")
    return number, kind
