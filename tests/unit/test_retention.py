"""When alerts are removed; what goes is tested with the real table."""

from __future__ import annotations

from datetime import timedelta

import pytest
import trio
from attrs import define, field

from relay.alerts.retention import EVERY, PAUSE, Retention
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.postgres.alert_retention import BATCH, Excess
from relay.supervisor import PATIENCE, Supervisor

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class Table:
    """So many old alerts, and streams with so many that are too much."""

    old: int = 0
    excess: dict[str, int] = field(factory=dict)
    away: bool = False
    removals: list[tuple[float, int]] = field(factory=list)
    """When they were, and of how many."""
    hangs: bool = False

    async def remove_old(self, older_than: timedelta) -> int:
        if self.hangs:
            await trio.sleep_forever()
        removed = self._remove(self.old)
        self.old -= removed
        return removed

    async def find_excess(self, keep: int, *, after: str) -> tuple[list[Excess], str | None]:
        behind = sorted(each for each in self.excess if each > after)[:2]
        found = [Excess(each, 1) for each in behind if self.excess[each]]
        return found, behind[-1] if behind else None

    async def remove_excess(self, excess: Excess) -> int:
        removed = self._remove(self.excess[excess.stream_id])
        self.excess[excess.stream_id] -= removed
        return removed

    def _remove(self, there: int) -> int:
        if self.away:
            raise StoreUnavailable
        removed = min(there, BATCH)
        self.removals.append((trio.current_time(), removed))
        return removed


def service(table: Table) -> Retention:
    return Retention(table, Metrics(), timedelta(days=1), 100)  # type: ignore[arg-type]


async def test_it_goes_on_until_nothing_is_too_much_and_leaves_the_lock_in_between() -> None:
    table = Table(3 * BATCH + 1, {"a": 2 * BATCH, "b": 0, "c": 1, "d": BATCH})
    retention = service(table)
    await retention.look()
    assert (table.old, set(table.excess.values())) == (0, {0})
    assert retention._metrics.alerts_removed == 6 * BATCH + 2
    full = [time for time, removed in table.removals if removed == BATCH]
    later = [time for time, _ in table.removals[1:]]
    assert all(min(after for after in later if after > time) >= time + PAUSE / 2 for time in full)


async def test_the_store_away_is_no_reason_to_hurry_or_to_end() -> None:
    table = Table(1, away=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(service(table).run)
        await trio.sleep(1)
        table.away = False
        await trio.sleep(EVERY - 2)
        assert table.old == 1
        await trio.sleep(2)
        assert table.old == 0
        nursery.cancel_scope.cancel()


async def test_one_that_hangs_is_ended_and_started_again() -> None:
    table = Table(1, hangs=True)
    supervisor = Supervisor({"alert-retention": service(table)})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(PATIENCE - 1)
        assert supervisor.services["alert-retention"].restarts == 0
        table.hangs = False
        await trio.sleep(2)
        assert supervisor.services["alert-retention"].restarts == 1
        assert table.old == 0
        nursery.cancel_scope.cancel()


async def test_a_long_look_is_no_hang() -> None:
    table = Table(round(3 * PATIENCE / PAUSE) * BATCH)
    supervisor = Supervisor({"alert-retention": service(table)})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(4 * PATIENCE)
        assert (table.old, supervisor.services["alert-retention"].restarts) == (0, 0)
        nursery.cancel_scope.cancel()
