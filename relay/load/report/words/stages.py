"""What was seen in each stage of a run, as tables. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from relay.load.measures.results import GroupResult, RunResult, StageResult
from relay.load.units import MIB, seconds_in_words

Cells = tuple[str, ...]
FRAME_COLUMNS = (
    *("stage", "group", "frames\nin", "missed"),
    *("age\np50", "age\np90", "age\np99", "age\nmax"),
)
LOGIN_COLUMNS = (
    *("stage", "group", "logins", "connect\np50", "connect\np99", "connect\nmax", "attacks"),
)
RELAY_COLUMNS = (
    *("stage", "relay's\nCPU", "memory", "queries\nof tokens"),
    *("CPU\na login", "queries\na login"),
)
AGES = ("p50", "p90", "p99", "max")
CONNECT_TIMES = ("p50", "p99", "max")


def stage_tables(result: RunResult) -> Iterator[tuple[Cells, list[Cells]]]:
    """The columns and the rows of each table that has rows; none for a run of one stage."""
    for columns, rows in (
        (FRAME_COLUMNS, _rows(result, _frames)),
        (LOGIN_COLUMNS, _rows(result, _logins)),
        (RELAY_COLUMNS, list(_relay_rows(result))),
    ):
        if rows:
            yield columns, rows


def _rows(result: RunResult, cells_of: Callable[[GroupResult], Cells]) -> list[Cells]:
    """What each group saw in each stage, where it saw anything."""
    return [
        (stage, group, *cells)
        for stage, seen in result.by_stage.items()
        for group, of_group in seen.groups.items()
        if any(cells := cells_of(of_group))
    ]


def _frames(group: GroupResult) -> Cells:
    counts, age = group.counts, group.times.get("frame_age", {})
    return (
        _number(counts.get("received")),
        _number(counts.get("missed")),
        *(seconds_in_words(age[name]) if age else "" for name in AGES),
    )


def _logins(group: GroupResult) -> Cells:
    counts, times = group.counts, group.times.get("connect_time", {})
    return (
        _number(counts.get("auth.done")),
        *(seconds_in_words(times[name]) if times else "" for name in CONNECT_TIMES),
        _number(counts.get("attacks")),
    )


def _relay_rows(result: RunResult) -> Iterator[Cells]:
    """What all targets did together in each stage."""
    for name, stage in result.by_stage.items():
        if (used := stage.used) is None:
            continue
        cpu, queries, logins = used.cpu, used.queries, _logins_alone(stage)
        yield (
            name,
            "" if cpu is None else f"{cpu / stage.seconds:.0%}",
            "" if used.memory is None else f"{used.memory / MIB:.1f} MiB",
            "" if queries is None else str(queries),
            "" if cpu is None or not logins else seconds_in_words(cpu / logins),
            "" if queries is None or not logins else f"{queries / logins:.3f}",
        )


def _logins_alone(stage: StageResult) -> int:
    """How many logins there were, if there was nothing else: only then is the cost theirs."""
    total = Counter[str]()
    for group in stage.groups.values():
        total.update(group.counts)
    return 0 if total["sent"] or total["attacks"] else total["auth.done"]


def _number(number: int | None) -> str:
    return str(number) if number else ""
