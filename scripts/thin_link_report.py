"""What thin_links.py has seen, as figures and as a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

import msgspec
from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table

UP_AIMS = {1.0: (15.0, 150.0), 0.5: (8.0, 250.0)}
"""Of phones, by Mbit/s: the least pictures a second and the highest age in ms to aim at."""
STEADY, CHANGING = 1.15, 1.25
"""How much older than its time on the wire a frame may be, beside the round trip."""


@frozen
class Case:
    """One link."""

    name: str
    mbits: tuple[float, ...]
    """Its rate, or that of each third of the time."""
    client: Literal["plain", "relay's"]
    """`plain`: it answers pings as browsers do, and no more."""
    up: bool = False
    """Whether a phone is behind it, not a viewer."""


@define(eq=False)
class Arrivals:
    """The pictures that a viewer got."""

    ages: list[tuple[float, float]] = field(factory=list)
    """When each arrived, by Trio's clock, and its age in seconds."""
    ended: str | None = None
    """Why the connection ended before its time."""

    def add(self, at: float, age: float) -> None:
        self.ages.append((at, age))


class Part(msgspec.Struct):
    """Figures of the whole time, or of a third of it."""

    pictures_per_second: float
    age_p50_ms: float | None
    """None where no picture arrived."""
    age_p99_ms: float | None
    aim_ms: float
    """The most that the age's p50 is to be."""


class Row(msgspec.Struct):
    """One link to one server."""

    server: str
    link: str
    client: str
    whole: Part
    thirds: list[Part]
    min_pictures: float | None = None
    """Of a phone: the least that is aimed at, a second."""
    back_seconds: float | None = None
    """On a link of changing rate: from the begin of the last third until a picture was as fresh as
    is aimed at."""
    ended: str | None = None


def rows_of(
    server: str,
    seen: Mapping[Case, Arrivals],
    *,
    began: float,
    seconds: float,
    megabit_second: float,
    round_trip: float,
) -> list[Row]:
    """`megabit_second`: the seconds that a frame takes at 1 Mbit/s."""
    rows = []
    for case, arrivals in seen.items():
        ages = [(at - began, age) for at, age in arrivals.ages if 0 <= at - began < seconds]
        aims = [_aim_ms(case, mbit, megabit_second, round_trip) for mbit in case.mbits]
        third = seconds / 3
        thirds = [
            _part(ages, third * number, third * (number + 1), aims[number % len(aims)])
            for number in range(3)
        ]
        back = None
        if len(case.mbits) > 1:
            fresh = [at for at, age in ages if at >= 2 * third and age * 1000 <= aims[2]]
            back = fresh[0] - 2 * third if fresh else None
        whole = _part(ages, 0, seconds, max(aims))
        least = UP_AIMS[case.mbits[0]][0] if case.up else None
        ended = arrivals.ended
        rows.append(Row(server, case.name, case.client, whole, thirds, least, back, ended))
    return rows


def _aim_ms(case: Case, mbit: float, megabit_second: float, round_trip: float) -> float:
    if case.up:
        return UP_AIMS[mbit][1]
    factor = CHANGING if len(case.mbits) > 1 else STEADY
    return (factor * megabit_second / mbit + round_trip) * 1000


def _part(ages: Sequence[tuple[float, float]], start: float, end: float, aim_ms: float) -> Part:
    of_part = sorted(age * 1000 for at, age in ages if start <= at < end)
    rate = len(of_part) / (end - start)
    if not of_part:
        return Part(rate, None, None, aim_ms)
    p99 = of_part[min(len(of_part) - 1, int(0.99 * len(of_part)))]
    return Part(rate, median(of_part), p99, aim_ms)


def show(rows: Sequence[Row], seconds: float) -> None:
    """A table with a line for each link."""
    table = Table(
        title=f"pictures over thin links, {seconds:g} s (in brackets: of each third)",
        title_justify="left",
    )
    for heading in ("link", "server", "client"):
        table.add_column(heading, no_wrap=True)
    for heading in ("pictures/s", "age p50 ms", "aim", "p99", "back after"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: row.link):  # else in the order of measuring
        parts = row.thirds
        changing = len({part.aim_ms for part in parts}) > 1
        aims = [f"≤ {part.aim_ms:,.0f}" for part in (parts if changing else parts[:1])]
        if row.min_pictures is not None:
            aims.append(f"≥ {row.min_pictures:g}/s")
        table.add_row(
            row.link,
            row.server,
            row.client,
            f"{row.whole.pictures_per_second:.1f}"
            f" ({', '.join(f'{part.pictures_per_second:.1f}' for part in parts)})",
            f"{_ms(row.whole.age_p50_ms)} ({', '.join(_ms(part.age_p50_ms) for part in parts)})",
            ", ".join(aims),
            _ms(row.whole.age_p99_ms),
            f"{row.back_seconds:.1f} s" if row.back_seconds is not None else "never" * changing,
        )
        if row.ended is not None:
            table.add_row("", "", "", f"ended: {row.ended}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _ms(milliseconds: float | None) -> str:
    return "none" if milliseconds is None else f"{milliseconds:,.0f}"
