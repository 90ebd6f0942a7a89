"""The outputs of a run: the terminal and files.

A run is worth more than its outputs, so it goes on when one can no longer be written. Files are
tried before the run, written in place (a name may be that of a pipe or a device), and a failure is
said at the end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Self, TextIO

import attrs
import msgspec
from attrs import define, field, frozen

from relay.load.measures.analysis.limits import FindResult, LevelRun
from relay.load.measures.results import RunResult, Second
from relay.load.report.csv_rows import CSV_COLUMNS, csv_rows


@frozen(kw_only=True)
class OutputFiles:
    """The files that the command line asks for."""

    report: Path | None = None
    json: Path | None = None
    csv: Path | None = None
    junit: Path | None = None

    def try_to_open(self) -> None:
        """`OSError` if one cannot be written, before a long run rather than after it."""
        for path in filter(None, (self.report, self.json, self.csv, self.junit)):
            if path.is_fifo():  # its reader would take this for the end
                continue
            place = path.resolve()  # a link may point to a file that does not exist yet
            existed = place.exists()
            with place.open("ab"):
                pass
            if not existed:
                place.unlink()


@define(eq=False)
class BestEffortOutput:
    """A text file that drops everything after a failed write."""

    _file: TextIO
    failure: str | None = None

    @property
    def encoding(self) -> str:
        return self._file.encoding

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                self._file.write(text)
                self._file.flush()
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""

    def _fail(self, error: OSError) -> None:
        self.failure = f"cannot write the output: {error.strerror}"
        # Python flushes the rest of the buffer at exit, which must not fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._file.fileno())
        os.close(nowhere)


@define(eq=False)
class LineFile:
    """A file that grows line by line during the run."""

    path: Path | None
    """None to write nothing."""
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

    def write(self, data: bytes) -> None:
        if self._file is None:
            return
        rest = memoryview(data)
        try:
            while rest:  # an almost full disk accepts a part without an error
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = cannot_write(self.path, error)
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonLines(LineFile):
    """A JSON file with a line for each second and one for the result."""

    def second(self, second: Second) -> None:
        self.write(msgspec.json.encode({"type": "second", **attrs.asdict(second)}) + b"\n")

    def result(self, result: RunResult) -> None:
        self.write(msgspec.json.encode(result) + b"\n")


class FindLines(LineFile):
    """A JSON file with a line for each run of a search and one for what it found."""

    def run(self, run: LevelRun) -> None:
        line = {"type": "run", "level": run.level, "kept": run.kept, **run.figures()}
        self.write(msgspec.json.encode({**line, "result": run.result}) + b"\n")

    def found(self, result: FindResult) -> None:
        self.write(msgspec.json.encode(result) + b"\n")


class CsvFile(LineFile):
    """A CSV file with a row for each second and group, after a row of names."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.write(f"{','.join(CSV_COLUMNS)}\n".encode())
        return self

    def second(self, second: Second) -> None:
        self.write(csv_rows(second).encode())


def write_whole(path: Path, text: str) -> str | None:
    """Write a file at the end of a run; returns what went wrong."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        return cannot_write(path, error)
    return None


def cannot_write(path: object, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror}"
