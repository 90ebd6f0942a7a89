"""The result of a run as GitHub's workflow commands, which show it at the commit.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Literal, Self

from attrs import define, field

from relay.load.measures.results import RunResult
from relay.load.report.words.comparison import in_one_line
from relay.load.report.words.generator import doubt

Level = Literal["error", "warning", "notice"]


@define(eq=False)
class Annotations:
    """Prints annotations. Within the block, no text that is printed is a command.

    A relay under test chooses some of the texts, and may be anybody's.
    """

    _write: Callable[[str], object] | None
    """None to print nothing."""
    file: str
    """The path of the scenario."""
    _resume: str = field(factory=lambda: secrets.token_hex(16), init=False)

    def __enter__(self) -> Self:
        self._print(f"::stop-commands::{self._resume}")
        return self

    def __exit__(self, *_: object) -> None:
        self._print(f"::{self._resume}::")

    def error(self, text: str) -> None:
        self._print(annotation("error", text, title="relay load", file=self.file))

    def result(self, result: RunResult, source: str) -> None:
        """Print what is to be said of a run; `source` is the scenario's text."""
        for line in result_annotations(result, self.file, source):
            self._print(line)

    def _print(self, line: str) -> None:
        if self._write is not None:
            self._write(f"{line}\n")


def result_annotations(result: RunResult, file: str, source: str) -> Iterator[str]:
    """A line for each check that was not kept, at its place in the scenario, and one for the run.

    `file` is the path of the scenario as it was given, `source` what is in it.
    """
    if result.problem is not None:
        yield annotation("error", result.problem, title=result.scenario, file=file)
    for check in result.checks:
        if not check.kept:
            yield annotation(
                "error",
                f"{check.line} (measured: {check.measured})",
                title=f"{result.scenario}: a check failed",
                file=file,
                line=_line_of(check.line, source),
            )
    if (words := doubt(result)) is not None:
        yield annotation("warning", words, title=result.scenario, file=file)
    if result.comparison is not None:
        for each in result.comparison.with_verdict("worse"):
            title = f"{result.scenario}: worse than {result.comparison.baseline}"
            yield annotation("error", in_one_line(each), title=title, file=file)
        if unknown := result.comparison.with_verdict("cannot tell"):
            words = f"cannot tell: {', '.join(each.name for each in unknown)}"
            title = f"{result.scenario}: compared with {result.comparison.baseline}"
            yield annotation("warning", words, title=title, file=file)
    if result.outcome == "kept":
        words = f"all {len(result.checks)} checks passed ({result.about})"
        yield annotation("notice", words, title=result.scenario)


def annotation(
    level: Level, text: str, *, title: str = "", file: str = "", line: int | None = None
) -> str:
    """One workflow command."""
    place = {"file": file, "line": "" if line is None else str(line), "title": title}
    properties = ",".join(f"{key}={_property(value)}" for key, value in place.items() if value)
    return f"::{level} {properties}::{_data(text)}" if properties else f"::{level}::{_data(text)}"


def _line_of(check: str, source: str) -> int | None:
    """The line of the scenario that has this check."""
    numbered = enumerate(source.splitlines(), 1)
    return next((number for number, line in numbered if check in line), None)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
