"""Log lines of relay itself, by the quickest way through structlog: no standard library between.

What is logged is what it was that way: the same fields, with the name of the logger.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from types import FrameType
from typing import TextIO

import msgspec
import structlog
from attrs import define, field
from structlog.typing import EventDict, WrappedLogger

PLAIN_TYPES = {str, int, float, bool, type(None)}
_render_json = structlog.processors.JSONRenderer(ensure_ascii=False, separators=(",", ":"))


@define(eq=False, repr=False)
class LineLogger:
    """What structlog's loggers write to. One line is one write, under the lock of the handler that
    writes what libraries log."""

    name: str | None
    """None for the name of the module that logs."""
    _handler: logging.StreamHandler[TextIO]

    def write(self, line: str) -> None:
        """Write a line; a log that cannot be written stops nothing else."""
        self._handler.acquire()
        try:
            self._handler.stream.write(line + "\n")
            self._handler.flush()
        except (OSError, ValueError):
            pass
        finally:
            self._handler.release()

    debug = info = warning = error = critical = write


@define
class LineLoggerFactory:
    """Gives the loggers of one handler."""

    _handler: logging.StreamHandler[TextIO]
    _by_name: dict[str | None, LineLogger] = field(factory=dict)

    def __call__(self, name: str | None = None) -> LineLogger:
        """One is asked for with every line, so that a later configuration counts for all."""
        logger = self._by_name.get(name)
        if logger is None:
            logger = self._by_name[name] = LineLogger(name, self._handler)
        return logger


def add_logger_name(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add who logs, as `logger`."""
    event["logger"] = logger.name or _calling_module()
    return event


def _calling_module() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__ and not name.startswith("structlog."):
            return name
        frame = frame.f_back
    return ""


def render_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """One object in one line."""
    # msgspec would show what the `repr` of an object hides, and refuses lone surrogates.
    if PLAIN_TYPES.issuperset(map(type, event.values())):
        with suppress(UnicodeEncodeError):
            return msgspec.json.encode(event).decode()
    text = _render_json(logger, method, event)
    return text if isinstance(text, str) else text.decode()
