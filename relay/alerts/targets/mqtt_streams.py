"""Keeps true what MQTT brokers retain of streams: their state, and Home Assistant's discovery.

A supervised task. It keeps the connections to the brokers of all targets, so that relay's status is
there before the first event. When a connection was made, and when streams came or were forgotten,
it publishes what is so, under the lease of the target: so no other process delivers an event of
it meanwhile, and nothing old is told behind something new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NoReturn, Protocol
from uuid import UUID, uuid4

import structlog
import trio
from attrs import define, field

from relay.alerts.targets.mqtt import (
    PAHO_MISSING,
    AnnouncedStreams,
    MqttBrokers,
    TopicPublisher,
    check_mqtt_installed,
)
from relay.alerts.targets.mqtt_messages import (
    MqttMessage,
    StreamTopics,
    discovery_message,
    state_message,
    tells_state,
    tells_watched,
    withdrawals,
)
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.mqtt_stream import MqttStream
from relay.outgoing.mqtt_refusal import MessageRefused
from relay.outgoing.webhook_client import Undelivered

MQTT_LOOK_INTERVAL = 15.0
"""Seconds between two looks for streams that came or were forgotten, while anybody is connected."""
UNUSED_LOOK_INTERVAL = 60.0
"""The same, while there is no target."""
MQTT_LOOK_PACE = 0.5
"""Seconds between two looks at least."""
STREAMS_AT_ONCE = 50
"""Of which messages are published under one lease."""
AT_ONCE_TIMEOUT = 20.0
"""Seconds for those, less than the lease lasts."""
REFRESH_LEASE = timedelta(seconds=30)
LEASE_RETRY_INTERVAL = 0.5
"""Seconds until a target is asked for again that is being delivered to."""
LEASE_RETRIES = 20

SomeDone = tuple[str | None, MessageRefused | None]
"""The last stream of those that some work was done for, None at the end of all, and why the broker
has refused some of it."""
SomeStreams = Callable[[str], Awaitable[SomeDone]]
"""Some work for the next few streams after one."""

log = structlog.get_logger()


class MqttStreamTable(AnnouncedStreams, Protocol):
    """The targets, and the streams of which brokers retain messages; `StoreUnavailable`."""

    async def targets(self) -> Sequence[AlertTarget]:
        """The targets of the kind that are not given up."""

    async def lease(self, target: AlertTarget, lease: UUID, *, lasts: timedelta) -> bool:
        """Lease a target as the outbox does; False while another one has it."""

    async def release(self, target: AlertTarget, lease: UUID) -> None:
        """End a lease."""

    async def retry_now(self, target: AlertTarget) -> None:
        """Let the outbox try at once what has failed before."""

    async def has_changed(self, target: AlertTarget) -> bool:
        """Whether streams are to be announced or withdrawn."""

    async def streams(
        self, target: AlertTarget, after: str, most: int, *, announced: bool
    ) -> Sequence[MqttStream]:
        """What is so of the streams that a target is told of, in the order of their ids: of those
        that were announced, or of the others."""

    async def forgotten(self, target: AlertTarget, most: int) -> Sequence[str]:
        """Streams that were announced, and that the target is told of no more."""

    async def withdraw(self, target: AlertTarget, stream_ids: Sequence[str]) -> None:
        """Note that nothing is retained of these streams any more."""


@define(eq=False, repr=False)
class RetainedStreams:
    """The supervised task."""

    _table: MqttStreamTable
    _brokers: MqttBrokers
    _base: str
    _public_url: str | None = None
    _activity: Activity = field(factory=always_active)
    progress: Progress = field(init=False, factory=Progress)
    """One query."""
    _lease: UUID = field(factory=uuid4)
    _look: Wakeup = field(factory=Wakeup)
    _refreshed: dict[str, int] = field(factory=dict)
    """For each target, the number of the connection on which all was published."""
    _busy: set[str] = field(factory=set)
    """Targets that are being published to."""
    _failing: set[str] = field(factory=set)
    """Targets that a warning was logged of."""
    _has_warned: bool = False

    def __attrs_post_init__(self) -> None:
        self._activity.on_begin(self._look.set)
        self._brokers.on_connected = self._look.set

    def look(self) -> None:
        """Tell that there may be other targets."""
        self._look.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._busy.clear()
        self._refreshed.clear()
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                targets = await self._targets()
                for target in targets:
                    if target.target_id not in self._busy and self._is_connected(target):
                        self._busy.add(target.target_id)
                        nursery.start_soon(self._refresh, target)
                await trio.sleep(MQTT_LOOK_PACE)
                with trio.move_on_after(self._pause(targets)):
                    await self._look.wait()

    def _pause(self, targets: Sequence[AlertTarget]) -> float:
        if not self._activity.active:
            return REST_INTERVAL
        return MQTT_LOOK_INTERVAL if targets else UNUSED_LOOK_INTERVAL

    async def _targets(self) -> Sequence[AlertTarget]:
        try:
            with self.progress:
                targets = await self._table.targets()
        except (StoreUnavailable, StoreRejects):
            return []
        if targets and not self._can_connect():
            return []
        usable = [each for each in targets if self._is_usable(each)]
        self._brokers.keep(usable)
        for gone in self._refreshed.keys() - {each.target_id for each in usable}:
            del self._refreshed[gone]
        self._failing &= {each.target_id for each in usable}
        return usable

    def _can_connect(self) -> bool:
        try:
            check_mqtt_installed()
        except ConfigError:
            if not self._has_warned:
                self._has_warned = True
                log.warning("mqtt is not available", why=PAHO_MISSING)
            return False
        return True

    def _is_usable(self, target: AlertTarget) -> bool:
        try:
            self._brokers.of(target)
        except ConfigError:  # somebody has written it into the table
            return False
        return True

    def _is_connected(self, target: AlertTarget) -> bool:
        return self._brokers.of(target).is_connected

    async def _refresh(self, target: AlertTarget) -> None:
        broker = self._brokers.of(target)
        number = broker.connections
        try:
            if self._refreshed.get(target.target_id) != number:
                refused = await self._publish_all(target, broker)
                await self._table.retry_now(target)
            elif await self._table.has_changed(target):
                self._refreshed.pop(target.target_id, None)  # until the changes are there
                refused = await self._publish_changes(target, broker)
            else:
                return
            self._refreshed[target.target_id] = number
            if refused is None:
                self._failing.discard(target.target_id)
            else:
                self._note_failure(target, str(refused))
        except Undelivered as why:
            self._note_failure(target, str(why))
        except trio.TooSlowError:
            self._note_failure(target, f"it takes longer than {AT_ONCE_TIMEOUT:g} s")
        except (StoreUnavailable, StoreRejects):
            pass  # at the next look
        finally:
            self._busy.discard(target.target_id)

    def _note_failure(self, target: AlertTarget, why: str) -> None:
        """What failed is tried at the next look; what the broker has refused, when it is connected
        to again."""
        if target.target_id not in self._failing:
            self._failing.add(target.target_id)
            log.warning("mqtt states not published", mqtt=target.target_id, why=why)

    async def _publish_all(
        self, target: AlertTarget, broker: TopicPublisher
    ) -> MessageRefused | None:
        """Publish what is so of all streams; returns why the broker has refused some of it."""
        announced = partial(self._publish_some, target, broker, announced=True)
        refused = await self._go_through(target, announced)
        return await self._publish_changes(target, broker) or refused

    async def _publish_changes(
        self, target: AlertTarget, broker: TopicPublisher
    ) -> MessageRefused | None:
        """Withdraw what is known no more, then publish what is new, while there is room for it."""
        refused = await self._go_through(target, partial(self._withdraw_some, target, broker))
        new = partial(self._publish_some, target, broker, announced=False)
        return await self._go_through(target, new) or refused

    async def _go_through(self, target: AlertTarget, work: SomeStreams) -> MessageRefused | None:
        """Go through streams, under a lease for each few of them."""
        refused: MessageRefused | None = None
        after: str | None = ""
        while after is not None:
            if not await self._wait_for_lease(target):
                raise StoreUnavailable("another process delivers to it for long")
            try:
                with trio.fail_after(AT_ONCE_TIMEOUT):
                    after, why = await work(after)
                    refused = why or refused
            finally:
                with trio.move_on_after(2, shield=True), suppress(StoreUnavailable, StoreRejects):
                    await self._table.release(target, self._lease)
        return refused

    async def _wait_for_lease(self, target: AlertTarget) -> bool:
        for _ in range(LEASE_RETRIES):
            if await self._table.lease(target, self._lease, lasts=REFRESH_LEASE):
                return True
            await trio.sleep(LEASE_RETRY_INTERVAL)
        return False

    async def _withdraw_some(
        self, target: AlertTarget, broker: TopicPublisher, _after: str
    ) -> SomeDone:
        forgotten = await self._table.forgotten(target, STREAMS_AT_ONCE)
        refused = await withdraw_streams(broker, target, self._base, forgotten)
        if forgotten:  # also what the broker has refused: it would refuse it again and again
            await self._table.withdraw(target, forgotten)
        return (None if len(forgotten) < STREAMS_AT_ONCE else forgotten[-1]), refused

    async def _publish_some(
        self, target: AlertTarget, broker: TopicPublisher, after: str, *, announced: bool
    ) -> SomeDone:
        streams = await self._table.streams(target, after, STREAMS_AT_ONCE, announced=announced)
        ids = [each.stream_id for each in streams]
        known = (await self._table.announce(target, ids)).known
        messages: list[MqttMessage] = []
        for each in streams:
            if each.stream_id in known:
                messages += self._messages(target, each)
        refused = await _publish_each(broker, messages)
        if len(streams) < STREAMS_AT_ONCE or len(known) < len(ids):
            return None, refused
        return ids[-1], refused

    def _messages(self, target: AlertTarget, stream: MqttStream) -> list[MqttMessage]:
        topics = StreamTopics(self._base, stream.stream_id)
        config = discovery_message(target, topics, self._public_url)
        found = [] if config is None else [config]
        if tells_state(target):
            state = "online" if stream.online else "offline"
            if stream.watched and tells_watched(target):
                state = "watched"
            found.append(state_message(topics, state))
        return found


async def withdraw_streams(
    broker: TopicPublisher, target: AlertTarget, base: str, stream_ids: Sequence[str]
) -> MessageRefused | None:
    """Remove all that the broker retains of these streams; returns why the broker has refused to
    remove some of it. `Undelivered`."""
    refused: MessageRefused | None = None
    for first in range(0, len(stream_ids), STREAMS_AT_ONCE):
        messages: list[MqttMessage] = []
        for stream_id in stream_ids[first : first + STREAMS_AT_ONCE]:
            messages += withdrawals(target, StreamTopics(base, stream_id))
        refused = await _publish_each(broker, messages) or refused
    return refused


async def _publish_each(
    broker: TopicPublisher, messages: Sequence[MqttMessage]
) -> MessageRefused | None:
    """Publish messages, of which each may overtake the others; returns why the broker has refused
    one. `Undelivered`."""
    refused: list[MessageRefused] = []
    failed: list[Undelivered] = []

    async def publish(message: MqttMessage) -> None:
        try:
            await broker.publish(message.topic, message.payload, retain=message.retain)
        except MessageRefused as why:
            refused.append(why)
        except Undelivered as why:
            failed.append(why)

    async with trio.open_nursery() as nursery:
        for each in messages:
            nursery.start_soon(publish, each)
    if failed:
        raise failed[0]
    return refused[0] if refused else None
