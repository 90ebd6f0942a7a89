"""Puts together what stores alerts, delivers them to connections and targets, and removes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol

from attrs import frozen

from relay.alerts.dispatch import AlertDispatch, AlertSignals, CommittedAlerts
from relay.alerts.event import alert_event
from relay.alerts.intake import AlertIntake, AlertWriter
from relay.alerts.outbox import Outbox, TargetQueue
from relay.alerts.retention import RemovableAlerts, Retention
from relay.alerts.targets.setup import open_adapters
from relay.concurrency.activity import Activity
from relay.concurrency.supervisor import SupervisedTask
from relay.metrics import Metrics
from relay.model.alert import StoredAlert
from relay.protocol.messages import AlertEvent
from relay.settings.settings import Settings


class AlertTables(Protocol):
    """The tables of alerts and targets, and the notifications of new alerts."""

    @property
    def alerts(self) -> WritableAlerts: ...

    @property
    def alert_pruner(self) -> RemovableAlerts: ...

    @property
    def alert_notifications(self) -> AlertSignals: ...

    @property
    def alert_targets(self) -> TargetQueue: ...


class WritableAlerts(AlertWriter, CommittedAlerts, Protocol):
    """The table of alerts, to write to and to read in the order of commits."""


@frozen
class AlertParts:
    """The intake of alerts, and the tasks behind it."""

    intake: AlertIntake
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""


@asynccontextmanager
async def open_alerts(
    settings: Settings,
    tables: AlertTables,
    deliver: Callable[[AlertEvent, str], object],
    metrics: Metrics,
    activity: Activity,
) -> AsyncIterator[AlertParts]:
    """Everything that handles alerts, until the block ends.

    `deliver` gives an alert, and the owner of its stream, to the consumers that are connected: the
    alerts that are committed from now on. `activity` says whether anybody is. `StoreUnavailable`
    when the database does not answer.
    """
    async with open_adapters(settings) as adapters:
        outbox = Outbox(tables.alert_targets, adapters, metrics, activity)

        def deliver_everywhere(alert: StoredAlert) -> None:
            outbox.wake()
            deliver(alert_event(alert), alert.owner_id)

        dispatch = AlertDispatch(
            tables.alerts,
            deliver_everywhere,
            tables.alert_notifications,
            metrics,
            activity,
            outbox.wake,
        )
        intake = AlertIntake(tables.alerts, metrics, dispatch.wake)
        retention = Retention(
            tables.alert_pruner,
            metrics,
            timedelta(days=settings.alert_days),
            settings.alerts_per_stream,
            activity,
        )
        await dispatch.begin()
        yield AlertParts(
            intake,
            {
                "alert-intake": intake.service,
                "alert-dispatch": dispatch,
                "alert-retention": retention,
                "alert-outbox": outbox,
            },
        )
