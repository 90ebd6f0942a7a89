"""`relay load run`: reads a scenario, runs it, shows it, and writes the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import attrs
import trio
from rich.console import Console

from relay.load.measures.results import Outcome
from relay.load.report.live_view import LiveView
from relay.load.report.outputs import BestEffortOutput, JsonLines, OutputFiles
from relay.load.report.summary import print_summary
from relay.load.run.coordinator import Coordinator, RunOptions
from relay.load.scenario.scenario import load_scenario, with_targets
from relay.load.scenario.schema import ScenarioError
from relay.logs.setup import configure_logging

NON_TTY_WIDTH = 120
EXIT_CODES: dict[Outcome, int] = {
    "kept": 0,
    "failed": 1,
    "could not run": 3,
    "interrupted": 130,
}
BAD_SCENARIO, CANNOT_WRITE = 2, 3


def run_scenario(
    path: Path,
    files: OutputFiles,
    *,
    workers: int | None = None,
    targets: Sequence[str] = (),
    abort_on_fail: bool = False,
    target_is_mine: bool = False,
) -> int:
    """Run a scenario; returns the exit code. `targets` are used in place of its own."""
    try:
        files.try_to_open()
    except OSError as error:
        print_error(f"cannot write {error.filename}: {error.strerror}")
        return CANNOT_WRITE
    configure_logging("error")
    output = BestEffortOutput(sys.stdout)
    console = Console(file=cast(IO[str], output), markup=False, highlight=False)
    if not output.isatty():
        console.width = NON_TTY_WIDTH
    try:
        scenario = load_scenario(path)
        if workers is not None:
            scenario = attrs.evolve(scenario, workers=workers)
        if targets:
            scenario = with_targets(scenario, targets)
        options = RunOptions(target_is_mine=target_is_mine, abort_on_fail=abort_on_fail)
        source = path.read_text(encoding="utf-8")
        coordinator = Coordinator(scenario, options, source, str(path))
        state = coordinator.state
        with JsonLines(files.json) as lines:
            state.on_second = lines.second
            trio.run(_run, coordinator, console)
            result = state.result()
            print_summary(console, result)
            lines.result(result)
    except ScenarioError as error:
        print_error(str(error))
        return BAD_SCENARIO
    failures = [each.failure for each in (output, lines) if each.failure is not None]
    if files.report is not None:
        from relay.load.report.html import page  # noqa: PLC0415 (only with --report)

        try:
            files.report.write_text(page(result, state.seconds), encoding="utf-8")
        except OSError as error:
            failures.append(f"cannot write {files.report}: {error.strerror}")
    for failure in failures:
        print_error(failure)
    return EXIT_CODES[state.outcome] or (CANNOT_WRITE if failures else 0)


async def _run(coordinator: Coordinator, console: Console) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LiveView(console, coordinator.state).show)
        await coordinator.run()
        nursery.cancel_scope.cancel()


def print_error(text: str) -> None:
    sys.stderr.write(f"relay: {' '.join(text.split())}\n")
