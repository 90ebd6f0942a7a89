"""Publishes events to MQTT brokers, among them that of Home Assistant.

An event counts as delivered when the broker has acknowledged all its messages. What a broker
retains of a stream is withdrawn by `mqtt_streams.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Protocol

import msgspec
import structlog
import trio
from attrs import define, evolve, field, frozen

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    RetryLater,
    Undeliverable,
)
from relay.alerts.targets.mqtt_messages import (
    MqttMessage,
    StreamTopics,
    alert_message,
    discovery_message,
    event_message,
    status_topic,
    tells_state,
)
from relay.alerts.targets.ntfy import STILL_LINK_TIMEOUT, StillLinks
from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.mqtt_stream import AnnouncedNow
from relay.model.targets.outbox import event_id_of
from relay.outgoing.mqtt_broker import BrokerAddress, BrokerDialer, MqttBroker, parse_broker_url
from relay.outgoing.mqtt_refusal import MessageRefused
from relay.outgoing.webhook_client import Undelivered

MQTT_KIND = "mqtt"
PAHO_MISSING = "MQTT needs paho-mqtt: install relay with its extra `mqtt`"

log = structlog.get_logger()


class AnnouncedStreams(Protocol):
    """The streams that each target's broker retains messages of; `StoreUnavailable`."""

    async def announce(self, target: AlertTarget, stream_ids: Collection[str]) -> AnnouncedNow:
        """Note that messages of these streams will be retained, as many as there is room for."""


class TopicPublisher(Protocol):
    """A connection to a broker."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Return when it is acknowledged; `MessageRefused` if the broker takes others but not this
        one, `Undelivered`."""


def check_mqtt_installed() -> None:
    """`ConfigError` without paho-mqtt, with what to install."""
    if find_spec("paho") is None:
        raise ConfigError(PAHO_MISSING)


def address_of(target: AlertTarget) -> BrokerAddress:
    """Where the broker of a target is, and how to log in there; `ConfigError`."""
    user, colon, password = target.secret.partition(":")
    return evolve(
        parse_broker_url(target.url),
        user=user or None,
        password=password if colon else None,
        authority=target.options.get("authority"),
    )


@define(eq=False, repr=False)
class KeptBroker:
    """A broker, and what ends its connection."""

    broker: MqttBroker
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@define(eq=False, repr=False)
class MqttBrokers:
    """The connections to the brokers of all targets, one for each broker and login."""

    _nursery: trio.Nursery
    _dialer: BrokerDialer
    _status_topic: str | None
    """None: do not say whether this relay is there."""
    on_connected: Callable[[], None] = lambda: None
    _kept: dict[BrokerAddress, KeptBroker] = field(factory=dict)

    def of(self, target: AlertTarget) -> MqttBroker:
        """The broker of a target, which is connected to from now on; `ConfigError`."""
        address = address_of(target)
        kept = self._kept.get(address)
        if kept is None:
            broker = MqttBroker(
                partial(self._dialer.dial, address),
                address.user,
                address.password,
                self._status_topic,
                self.on_connected,
            )
            kept = self._kept[address] = KeptBroker(broker)
            self._nursery.start_soon(self._run, kept)
        return kept.broker

    def keep(self, targets: Sequence[AlertTarget]) -> None:
        """End the connections to brokers of no target."""
        wanted = {address_of(each) for each in targets}
        for address in self._kept.keys() - wanted:
            self._kept.pop(address).scope.cancel()

    async def _run(self, kept: KeptBroker) -> None:
        with kept.scope:
            await kept.broker.run()


@asynccontextmanager
async def open_brokers(
    networks: Sequence[str], base: str, *, stays: bool
) -> AsyncIterator[MqttBrokers]:
    """The connections to brokers, until the block ends. Unless this relay `stays`, brokers are not
    told that it is there. What the block raises comes out as it is, and in no group."""
    problem: Exception | None = None
    async with trio.open_nursery() as nursery:
        topic = status_topic(base) if stays else None
        try:
            yield MqttBrokers(nursery, BrokerDialer.to(networks), topic)
        except Exception as error:  # noqa: BLE001 - it is raised again
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


