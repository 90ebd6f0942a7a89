"""The parts that handle alerts, put together."""

from __future__ import annotations

import pytest
import trio
from attrs import define, field

from relay.alerts.setup import open_alerts
from relay.concurrency.activity import Activity
from relay.metrics import Metrics
from relay.model.targets.stream_event import StreamPresence
from relay.protocol.messages import AlertEvent
from relay.settings.settings import Settings
from tests.mqtt_stream_table import MqttStreamTable
from tests.presence_table import PresenceTable
from tests.unit.alerts.push_store import PushStore
from tests.unit.alerts.test_dispatch import AlertSignals, AlertTable, new
from tests.unit.alerts.test_outbox import TargetQueue
from tests.unit.alerts.test_retention import AlertPruner
from tests.unit.alerts.test_still_links import LinkTable, LiveStreamTable

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class AlertTables:
    """The tables of alerts, in memory."""

    alerts: AlertTable = field(factory=AlertTable)
    alert_pruner: AlertPruner = field(factory=lambda: AlertPruner(old=1))
    alert_notifications: AlertSignals = field(factory=AlertSignals)
    alert_targets: TargetQueue = field(factory=TargetQueue)
    stream_events: PresenceTable = field(factory=PresenceTable)
    mqtt_streams: MqttStreamTable = field(factory=MqttStreamTable)
    push_subscriptions: PushStore = field(factory=PushStore)
    links: LinkTable = field(factory=LinkTable)
    live_streams: LiveStreamTable = field(factory=LiveStreamTable)


async def test_alerts_that_are_committed_from_now_on_are_delivered_and_old_ones_removed() -> None:
    store, metrics = AlertTables(), Metrics()
    store.alerts.commit(new("before"))
    delivered: list[tuple[str, str]] = []

    class Streams:
        def deliver(self, alert: AlertEvent, owner_id: str) -> int:
            delivered.append((alert.message, owner_id))
            return 0

        def presences(self) -> list[StreamPresence]:
            return []

        def sends_jpeg(self, stream_id: str) -> None:
            return None

    async with (
        open_alerts(Settings(), store, Streams(), metrics, Activity()) as alerts,
        trio.open_nursery() as nursery,
    ):
        store.alerts.commit(new("after"))
        for task in alerts.tasks.values():
            await nursery.start(task.run)
        claims = store.alert_targets.claims
        stored = await alerts.intake.accept(new("accepted"))
        assert stored is not None
        await trio.sleep(1)
        assert delivered == [("after", "ann"), ("accepted", "ann")]
        assert store.alert_targets.claims > claims
        assert (metrics.alerts_stored, metrics.alerts_removed) == (1, 1)
        nursery.cancel_scope.cancel()
