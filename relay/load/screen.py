"""Stdout, as long as it can be written: a run is worth more than what is seen of it. Floor 6."""

from __future__ import annotations

import os
from typing import TextIO

from attrs import define


@define(eq=False)
class Screen:
    """Passes text on until that fails, and then drops it."""

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
        """`write` has done it."""

    def _fail(self, error: OSError) -> None:
        self.failure = f"cannot write what is to be seen: {error.strerror}"
        # What is left in the buffer is written at exit, and must then not fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._file.fileno())
        os.close(nowhere)
