"""The rows of a run's CSV file: one for each second and group. No I/O."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from io import StringIO

from relay.load.measures.results import SECOND_AGES, Second

ALL_GROUPS = "*"
"""Stands for all groups together, in a row that also has the figures of relay and generator."""
GENERATOR_PREFIX = "generator "
"""Before the name of one of several generators, in a row with its own figures."""
COUNT_COLUMNS = ("connected", "sent", "received", "missed", "bytes_in", "closes", "errors")
CSV_COLUMNS = (
    *("second", "group", *COUNT_COLUMNS, *(f"age_{name}" for name in SECOND_AGES)),
    *("lateness", "cpu", "memory", "busy", "gc_pause"),
)


def csv_rows(second: Second) -> str:
    """Rows of each group, of each of several generators, and of all together, as text.

    Counts are those of the second that ends at `second`. Times are in seconds, memory in bytes,
    `cpu` in cores; what is not known is empty.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_rows(second))
    return text.getvalue()


def _rows(second: Second) -> Iterator[list[str]]:
    groups, own = second.groups, second.generator
    for name, group in groups.items():
        counts = [str(getattr(group, column)) for column in COUNT_COLUMNS]
        yield [_cell(second.at), name, *counts, *_ages(group.age), *[""] * 5]
    for name, each in second.generators.items():
        empty = [""] * (len(COUNT_COLUMNS) + len(SECOND_AGES) + 3)
        pauses = map(_cell, (each.busy, each.gc_pause))
        yield [_cell(second.at), f"{GENERATOR_PREFIX}{name}", *empty, *pauses]
    sums = (sum(getattr(group, column) for group in groups.values()) for column in COUNT_COLUMNS)
    rest = (second.lateness, second.cpu, second.memory, own.busy, own.gc_pause)
    yield [_cell(second.at), ALL_GROUPS, *map(str, sums), *_ages(second.age), *map(_cell, rest)]


def _ages(age: Mapping[str, float]) -> list[str]:
    return [_cell(age.get(name)) for name in SECOND_AGES]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
