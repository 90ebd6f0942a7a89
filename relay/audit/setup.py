"""Makes the audit log that the settings ask for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from attrs import frozen

from relay.audit.log import AuditLog, AuditStore
from relay.concurrency.supervisor import SupervisedTask
from relay.settings.settings import Settings

ROWS_TASK, LINES_TASK = "audit", "audit-lines"
"""Names of the task: it writes rows, or it only sums up repetitions for the log."""


@frozen(eq=False, repr=False)
class AuditParts:
    """The audit log, and its tasks."""

    log: AuditLog
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""


def open_audit(settings: Settings, store: AuditStore, node: str | None = None) -> AuditParts:
    """The audit log of a node, if this is one; it writes no rows where the settings say so."""
    kept_for = timedelta(days=settings.audit_days)
    if not settings.audit:
        log = AuditLog(None, kept_for, node)
        return AuditParts(log, {LINES_TASK: log})
    log = AuditLog(store, kept_for, node)
    return AuditParts(log, {ROWS_TASK: log})
