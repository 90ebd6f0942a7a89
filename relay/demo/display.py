"""Shows the measurements: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NoReturn

import trio
from attrs import define, field
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from relay.demo.stats import ParticipantStats, Reading, Throughput
from relay.errors import RelayError

REFRESH_INTERVAL = 0.5
PLAIN_LINE_INTERVAL = 2.0
PLAIN_WIDTH = 100
"""Columns if the output is not a terminal."""
RATE_PERIOD = 3.0
"""Seconds over which live rates are averaged."""
MEASURED_COLUMNS = (
    "frames\nout",
    "frames\nin",
    "missed",
    "fps",
    "p50\nms",
    "p99\nms",
    "Mbit/s",
    "alerts\nout",
    "alerts\nin",
)
LEGEND = (
    "missed: frames skipped because the link is slow\n"
    "p50, p99: time from the relay to the viewer (median and 99th percentile)\n"
    "Mbit/s: all traffic on the link"
)


class OutputClosed(RelayError):
    """The program that read the output has ended."""

    def __str__(self) -> str:
        return "the output was closed"


class DemoConsole(Console):
    """A console on standard output that raises `OutputClosed`, which nurseries pass on."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)
        if not self.file.isatty():
            self.width = PLAIN_WIDTH

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise OutputClosed from None


@define(eq=False)
class Display:
    """Shows what all participants measure."""

    console: Console
    title: str
    participants: Sequence[ParticipantStats]
    _begun: float = field(factory=trio.current_time)
    _recent: deque[Mapping[str, Reading]] = field(init=False)
    """The readings of the last `RATE_PERIOD` seconds, each by the name of the participant."""
    _summary: Group | None = None

    @property
    def is_live(self) -> bool:
        """Whether the output is a terminal on which a table can be redrawn."""
        console = self.console
        return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal

    async def run(self) -> NoReturn:
        """Show the measurements until cancelled."""
        interval = REFRESH_INTERVAL if self.is_live else PLAIN_LINE_INTERVAL
        self._recent = deque(maxlen=round(RATE_PERIOD / interval))
        try:
            if self.is_live:
                with Live(console=self.console, auto_refresh=False, transient=True) as live:
                    while True:
                        live.update(self._tables(self._recent_rates()), refresh=True)
                        await trio.sleep(interval)
            while True:
                await trio.sleep(interval)
                self.console.print(self._line(self._recent_rates()), soft_wrap=True)
        finally:
            self._summary = self._tables(self._whole_rates())

    def summarize(self) -> None:
        """Print the measurements of the whole run, as of its end."""
        if self._summary is not None:
            self.console.print(self._summary)

    def _heading(self) -> str:
        return f"{self.title}   {trio.current_time() - self._begun:.0f} s"

    def _recent_rates(self) -> dict[str, Throughput]:
        """The rates of the last seconds, for participants that have frames."""
        now = {each.name: each.read() for each in self.participants if each.first is not None}
        # Until the period is full, rates count from the first frame.
        before = self._recent[0] if len(self._recent) == self._recent.maxlen else {}
        self._recent.append(now)
        return {
            each.name: Throughput.between(before.get(each.name, each.first), now[each.name])
            for each in self.participants
            if each.first is not None
        }

    def _whole_rates(self) -> dict[str, Throughput]:
        return {
            each.name: Throughput.between(each.first, each.read())
            for each in self.participants
            if each.first is not None
        }

    def _tables(self, rates: Mapping[str, Throughput]) -> Group:
        table = Table(box=box.SIMPLE_HEAD, padding=0)
        table.add_column("", no_wrap=True)
        for column in MEASURED_COLUMNS:
            table.add_column(column, justify="right")
        for each in self.participants:
            table.add_row(each.name, *_cells(each, rates.get(each.name)))
        return Group(Text(self._heading()), table, Text(LEGEND))

    def _line(self, rates: Mapping[str, Throughput]) -> str:
        parts = (
            f"{each.name}: {_in_words(each, rates.get(each.name))}" for each in self.participants
        )
        return f"{trio.current_time() - self._begun:3.0f} s  {' | '.join(parts)}"


def _cells(stats: ParticipantStats, rate: Throughput | None) -> Sequence[str]:
    """The cells below `MEASURED_COLUMNS`."""
    return (
        _number(stats.frames_out),
        _number(stats.frames_in),
        str(stats.missed) if rate else "",
        f"{rate.fps:.1f}" if rate else "",
        _age(stats.age(0.5)),
        _age(stats.age(0.99)),
        f"{rate.megabits:.2f}" if rate else "",
        _number(stats.alerts_out),
        _number(stats.alerts_in),
    )


def _number(number: int | None) -> str:
    """A number; empty for what a participant does not do."""
    return str(number) if number else ""


def _age(milliseconds: int | None) -> str:
    return "" if milliseconds is None else str(milliseconds)


def _in_words(stats: ParticipantStats, rate: Throughput | None) -> str:
    if rate is None:
        return f"{stats.alerts_out} out"
    words = f"{rate.fps:.1f} fps, {stats.missed} missed, {rate.megabits:.2f} Mbit/s"
    if stats.frames_in:
        words += f", age {stats.age(0.5)} to {stats.age(0.99)} ms"
    return words
