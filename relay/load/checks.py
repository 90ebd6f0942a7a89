"""The language of thresholds, and whether they are kept. Floor 6.

[group.]figure[.statistic] comparison number[unit] [x wire]

A figure that is a distribution has a statistic (`p99`, `mean`, `max`), a figure that is a count may
be compared with a percentage of what it is a part of. `wire` is the time that a frame of the group
takes on its own bandwidth.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection
from typing import Literal

from attrs import frozen

from relay.load.figures import COUNTS, TIMES, Book
from relay.load.schema import nearest
from relay.load.units import TIMES as TIME_UNITS
from relay.load.units import seconds_in_words

_LINE = re.compile(
    r"\s*(?P<left>[a-z][a-z0-9_.-]*)\s*(?P<comparison><=|>=|==|!=|<|>)\s*"
    r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>us|ms|s|min|m|h|%)?\s*(?P<wire>[x\u00d7*]\s*wire)?\s*"
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
FIRST_WORDS = frozenset(name.split(".")[0] for name in (*COUNTS, *TIMES))
"""With which a figure begins, so that no group can be named like it."""
ENOUGH = 100
"""Values that a distribution must have before it is judged while the run goes on."""
WORDS = "FIGURE < NUMBER, such as frame_age.p99 < 200ms or alerts.lost == 0"

Verdict = Literal["kept", "failed", "unknown"]
Unit = Literal["time", "percent", "wire", "count"]


@frozen
class Check:
    """One line."""

    line: str
    group: str | None
    figure: str
    statistic: str | None
    comparison: str
    number: float
    """Seconds where the figure is a time, a fraction where it is a percentage."""
    unit: Unit

    def measured(self, book: Book) -> float | None:
        """What the figure is now, in the unit of `number`; None if nothing was measured."""
        figures = book.group(self.group) if self.group else book.total()
        if self.statistic is not None:
            value = (
                figures.times[self.figure].statistic(self.statistic)
                if (self.figure in figures.times)
                else None
            )
            if value is None or self.unit != "wire":
                return value
            wire = book.wire_time(self.group, figures)
            return None if wire is None else value / wire
        count = figures.counts[self.figure]
        if self.unit == "percent":
            whole = sum(figures.counts[name] for name in COUNTS[self.figure])
            return count / whole if whole else None
        return float(count)

    def judge(self, book: Book, *, final: bool) -> Verdict:
        """Whether it is kept; while the run goes on only what can no longer change fails."""
        value = self.measured(book)
        if value is None:
            return "failed" if final else "unknown"
        kept = _COMPARE[self.comparison](value, self.number)
        if final or kept:
            return "kept" if kept else "failed"
        return "failed" if self._is_past_mending(book, value) else "unknown"

    def in_words(self, value: float | None) -> str:
        """A measured value as the line would write it."""
        if value is None:
            return "nothing measured"
        match self.unit:
            case "time":
                return seconds_in_words(value)
            case "percent":
                return f"{value * 100:.3g}%"
            case "wire":
                return f"{value:.3g} x wire"
        return f"{value:g}"

    def _is_past_mending(self, book: Book, value: float) -> bool:
        if self.comparison in {">", ">=", "!="}:
            return False
        if self.unit == "count":
            return value > self.number  # counts only grow
        figures = book.group(self.group) if self.group else book.total()
        if self.statistic is not None:
            return figures.times[self.figure].count >= ENOUGH
        return sum(figures.counts[name] for name in COUNTS[self.figure]) >= ENOUGH


@frozen
class Result:
    """A check at the end of a run."""

    line: str
    kept: bool
    measured: str


def judge_all(checks: Collection[Check], book: Book) -> list[Result]:
    return [
        Result(
            check.line,
            check.judge(book, final=True) == "kept",
            check.in_words(check.measured(book)),
        )
        for check in checks
    ]


def parse_check(line: str, groups: Collection[str], *, scripted: bool = False) -> Check:
    """Read a line; `ValueError` says what is wrong with it. A script may have other groups."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"expected {WORDS}, not {line!r}")
    names = found["left"].split(".")
    is_group = names[0] in groups or (scripted and names[0] not in FIRST_WORDS)
    group = names.pop(0) if is_group else None
    statistic = None
    if len(names) > 1 and _STATISTIC.fullmatch(names[-1]):
        statistic = names.pop()
    if not names:
        raise ValueError(f"say what of {group}, as in {group}.frame_age.p99")
    figure = ".".join(names)
    if figure not in COUNTS and figure not in TIMES:
        first, _, rest = figure.partition(".")
        if group is None and (rest in COUNTS or rest in TIMES) and groups:
            raise ValueError(f"there is no group {first!r}{nearest(first, groups)}")
        raise ValueError(
            f"there is no figure or group {figure!r}{nearest(figure, {*COUNTS, *TIMES, *groups})}"
        )
    number, unit = _number(found, figure, statistic, group)
    return Check(
        line=line.strip(),
        group=group,
        figure=figure,
        statistic=statistic,
        comparison=found["comparison"],
        number=number,
        unit=unit,
    )


def _number(
    found: re.Match[str], figure: str, statistic: str | None, group: str | None
) -> tuple[float, Unit]:
    number, unit = float(found["number"]), found["unit"]
    is_time = figure in TIMES
    if is_time and statistic is None:
        raise ValueError(f"{figure} is a distribution: say which, as in {figure}.p99")
    if not is_time and statistic is not None:
        raise ValueError(f"{figure} is a count and has no {statistic}")
    if found["wire"]:
        if not is_time or unit or group is None or statistic == "count":
            raise ValueError("wire goes with a time of one group, as in slow.frame_age.p50")
        return number, "wire"
    if is_time and statistic != "count":
        if unit is None or unit == "%":
            raise ValueError(f"{figure} is a time: give it a unit such as ms")
        return number * TIME_UNITS[unit], "time"
    if unit == "%":
        if is_time or not COUNTS[figure]:
            raise ValueError(f"{figure} is no part of anything: compare it with a number")
        return number / 100, "percent"
    if unit:
        raise ValueError(f"{figure} is a count: compare it with a number without {unit}")
    return number, "count"
