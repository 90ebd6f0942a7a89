"""What is wrong for a while is in the log now and then, and at once when it changes."""

from __future__ import annotations

import pytest
import structlog.testing
import trio

from relay.complaints import EVERY, LEAST, Complaint

pytestmark = pytest.mark.mock_clock


async def test_it_is_said_at_once_and_then_now_and_then() -> None:
    complaint = Complaint("the house burns")
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            complaint.say("fire")
            await trio.sleep(EVERY / 50)
    assert [(line["event"], line["why"]) for line in lines] == [("the house burns", "fire")] * 2


async def test_a_change_is_said_soon_and_two_that_alternate_fill_no_log() -> None:
    complaint = Complaint("the house burns")
    with structlog.testing.capture_logs() as lines:
        for number in range(101):
            complaint.say("fire" if number % 2 else "lightning")
            await trio.sleep(LEAST / 10)
    assert [line["why"] for line in lines[:2]] == ["lightning", "fire"]
    assert len(lines) <= 12
