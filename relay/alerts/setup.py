"""Puts together what stores alerts, delivers them to connections and targets, and removes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol

from attrs import frozen

from relay.alerts.dispatch import AlertDispatch, AlertSignals, CommittedAlerts
from relay.alerts.event import alert_event
from relay.alerts.intake import AlertIntake, AlertWriter
from relay.alerts.outbox import Outbox, TargetQueue
from relay.alerts.retention import RemovableAlerts, Retention
from relay.alerts.stream_events import PresenceTable, StreamEventRecorder
from relay.alerts.targets.mqtt_streams import MqttStreamTable, RetainedStreams
from relay.alerts.targets.setup import (
    PushParts,
    PushStore,
    StillLinkMakers,
    base_url,
    open_adapters,
)
from relay.alerts.targets.still_links import (
    LinkMaker,
    LiveStreamsOfNodes,
    TargetStillLinks,
)
from relay.alerts.targets.web_push.waking import ViewerTargets, ViewerWaker
from relay.concurrency.activity import Activity
from relay.concurrency.supervisor import SupervisedTask
from relay.metrics import Metrics
from relay.model.alerts.alert import StoredAlert
from relay.model.alerts.picture_link import PictureLinks
from relay.model.targets.stream_event import StreamPresence
from relay.protocol.messages import AlertEvent
from relay.settings.settings import Settings
from relay.tracing.tracer import NO_TRACER, TracedStep, Tracer


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

    @property
    def stream_events(self) -> PresenceTable: ...

    @property
    def mqtt_streams(self) -> MqttStreamTable: ...

    @property
    def push_subscriptions(self) -> PushTables: ...

    @property
    def links(self) -> LinkMaker: ...

    @property
    def live_streams(self) -> LiveStreamsOfNodes: ...


class PushTables(PushStore, ViewerTargets, Protocol):
    """The browsers that want notifications."""


class WritableAlerts(AlertWriter, CommittedAlerts, Protocol):
    """The table of alerts, to write to and to read in the order of commits."""


class LocalStreams(Protocol):
    """The streams of this process."""

    def deliver(self, alert: AlertEvent, owner_id: str) -> int:
        """Give an alert, whose stream has this owner, to the connections that consume it; returns
        how many these are."""

    def presences(self) -> Iterable[StreamPresence]:
        """The live streams that are produced here."""

    def sends_jpeg(self, stream_id: str) -> bool | None:
        """Whether the pictures of a live stream are JPEG; None if it is not known here."""


@frozen(eq=False, repr=False)
class AlertParts:
    """The intake of alerts, and the tasks behind it."""

    intake: AlertIntake
    stream_events: StreamEventRecorder
    push: PushParts
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""


@asynccontextmanager
async def open_alerts(
    settings: Settings,
    tables: AlertTables,
    streams: LocalStreams,
    metrics: Metrics,
    activity: Activity,
    *,
    links: PictureLinks | None = None,
    tracer: Tracer = NO_TRACER,
) -> AsyncIterator[AlertParts]:
    """Everything that handles alerts, until the block ends.

    The alerts that are committed from now on are delivered to the consumers of `streams` that are
    connected. `activity` says whether anybody is. `links` signs links to what is kept with alerts.
    `StoreUnavailable` when the database does not answer, `ConfigError` when `push_key` is no key.
    """
    push = PushParts.build(settings, tables.push_subscriptions)
    if settings.push_key is not None:
        await push.keys.key()  # `ConfigError` now, not when the first browser subscribes
    stills = _still_links(settings, tables, streams)
    async with open_adapters(settings, push, stills, tables.mqtt_streams) as targets:
        outbox = Outbox(tables.alert_targets, targets.adapters, metrics, activity, links, tracer)
        retained = RetainedStreams(
            tables.mqtt_streams,
            targets.brokers,
            settings.mqtt_topic,
            base_url(settings),
            activity,
        )

        recorder = StreamEventRecorder(
            tables.stream_events, streams.presences, settings.offline_grace, activity
        )

        waker = ViewerWaker(tables.push_subscriptions, outbox.wake, activity)

        def wake_outbox() -> None:
            outbox.wake()
            waker.wake()
            recorder.look()
            retained.look()

        def deliver_everywhere(alert: StoredAlert) -> None:
            outbox.wake()
            waker.wake()
            with tracer.follow(TracedStep.DISPATCH, alert.trace) as span:
                span.note("alert.id", alert.alert_id)
                span.note("consumers", streams.deliver(alert_event(alert), alert.owner_id))

        dispatch = AlertDispatch(
            tables.alerts,
            deliver_everywhere,
            tables.alert_notifications,
            metrics,
            activity,
            wake_outbox,
        )
        intake = AlertIntake(tables.alerts, metrics, dispatch.wake, tracer)
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
            recorder,
            push,
            {
                "alert-intake": intake.service,
                "alert-dispatch": dispatch,
                "alert-retention": retention,
                "alert-outbox": outbox,
                "stream-events": recorder,
                "mqtt-streams": retained,
                **({"viewer-waker": waker} if push.services else {}),
            },
        )


def _still_links(settings: Settings, tables: AlertTables, streams: LocalStreams) -> StillLinkMakers:
    def links_from(url: str) -> TargetStillLinks:
        return TargetStillLinks(tables.links, tables.live_streams, streams.sends_jpeg, url)

    url = base_url(settings)
    return StillLinkMakers(None if url is None else links_from(url), links_from(""))
