"""The figures of the demo on a terminal, live, or as plain lines elsewhere. Floor 6."""

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

from relay.demo.figures import Figures, Rate, Reading
from relay.errors import RelayError

LIVE_INTERVAL = 0.5
LINE_INTERVAL = 2.0
LINE_WIDTH = 100
"""Characters, where the output is no terminal."""
RECENT = 3.0
"""Seconds over which rates are taken while the demo runs."""
COLUMNS = (
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
    "missed: frames left out because the link is slow\n"
    "p50, p99: how old frames were when they came, since the relay had them\n"
    "Mbit/s: all that went over the link"
)


class OutputClosed(RelayError):
    """Whoever read the output has gone."""

    def __str__(self) -> str:
        return "nobody reads the output any more"


class DemoConsole(Console):
    """Standard output as it is, with an end that reaches through nurseries."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)
        if not self.file.isatty():
            self.width = LINE_WIDTH

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise OutputClosed from None


@define(eq=False)
class Display:
    """Shows all participants."""

    console: Console
    title: str
    figures: Sequence[Figures]
    _begun: float = field(factory=trio.current_time)
    _recent: deque[Mapping[str, Reading]] = field(init=False)
    """The readings of the last `RECENT` seconds, by the participant's name."""
    _summary: Group | None = None

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal on which a table can be drawn over and over."""
        console = self.console
        return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal

    async def run(self) -> NoReturn:
        """Show the figures until cancelled."""
        interval = LIVE_INTERVAL if self.is_live else LINE_INTERVAL
        self._recent = deque(maxlen=round(RECENT / interval))
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
        """Print the figures of the whole run, as they were when it ended."""
        if self._summary is not None:
            self.console.print(self._summary)

    def _heading(self) -> str:
        return f"{self.title}   {trio.current_time() - self._begun:.0f} s"

    def _recent_rates(self) -> dict[str, Rate]:
        """Rates of the last seconds, of those that have frames."""
        now = {each.name: each.read() for each in self.figures if each.first is not None}
        # Before there are so many readings, what a participant began with is the earliest.
        before = self._recent[0] if len(self._recent) == self._recent.maxlen else {}
        self._recent.append(now)
        return {
            each.name: Rate.between(before.get(each.name, each.first), now[each.name])
            for each in self.figures
            if each.first is not None
        }

    def _whole_rates(self) -> dict[str, Rate]:
        return {
            each.name: Rate.between(each.first, each.read())
            for each in self.figures
            if each.first is not None
        }

    def _tables(self, rates: Mapping[str, Rate]) -> Group:
        table = Table(box=box.SIMPLE_HEAD, padding=0)
        table.add_column("", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for each in self.figures:
            table.add_row(each.name, *_cells(each, rates.get(each.name)))
        return Group(Text(self._heading()), table, Text(LEGEND))

    def _line(self, rates: Mapping[str, Rate]) -> str:
        parts = (f"{each.name}: {_in_words(each, rates.get(each.name))}" for each in self.figures)
        return f"{trio.current_time() - self._begun:3.0f} s  {' | '.join(parts)}"


def _cells(figures: Figures, rate: Rate | None) -> Sequence[str]:
    """What belongs into `COLUMNS`."""
    return (
        _number(figures.frames_out),
        _number(figures.frames_in),
        str(figures.missed) if rate else "",
        f"{rate.fps:.1f}" if rate else "",
        _age(figures.age(0.5)),
        _age(figures.age(0.99)),
        f"{rate.megabits:.2f}" if rate else "",
        _number(figures.alerts_out),
        _number(figures.alerts_in),
    )


def _number(number: int | None) -> str:
    """A cell of what a participant does not do stays empty."""
    return str(number) if number else ""


def _age(milliseconds: int | None) -> str:
    return "" if milliseconds is None else str(milliseconds)


def _in_words(figures: Figures, rate: Rate | None) -> str:
    if rate is None:
        return f"{figures.alerts_out} out"
    words = f"{rate.fps:.1f} fps, {figures.missed} missed, {rate.megabits:.2f} Mbit/s"
    if figures.frames_in:
        words += f", age {figures.age(0.5)} to {figures.age(0.99)} ms"
    return words
