from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog
from attrs import define, field

from relay.logs.setup import REDACTED, configure_logging

SECRET = "5ecret-t0ken-that-nobody-may-read"
FORMATS = ["console", "json"]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root, relay = logging.getLogger(), logging.getLogger("relay")
    before = root.level, relay.level, list(root.handlers)
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.level, relay.level, root.handlers[:] = before


class Session:
    """Something with a secret inside, as a local variable of the code that fails."""

    def verify(self, token: str) -> None:
        parts = {"authorization": token, "copies": [token, token]}
        raise LookupError(f"no session among {len(parts)}")


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("library", ["structlog", "logging"])
def test_a_traceback_shows_no_local_variable(log_format: str, library: str) -> None:
    out = io.StringIO()
    configure_logging("debug", log_format, out)
    secret_here = SECRET
    try:
        Session().verify(secret_here)
    except LookupError:
        if library == "structlog":
            structlog.get_logger("relay.auth").exception("verification failed")
        else:
            logging.getLogger("trio-websocket").exception("verification failed")
    text = out.getvalue()
    assert "verification failed" in text
    assert "Traceback (most recent call last)" in text
    assert "LookupError: no session among 2" in text
    assert SECRET not in text


@pytest.mark.parametrize("log_format", FORMATS)
def test_values_under_the_name_of_a_secret_are_hidden_at_any_depth(log_format: str) -> None:
    out = io.StringIO()
    configure_logging("info", log_format, out)
    structlog.get_logger("relay.web").info(
        "request",
        token=SECRET,
        session_token=SECRET,
        headers={"Authorization": SECRET, b"cookie": SECRET, "host": "example.org"},
        tries=[{"password": SECRET}],
        database_url=f"postgresql://relay:{SECRET}@db/relay",
        tokens=12,
    )
    logging.getLogger("some.library").warning("refused", extra={"token": SECRET})
    text = out.getvalue()
    assert SECRET not in text
    assert text.count(REDACTED) == 7
    assert "example.org" in text
    assert "12" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_text_and_whatever_else_reads_gets_json() -> None:
    for out, is_json in ((io.StringIO(), True), (Terminal(), False)):
        configure_logging("info", stream=out)
        structlog.get_logger("relay").info("listening")
        assert out.getvalue().startswith("{") == is_json
        assert "listening" in out.getvalue()


def test_json_is_one_object_a_line_with_time_level_and_logger() -> None:
    out = io.StringIO()
    configure_logging("info", "json", out)
    structlog.get_logger("relay.server").info("listening", address="http://127.0.0.1:3000")
    logging.getLogger("psycopg.pool").warning("error connecting in %r", "pool-1")
    ours, theirs = map(json.loads, out.getvalue().splitlines())
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "listening",
        "level": "info",
        "logger": "relay.server",
        "address": "http://127.0.0.1:3000",
    }
    assert theirs["event"] == "error connecting in 'pool-1'"
    assert theirs["level"] == "warning"
    assert theirs["logger"] == "psycopg.pool"


def test_the_level_is_that_of_relay_and_libraries_speak_from_warning_on() -> None:
    out = io.StringIO()
    logging.getLogger("psycopg").setLevel(logging.WARNING)  # which it does by itself
    configure_logging("debug", "json", out)
    structlog.get_logger("relay.hub").debug("ours")
    logging.getLogger("trio-websocket").debug("theirs: what travels")
    configure_logging("error", "json", out)
    structlog.get_logger("relay.hub").warning("too low")
    logging.getLogger("psycopg").warning("too low")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["ours"]


def test_configuring_again_moves_the_log_and_does_not_double_it() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "json", first)
    configure_logging("info", "json", second)
    structlog.get_logger("relay").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_warnings_are_logged() -> None:
    out = io.StringIO()
    configure_logging("info", "json", out)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old thing used", UserWarning, stacklevel=1)
    assert json.loads(out.getvalue())["logger"] == "py.warnings"


@define
class Hiding:
    """A value whose `repr` hides a part of it."""

    name: str
    token: str = field(repr=False)


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_object_is_logged_by_its_repr(log_format: str) -> None:
    out = io.StringIO()
    configure_logging("info", log_format, out)
    structlog.get_logger("relay").info("seen", who=Hiding("ann", SECRET), address=b"\xff")
    assert "Hiding(name='ann')" in out.getvalue()
    assert "xff" in out.getvalue()
    assert SECRET not in out.getvalue()


def test_every_text_can_be_logged() -> None:
    out = io.StringIO()
    configure_logging("info", "json", out)
    structlog.get_logger("relay").info("seen", name='a\ud800\n"b', number=2**70)
    assert json.loads(out.getvalue())["name"] == 'a\ud800\n"b'
    assert out.getvalue().count("\n") == 1


def test_a_line_without_a_name_has_that_of_its_module() -> None:
    out = io.StringIO()
    configure_logging("info", "json", out)
    structlog.get_logger().info("here")
    assert json.loads(out.getvalue())["logger"] == __name__


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_log_that_cannot_be_written_stops_nothing(log_format: str) -> None:
    configure_logging("info", log_format, Broken())
    structlog.get_logger("relay").info("nobody reads this")
