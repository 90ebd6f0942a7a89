"""Whatever is logged on behalf of a connection carries its number, and nothing else does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import structlog
import trio.testing

from relay.logs.setup import configure_logging
from tests.unit.memory import ANN, BOB, SENTRY, MemoryRelay

pytestmark = pytest.mark.mock_clock

Lines = Callable[[str], list[dict[str, Any]]]
log = structlog.get_logger("relay.below")


@pytest.fixture
def lines() -> Lines:
    """The lines of an event."""
    out = io.StringIO()
    configure_logging("info", "json", out)

    def read(event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in out.getvalue().splitlines()]
        return [line for line in found if line["event"] == event]

    return read


async def test_all_lines_of_a_connection_share_its_number_and_no_other_line_has_it(
    relay: MemoryRelay, lines: Lines
) -> None:
    phones = [await relay.phone(name, token) for name, token in (("a", ANN), ("b", BOB))]
    for phone in phones:
        phone.link.close()
    await trio.testing.wait_all_tasks_blocked()
    for event in ("auth", "register", "close"):
        assert sorted(line["connection"] for line in lines(event)) == [1, 2]
    log.info("somebody else's")
    assert "connection" not in lines("somebody else's")[0]


async def test_what_the_rooms_below_log_for_a_connection_has_its_number(
    relay: MemoryRelay, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_calls(owner: object, name: str) -> None:
        work = getattr(type(owner), name)

        async def logged(*given: Any, **named: Any) -> Any:
            log.info(name)
            return await work(*given, **named)

        monkeypatch.setattr(type(owner), name, logged)

    log_calls(relay.verifier, "verify")
    log_calls(relay.owners, "claim")
    log_calls(relay.alerts, "accept")
    await relay.phone("a", ANN)
    await relay.phone("b", BOB)
    alert = {"type": "alert", "streamId": "a", "severity": "low", "message": "m"}
    await (await relay.login(SENTRY)).ask(alert)
    assert [line["connection"] for line in lines("verify")] == [1, 2, 3]
    assert [line["connection"] for line in lines("claim")] == [1, 2]
    assert [line["connection"] for line in lines("accept")] == [3]


async def test_a_bug_is_logged_with_the_connection_that_met_it(
    relay: MemoryRelay, lines: Lines
) -> None:
    await relay.login(ANN)
    relay.verifier.broken = True
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    await client.has_ended()
    (line,) = lines("connection failed")
    assert line["connection"] == 2
    assert "a bug in verification" in line["exception"]


async def test_an_end_that_another_connection_brings_is_logged_by_the_one_that_ends(
    relay: MemoryRelay, lines: Lines
) -> None:
    first = await relay.phone()
    await relay.phone()
    await first.has_ended()
    (close,) = lines("close")
    assert (close["connection"], close["reason"]) == (1, "superseded")
    (takeover,) = lines("takeover")
    assert takeover["connection"] == 2


async def test_a_viewer_that_an_alert_finds_too_slow_ends_under_its_own_number(
    relay: MemoryRelay, lines: Lines
) -> None:
    await relay.phone()
    await relay.viewer(capacity=1024)
    sentry = await relay.login(SENTRY)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m" * 4000}
    while not lines("close"):
        await sentry.ask(alert)
    assert lines("close")[0]["connection"] == 2
