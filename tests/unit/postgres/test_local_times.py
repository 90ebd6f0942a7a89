"""Times without a zone that seem to be in another one."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from relay.postgres.tables.sessions.local_times import LocalTimes, offset_of_newest

HOUR = 3600.0
DAY = 24 * HOUR


@pytest.mark.parametrize(
    ("ages", "offset"),
    [
        ([], None),
        ([10.0], None),
        ([-2 * HOUR + 10], 2 * HOUR),
        ([5 * HOUR + 10], -5 * HOUR),
        ([5 * HOUR + 10 + 60 * n for n in range(20)], -5 * HOUR),
        ([-9.5 * HOUR + HOUR * n for n in range(20)], 9.5 * HOUR),
        # Somebody signs in every few hours, and the last one did so two hours ago.
        ([2 * HOUR + 10 + 3 * HOUR * n for n in range(20)], None),
        ([2 * HOUR + 10 + HOUR * n for n in range(20)], None),
        # An infinite time, and that of a clock which is wrong.
        ([-8000 * 365 * DAY, 10.0], None),
        ([-3 * DAY], None),
    ],
)
def test_an_offset_is_told_from_the_newest_sessions(
    ages: list[float], offset: float | None
) -> None:
    assert offset_of_newest(ages) == offset


def test_an_infinite_time_does_not_hide_later_ones() -> None:
    now = 1_800_000_000.0
    times = LocalTimes("UTC")
    with capture_logs() as logs:
        times.note(now + 8000 * 365 * DAY, -8000 * 365 * DAY)
        assert logs == []
        times.note(now + 2 * HOUR, -2 * HOUR + 1)
    assert [entry["off_by"] for entry in logs] == ["+2:00 h"]
