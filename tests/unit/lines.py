"""Counts the lines of Python that something takes, which is its cost on any machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from attrs import define


@define
class LineCount:
    """How many lines were executed so far."""

    lines: int = 0


@contextmanager
def counted_lines() -> Iterator[LineCount]:
    """Count the lines of what is called within the block."""
    count = LineCount()

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        count.lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)
