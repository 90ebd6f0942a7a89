"""What `relay target list` says of a target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import trio
from attrs import evolve, frozen

from relay.cli.targets.options import listed
from relay.model.targets.alert_target import AlertTarget

THERE = timezone(timedelta(hours=5, minutes=30))
MADE = datetime(2026, 11, 30, tzinfo=UTC)
TARGET = AlertTarget(
    *("ntfy_0", "ntfy", "https://ntfy.test/door", "", 0, None, "door", MADE),
    delivered=3,
    failures=0,
    try_again_at=None,
    last_error=None,
    given_up_at=None,
)


@frozen
class Targets:
    """The table, as far as it is asked."""

    shown: Sequence[AlertTarget]

    @property
    def alert_targets(self) -> Targets:
        return self

    async def all(self, _kind: str | None) -> list[tuple[AlertTarget, int]]:
        await trio.lowlevel.checkpoint()
        return [(each, 0) for each in self.shown]


async def said_of(target: AlertTarget) -> str:
    return await listed(cast("Any", Targets([target])))


async def test_times_say_their_zone() -> None:
    at = datetime(2026, 11, 30, 2, 15, 30, tzinfo=THERE)
    failing = evolve(TARGET, failures=2, try_again_at=at)
    assert "failed 2 times, next attempt at 20:45:30 UTC" in await said_of(failing)
    assert "given up 2026-11-29 20:45 UTC" in await said_of(evolve(TARGET, given_up_at=at))
