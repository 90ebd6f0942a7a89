"""When alerts are removed; what goes is tested with the real table."""

from __future__ import annotations

from datetime import timedelta

import pytest
import trio
from attrs import define, field

from relay.alerts.retention import REMOVAL_BATCH, REMOVAL_PAUSE, RETENTION_INTERVAL, Retention
from relay.concurrency.supervisor import PROGRESS_TIMEOUT, Supervisor
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.model.alerts.alert import ExcessAlerts, ExcessBytes

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class AlertPruner:
    """So many old alerts, and streams with so many that are too much."""

    old: int = 0
    excess: dict[str, int] = field(factory=dict)
    heavy: dict[str, list[int]] = field(factory=dict)
    """The bytes of each alert of senders with too many."""
    cooldowns: int = 0
    away: bool = False
    removals: list[tuple[float, int]] = field(factory=list)
    """When they were, and of how many."""
    hangs: bool = False

    async def remove_old(self, older_than: timedelta, *, most: int) -> int:
        if self.hangs:
            await trio.sleep_forever()
        removed = self._remove(self.old, most)
        self.old -= removed
        return removed

    async def find_excess(self, keep: int, *, after: str) -> tuple[list[ExcessAlerts], str | None]:
        behind = sorted(each for each in self.excess if each > after)[:2]
        found = [ExcessAlerts(each, 1) for each in behind if self.excess[each]]
        return found, behind[-1] if behind else None

    async def remove_excess(self, excess: ExcessAlerts, *, most: int) -> int:
        removed = self._remove(self.excess[excess.stream_id], most)
        self.excess[excess.stream_id] -= removed
        return removed

    async def find_heavy(self) -> list[ExcessBytes]:
        return [ExcessBytes(sender, sum(sizes)) for sender, sizes in self.heavy.items()]

    async def remove_heavy(self, excess: ExcessBytes, *, most: int) -> tuple[int, int]:
        sizes = self.heavy[excess.sender]
        going = sizes[:most]
        del sizes[:most]
        return len(going), sum(going)

    async def remove_cooldowns(self, *, most: int) -> int:
        removed = min(self.cooldowns, most)
        self.cooldowns -= removed
        return removed

    def _remove(self, there: int, most: int) -> int:
        if self.away:
            raise StoreUnavailable
        removed = min(there, most)
        self.removals.append((trio.current_time(), removed))
        return removed


def service(table: AlertPruner) -> Retention:
    return Retention(table, Metrics(), timedelta(days=1), 100)


async def test_it_goes_on_until_nothing_is_too_much_and_leaves_the_lock_in_between() -> None:
    table = AlertPruner(
        3 * REMOVAL_BATCH + 1, {"a": 2 * REMOVAL_BATCH, "b": 0, "c": 1, "d": REMOVAL_BATCH}
    )
    table.cooldowns = 2 * REMOVAL_BATCH
    retention = service(table)
    await retention.remove_all()
    assert (table.old, set(table.excess.values()), table.cooldowns) == (0, {0}, 0)
    assert retention._metrics.alerts_removed == 6 * REMOVAL_BATCH + 2
    full = [time for time, removed in table.removals if removed == REMOVAL_BATCH]
    later = [time for time, _ in table.removals[1:]]
    assert all(
        min(after for after in later if after > time) >= time + REMOVAL_PAUSE / 2 for time in full
    )


async def test_the_store_away_is_no_reason_to_hurry_or_to_end() -> None:
    table = AlertPruner(1, away=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(service(table).run)
        await trio.sleep(1)
        table.away = False
        await trio.sleep(RETENTION_INTERVAL - 2)
        assert table.old == 1
        await trio.sleep(2)
        assert table.old == 0
        nursery.cancel_scope.cancel()


async def test_one_that_hangs_is_ended_and_started_again() -> None:
    table = AlertPruner(1, hangs=True)
    supervisor = Supervisor({"alert-retention": service(table)})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(PROGRESS_TIMEOUT - 1)
        assert supervisor.tasks["alert-retention"].restarts == 0
        table.hangs = False
        await trio.sleep(2)
        assert supervisor.tasks["alert-retention"].restarts == 1
        assert table.old == 0
        nursery.cancel_scope.cancel()


async def test_a_long_look_is_no_hang() -> None:
    table = AlertPruner(round(3 * PROGRESS_TIMEOUT / REMOVAL_PAUSE) * REMOVAL_BATCH)
    supervisor = Supervisor({"alert-retention": service(table)})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(4 * PROGRESS_TIMEOUT)
        assert (table.old, supervisor.tasks["alert-retention"].restarts) == (0, 0)
        nursery.cancel_scope.cancel()
