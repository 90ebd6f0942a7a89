"""Commands of `relay` run in the test's own process, on a real database: what takes half a second
to start has been imported already. That commands work as processes, other tests show."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest
import structlog

from relay.cli.main import main


def call_relay(*arguments: str, database_url: str) -> tuple[int, str, str]:
    """The exit code, and what was written to stdout and stderr."""
    return call_with({"RELAY_DATABASE_URL": database_url}, *arguments)


def call_with(environment: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    """The same, with these variables."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        logging_kept(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


@contextmanager
def logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()
        root.level, root.handlers[:] = before
