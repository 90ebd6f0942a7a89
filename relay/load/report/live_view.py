"""Shows a running test: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import trio
from attrs import define
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from relay.load.measures.generator_usage import MAX_BUSY
from relay.load.measures.results import Second
from relay.load.measures.stats import GroupStats
from relay.load.report.words.layers import layers_in_words
from relay.load.run.run_state import RunState
from relay.load.units import seconds_in_words

LIVE_VIEW_INTERVAL = 0.5
"""Seconds."""
MAX_LIVE_ERRORS = 5
BAR_WIDTH = 40


@define(eq=False)
class LiveView:
    """Shows a run until it is cancelled."""

    console: Console
    state: RunState

    async def show(self) -> NoReturn:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            await self._show_live()
        await self._show_lines()

    async def _show_live(self) -> NoReturn:
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self._render(), refresh=True)
                await trio.sleep(LIVE_VIEW_INTERVAL)

    async def _show_lines(self) -> NoReturn:
        phase, shown, told = "", 0, 0
        while True:
            if self.state.phase != phase:
                phase = self.state.phase
                self.console.print(f"{self.state.scenario.name}: {phase}")
            for words in self.state.events[told:]:
                self.console.print(words)
            told = len(self.state.events)
            for second in self.state.seconds[shown:]:
                self.console.print(self._line(second))
            shown = len(self.state.seconds)
            await trio.sleep(LIVE_VIEW_INTERVAL)

    def _render(self) -> Group:
        state = self.state
        length = state.scenario.length
        done = round(min(1, state.now / length) * BAR_WIDTH)
        parts: list[object] = [
            Text(
                f"{state.scenario.name}: {state.phase},"
                f" {min(state.now, length):.0f} of {length:.0f} s{self._stage()}"
            ),
            Text("━" * done + "─" * (BAR_WIDTH - done)),
        ]
        if state.seconds:
            parts.append(Text(self._line(state.seconds[-1])))
            parts.append(self._groups())
        parts += [Text(words) for words in self._errors()]
        return Group(*parts)  # type: ignore[arg-type] # each is a line or a table

    def _stage(self) -> str:
        stages, at = self.state.scenario.stages, 0.0
        for stage in stages:
            if at <= self.state.now < at + stage.duration:
                return f", stage {stage.name}" if len(stages) > 1 else ""
            at += stage.duration
        return ""

    def _groups(self) -> Table:
        table = Table(box=None, padding=(0, 2))
        groups = self.state.run_stats.groups
        has_layers = any(layers_in_words(stats.counts) for stats in groups.values())
        layer_columns = ("switches/min", "layers") if has_layers else ()
        columns = ("", "connected", "sent", "received", "missed", "age p50", "age p99")
        for column in (*columns, *layer_columns):
            table.add_column(column, justify="right" if column else "left")
        for name, stats in groups.items():
            if name in {"generator", "ledger"}:
                continue
            age = stats.times.get("frame_age")
            counts = stats.counts
            table.add_row(
                name,
                str(stats.connected),
                *(str(counts[each] or "") for each in ("sent", "received", "missed")),
                *(
                    seconds_in_words(age.percentile(percent)) if age and age.count else ""
                    for percent in (50, 99)
                ),
                *(_layer_cells(stats) if has_layers else ()),
            )
        return table

    def _errors(self) -> Iterator[str]:
        errors = self.state.run_stats.total().errors
        for words, number in errors.most_common(MAX_LIVE_ERRORS):
            yield f"{number:6d} x {words}"

    def _line(self, second: Second) -> str:
        words = (
            f"{second.at:4.0f} s  {second.connected} connected, {second.sent:.0f}/s out,"
            f" {second.received:.0f}/s in, {second.missed:.0f}/s missed"
        )
        if second.age:
            p50, p99 = (seconds_in_words(second.age[name]) for name in ("p50", "p99"))
            words += f", age {p50} to {p99}"
        if second.cpu is not None and second.memory is not None:
            words += f", relay {second.cpu:.0%} CPU {second.memory / 2**20:.0f} MiB"
        if second.generator.busy > MAX_BUSY:
            busy = [n for n, each in second.generators.items() if each.busy > MAX_BUSY]
            words += f", generator {second.generator.busy:.0%} busy"
            words += f" ({', '.join(busy)})" if busy else ""
        if second.errors:
            words += f", {second.errors} errors"
        return words


def _layer_cells(stats: GroupStats) -> tuple[str, str]:
    layers, rate = layers_in_words(stats.counts), stats.rate("switches_per_minute")
    return ("", "") if not layers or rate is None else (f"{rate:.2g}", layers)
