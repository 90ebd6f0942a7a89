"""Runs a scenario from the command line: reads it, shows it, writes what came of it. Floor 6."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Self, cast

import attrs
import msgspec
import trio
from attrs import define, field, frozen
from rich.console import Console

from relay.load.director import WRONG, Options, Run
from relay.load.report import print_summary
from relay.load.results import RunResult, Second
from relay.load.scenario import load_scenario
from relay.load.schema import ScenarioError
from relay.load.screen import Screen
from relay.load.view import View
from relay.logs import configure_logging

LINE_WIDTH = 120
COULD_NOT_WRITE = 3


@frozen
class Outputs:
    report: Path | None = None
    json: Path | None = None

    def try_to_open(self) -> None:
        """`OSError` if one cannot be written: to learn that after a run of an hour is too late."""
        for path in filter(None, (self.report, self.json)):
            if path.is_fifo():  # who reads it would take this for the end
                continue
            place = path.resolve()  # a link may lead to where nothing is yet
            was_there = place.exists()
            with place.open("ab"):
                pass
            if not was_there:
                place.unlink()


def conduct(
    path: Path,
    outputs: Outputs,
    *,
    workers: int | None = None,
    abort_on_fail: bool = False,
    target_is_mine: bool = False,
) -> int:
    """Run a scenario; returns the exit code."""
    try:
        outputs.try_to_open()
    except OSError as error:
        complain(f"cannot write {error.filename}: {error.strerror}")
        return COULD_NOT_WRITE
    configure_logging("error")
    screen = Screen(sys.stdout)
    console = Console(file=cast(IO[str], screen), markup=False, highlight=False)
    if not screen.isatty():
        console.width = LINE_WIDTH
    try:
        scenario = load_scenario(path)
        if workers is not None:
            scenario = attrs.evolve(scenario, workers=workers)
        options = Options(target_is_mine=target_is_mine, abort_on_fail=abort_on_fail)
        run = Run(scenario, options, path.read_text(encoding="utf-8"), str(path))
        with JsonLines(outputs.json) as lines:
            run.on_second = lines.second
            trio.run(_perform, run, console)
            result = run.result()
            print_summary(console, result)
            lines.result(result)
    except ScenarioError as error:
        complain(str(error))
        return WRONG
    failures = [each.failure for each in (screen, lines) if each.failure is not None]
    if outputs.report is not None:
        from relay.load.html import page  # noqa: PLC0415 (only with --report)

        try:
            outputs.report.write_text(page(result, run.seconds), encoding="utf-8")
        except OSError as error:
            failures.append(f"cannot write {outputs.report}: {error.strerror}")
    for failure in failures:
        complain(failure)
    return run.exit_code or (COULD_NOT_WRITE if failures else 0)


async def _perform(run: Run, console: Console) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(View(console, run).show)
        await run.perform()
        nursery.cancel_scope.cancel()


def complain(text: str) -> None:
    sys.stderr.write(f"relay: {' '.join(text.split())}\n")


@define(eq=False)
class JsonLines:
    """A file with a line for each second and one for the result, as long as it can be written."""

    path: Path | None
    failure: str | None = None
    _file: IO[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        if self.path is not None:
            try:
                self._file = self.path.open("wb", buffering=0)
            except OSError as error:
                self._fail(error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def second(self, second: Second) -> None:
        self._write({"type": "second", **attrs.asdict(second)})

    def result(self, result: RunResult) -> None:
        self._write(result)

    def _write(self, line: object) -> None:
        if self._file is None:
            return
        rest = memoryview(msgspec.json.encode(line) + b"\n")
        try:
            while rest:  # a disk that is almost full takes a part, and says nothing
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = f"cannot write {self.path}: {error.strerror}"
        if self._file is not None:
            self._file.close()
            self._file = None
