"""The audit log that the settings ask for."""

from __future__ import annotations

from datetime import timedelta

import pytest
import structlog
import trio

from relay.audit.log import AUDIT_LINGER
from relay.audit.setup import open_audit
from relay.settings.settings import Settings
from tests.unit.memory import MemoryAuditStore

pytestmark = pytest.mark.mock_clock


async def test_its_task_writes_rows_and_prunes_them_by_the_settings() -> None:
    rows = MemoryAuditStore(old=1)
    audit = open_audit(Settings(audit_days=3), rows)
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.tasks["audit"].run)
        audit.log.record("auth", outcome="failed")
        await trio.sleep(AUDIT_LINGER + 0.1)
        assert [row.what for row in rows.rows] == ["auth"]
        assert rows.pruned == [(timedelta(days=3), 1)]
        nursery.cancel_scope.cancel()


async def test_without_rows_its_task_sums_up_and_nothing_waits() -> None:
    rows = MemoryAuditStore()
    audit = open_audit(Settings(audit=False), rows)
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            await nursery.start(audit.tasks["audit-lines"].run)
            for _ in range(100):
                audit.log.record("close", outcome="forced", reason="rate_limited")
            nursery.cancel_scope.cancel()
    assert [line["reason"] for line in lines] == ["rate_limited", "rate_limited, 99 more"]
    assert (audit.log.waiting, rows.rows) == (0, [])
