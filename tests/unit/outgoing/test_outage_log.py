"""What is logged of servers that fail and recover."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from relay.outgoing.http_client import MAX_OUTAGE_LINES, OUTAGE_WINDOW, OutageLog

pytestmark = pytest.mark.mock_clock


async def test_each_change_is_logged_once() -> None:
    outage = OutageLog("application")
    with capture_logs() as logs:
        for step in (outage.succeeded, outage.succeeded):
            step()
        for why in ("too slow", "too slow", "status 500"):
            outage.failed(why)
        outage.succeeded()
        outage.succeeded()
    assert [entry.get("why") for entry in logs] == ["too slow", "status 500", None]


async def test_a_server_that_fails_for_some_does_not_fill_the_log() -> None:
    outage = OutageLog("application")
    with capture_logs() as logs:
        for _ in range(1000):
            outage.failed("status 400")
            outage.succeeded()
        assert len(logs) == MAX_OUTAGE_LINES
        outage.failed("status 500")
        await trio.sleep(OUTAGE_WINDOW)
        outage.failed("status 500")
    assert logs[-1]["why"] == "status 500"
    assert len(logs) == MAX_OUTAGE_LINES + 1