@frozen(eq=False, repr=False)
class MqttAdapter:
    """The kind `mqtt`. A `TargetAdapter`."""

    _brokers: MqttBrokers
    _base: str
    """The topic that all others are below."""
    _announced: AnnouncedStreams | None = None
    """None: nothing but tests is delivered."""
    _links: StillLinks | None = None
    _public_url: str | None = None

    async def deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        assert self._announced is not None
        stream_id = delivery.event.stream_id
        try:
            announced = await self._announced.announce(target, [stream_id])
        except (StoreUnavailable, StoreRejects):
            return RetryLater("the database is away")
        picture = await self._picture(target, delivery)
        try:
            messages = self._messages(target, delivery, announced, picture)
        except Exception:  # what other programs have stored must not stop what is behind it
            event_id = event_id_of(delivery.event)
            log.exception("event not published", target=target.target_id, event_id=event_id)
            return Undeliverable()
        outcome = await self._publish(target, messages)
        if isinstance(outcome, Undeliverable):
            return await self._publish_briefly(target, delivery, picture)
        return outcome

    async def test(self, target: AlertTarget) -> DeliveryOutcome:
        content = msgspec.json.encode({"message": "relay can reach this broker"})
        return await self._publish(target, [MqttMessage(f"{self._base}/test", content)])

    async def _picture(self, target: AlertTarget, delivery: Delivery) -> str | None:
        if not target.options.get("picture") or self._links is None:
            return None
        if not isinstance(delivery.event, StoredAlert):
            return None
        with trio.move_on_after(STILL_LINK_TIMEOUT):
            return await self._links.link_to(target, delivery.event.stream_id)
        return None

    def _messages(
        self,
        target: AlertTarget,
        delivery: Delivery,
        announced: AnnouncedNow,
        picture: str | None,
    ) -> list[MqttMessage]:
        event, topics = delivery.event, StreamTopics(self._base, delivery.event.stream_id)
        found: list[MqttMessage] = []
        # Again after a failure, for it may not have come through.
        if event.stream_id in (announced.known if target.failures else announced.new):
            config = discovery_message(target, topics, self._public_url)
            found += [] if config is None else [config]
        if picture is not None:
            found.append(MqttMessage(topics.picture, picture.encode()))
        if isinstance(event, StoredAlert):
            found.append(alert_message(topics, delivery, picture))
        else:
            state = event_message(topics, event, target)
            # One that is not told of both would stay wrong.
            retain = event.stream_id in announced.known and tells_state(target)
            found.append(evolve(state, retain=retain))
        return found

    async def _publish(
        self, target: AlertTarget, messages: Sequence[MqttMessage]
    ) -> DeliveryOutcome:
        """Publish the last of these messages, behind the others, which may be refused."""
        if find_spec("paho") is None:
            return RetryLater(PAHO_MISSING)
        try:
            broker = self._brokers.of(target)
            for each in messages[:-1]:
                with suppress(MessageRefused):
                    await broker.publish(each.topic, each.payload, retain=each.retain)
            last = messages[-1]
            await broker.publish(last.topic, last.payload, retain=last.retain)
        except MessageRefused as why:
            return Undeliverable() if why.is_unfit else RetryLater(str(why))
        except (Undelivered, ConfigError) as why:
            return RetryLater(str(why))
        return Delivered()

    async def _publish_briefly(
        self, target: AlertTarget, delivery: Delivery, picture: str | None
    ) -> DeliveryOutcome:
        """Publish an alert that is too large for the broker without what makes it large."""
        event = delivery.event
        outcome: DeliveryOutcome = Undeliverable()
        if isinstance(event, StoredAlert):
            topics = StreamTopics(self._base, event.stream_id)
            message = alert_message(topics, delivery, picture, brief=True)
            outcome = await self._publish(target, [message])
        if isinstance(outcome, Undeliverable):
            log.warning(
                "mqtt broker takes no message of an event",
                target=target.target_id,
                event_id=event_id_of(event),
            )
        return outcome
