"""A comparison of two runs, in words. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from relay.load.measures.analysis.comparison import MISSED
from relay.load.measures.results import Comparison, FigureChange
from relay.load.units import seconds_in_words

CHANGE_COLUMNS = ("before", "after", "change", "95% confidence", "")


def change_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """A row for each figure, with its name before `CHANGE_COLUMNS`."""
    for each in comparison.changes:
        before, after = value_in_words(each, each.before), value_in_words(each, each.after)
        yield (each.name, before, after, _change(each), _range(each), _verdict(each))


def in_one_line(each: FigureChange) -> str:
    before, after = value_in_words(each, each.before), value_in_words(each, each.after)
    words = f"{each.name}: {before} before, {after} now"
    return f"{words} ({_range(each)})" if _range(each) else f"{words} ({_verdict(each)})"


def notes(comparison: Comparison) -> Iterator[str]:
    """What else is to be known, and the outcome."""
    if comparison.machines:
        yield f"the machines differ: {'; '.join(comparison.machines)}"
    worse = comparison.with_verdict("worse")
    unknown = comparison.with_verdict("cannot tell")
    if worse:
        yield f"worse by more than {comparison.tolerance:.0%}: {_names(worse)}"
    if unknown:
        yield f"cannot tell: {_names(unknown)}"
    if not worse and not unknown:
        yield f"nothing is worse by more than {comparison.tolerance:.0%}"


def value_in_words(each: FigureChange, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2%}" if each.figure == MISSED else seconds_in_words(value)


def _change(each: FigureChange) -> str:
    if each.before is None or each.after is None:
        return ""
    if not each.is_ratio:
        return _points(each.after - each.before)
    return f"{each.after / each.before - 1:+.1%}" if each.before else ""


def _range(each: FigureChange) -> str:
    if each.low is None or each.high is None:
        return ""
    if each.is_ratio:
        return f"{each.low:+.0%} to {each.high:+.0%}"
    return f"{_points(each.low)} to {_points(each.high)}"


def _points(share: float) -> str:
    return f"{share * 100:+.2f} pp"


def _verdict(each: FigureChange) -> str:
    if each.low is None:
        return f"cannot tell: {each.seconds} seconds"
    return each.verdict


def _names(changes: list[FigureChange]) -> str:
    return ", ".join(each.name for each in changes)
