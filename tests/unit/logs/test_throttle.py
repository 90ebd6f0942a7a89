"""A warning that repeats is logged now and then, and at once when its reason changes."""

from __future__ import annotations

import pytest
import structlog.testing
import trio

from relay.logs.throttle import MIN_INTERVAL, REPEAT_INTERVAL, ThrottledWarning

pytestmark = pytest.mark.mock_clock


async def test_a_warning_is_logged_at_once_and_then_now_and_then() -> None:
    warning = ThrottledWarning("the house burns")
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            warning.warn("fire")
            await trio.sleep(REPEAT_INTERVAL / 50)
    assert [(line["event"], line["why"]) for line in lines] == [("the house burns", "fire")] * 2


async def test_another_reason_is_logged_soon_and_two_that_alternate_do_not_fill_the_log() -> None:
    warning = ThrottledWarning("the house burns")
    with structlog.testing.capture_logs() as lines:
        for number in range(101):
            warning.warn("fire" if number % 2 else "lightning")
            await trio.sleep(MIN_INTERVAL / 10)
    assert [line["why"] for line in lines[:2]] == ["lightning", "fire"]
    assert len(lines) <= 12
