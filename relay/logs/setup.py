"""Sets up logging: one line per event on stderr, as text or JSON, never with a secret.

Lines about a connection carry its number, which `connection.py` binds for all of its tasks.

relay logs through structlog (`lines.py`). What libraries log through the standard library looks the
same.
Tracebacks are plain, because structlog's default ones print local variables and with them tokens.
Call sites never pass a token; the filter by key here is the last defence, not the first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from relay.logs.lines import LineLoggerFactory, add_logger_name, render_json

REDACTED = "(hidden)"
_SECRETS = ("token", "authorization", "password", "cookie", "secret", "database_url", "listen_url")
_HANDLER = "relay"


def configure_logging(
    level: str = "info", log_format: str = "auto", stream: TextIO | None = None
) -> None:
    """Set up logging for this process; a later call replaces an earlier one.

    `auto` means text on a terminal, and JSON elsewhere.
    """
    stream = sys.stderr if stream is None else stream
    if log_format == "auto":
        log_format = "console" if stream.isatty() else "json"
    threshold: int = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(stream)
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
    ]
    then: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        hide_secrets,
    ]
    renderer: list[Processor]
    if log_format == "json":
        renderer = [
            structlog.processors.format_exc_info,  # the plain one: no local variables
            render_json,
        ]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*first, add_logger_name, *then, *renderer],
        logger_factory=LineLoggerFactory(handler),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=False,
    )
    _install(
        handler,
        threshold,
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.ExtraAdder(),
                *first,
                structlog.stdlib.add_logger_name,
                *then,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        ),
    )
    # Below warnings, libraries log about themselves, and some log the payload.
    logging.getLogger().setLevel(max(threshold, logging.WARNING))
    logging.getLogger("relay").setLevel(threshold)
    logging.captureWarnings(capture=True)


def _install(
    handler: logging.StreamHandler[TextIO], threshold: int, formatter: logging.Formatter
) -> None:
    handler.name = _HANDLER
    handler.setLevel(threshold)  # some libraries set the levels of their loggers
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(earlier)
    root.addHandler(handler)


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the value of each key that names a secret, at any depth."""
    return {
        name: REDACTED if value is not None and _is_secret_field(name) else _hide(None, value)
        for name, value in event.items()
    }


@lru_cache(256)
def _is_secret_field(name: str) -> bool:
    """`_names_a_secret` for the names of fields, which the code gives, and not a client."""
    return _names_a_secret(name)


def _hide(name: object, value: Any) -> Any:
    if value is not None and isinstance(name, str) and _names_a_secret(name):
        return REDACTED
    if isinstance(value, Mapping):
        texts = {_text(key): inner for key, inner in value.items()}
        return {key: _hide(key, inner) for key, inner in texts.items()}
    if isinstance(value, list):
        return [_hide(None, inner) for inner in value]
    return value


def _text(key: object) -> str:
    """Turn a key into text: names of HTTP headers are bytes, which JSON does not allow."""
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _names_a_secret(name: str) -> bool:
    return name.lower().replace("-", "_").endswith(_SECRETS)
