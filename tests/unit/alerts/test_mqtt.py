"""What is published to MQTT brokers, and what is kept true of streams there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

pytest.importorskip("paho.mqtt", reason="needs paho-mqtt: the extra `mqtt`")

from relay.alerts.targets.delivery import Delivered, Delivery, RetryLater
from relay.alerts.targets.mqtt import MqttAdapter, MqttBrokers
from relay.alerts.targets.mqtt_messages import MAX_TOPIC_PART_BYTES, StreamTopics, escaped
from relay.alerts.targets.mqtt_streams import RetainedStreams
from relay.model.alert import StoredAlert
from relay.model.alert_target import AlertTarget, TargetRules
from relay.model.stream_event import STREAM_EVENT_KINDS, StreamEvent, StreamEventKind
from relay.outgoing.webhook_client import Undelivered
from tests.mqtt_stream_table import MqttStreamTable

ALL = TargetRules(("alert", *STREAM_EVENT_KINDS))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = AlertTarget(
    *("mqtt_1", "mqtt", "mqtt://127.0.0.1", "", 0, None, None, NOW, 0, 0, None, None, None, 0, ALL),
    {"discovery_prefix": "homeassistant"},
)
ALERT = StoredAlert(5, "door", "ann", "user:ann", "high", "Smoke", 1_700_000_000_000, {"room": 1})


def event(kind: StreamEventKind) -> StreamEvent:
    return StreamEvent(7, "door", "ann", kind, 1, 2)


@define(eq=False)
class FakeBrokers:
    """One broker for all targets. In place of `MqttBrokers`."""

    messages: list[tuple[str, Any, bool]] = field(factory=list)
    is_connected: bool = True
    connections: int = 1
    fails: bool = False
    on_connected: Any = None

    def of(self, _target: AlertTarget) -> FakeBrokers:
        return self

    def keep(self, targets: Sequence[AlertTarget]) -> None:
        pass

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise Undelivered("the broker cannot be connected to")
        text = payload.decode()
        self.messages.append((topic, json.loads(text) if text[:1] == "{" else text, retain))

    def retained(self) -> dict[str, Any]:
        """As a broker keeps it."""
        kept = {topic: content for topic, content, retain in self.messages if retain}
        return {topic: content for topic, content in kept.items() if content != ""}


def adapter(brokers: FakeBrokers, table: MqttStreamTable, links: Any = None) -> MqttAdapter:
    return MqttAdapter(as_brokers(brokers), "relay", table, links)


def as_brokers(brokers: FakeBrokers) -> MqttBrokers:
    found: Any = brokers
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("stream_id", "level"),
    [
        ("front-door", "front-door"),
        ("a.b_c:d", "a.b_c:d"),
        ("a/b", "a%2Fb"),
        ("+", "%2B"),
        ("#", "%23"),
        ("$SYS", "%24SYS"),
        ("a\0b", "a%00b"),
        ("100%", "100%25"),
        ("ü", "%C3%BC"),
        ("\ud800", "%ED%A0%80"),
    ],
)
def test_a_stream_id_is_one_level_of_a_topic_whatever_is_in_it(stream_id: str, level: str) -> None:
    assert escaped(stream_id) == level


def test_long_ids_are_cut_and_stay_different() -> None:
    first, second = escaped("+" * 5000), escaped("+" * 5001)
    assert len(first) == len(second) == MAX_TOPIC_PART_BYTES
    assert first != second


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("stream.online", "online"),
        ("stream.watched", "watched"),
        ("stream.unwatched", "online"),
        ("stream.offline", "offline"),
    ],
)
async def test_the_state_of_a_stream_is_retained_behind_its_discovery(
    kind: StreamEventKind, state: str
) -> None:
    brokers, table = FakeBrokers(), MqttStreamTable()
    delivered = adapter(brokers, table)
    for _ in range(2):
        assert await delivered.deliver(TARGET, Delivery(event(kind))) == Delivered()
    (config, device, kept), *states = brokers.messages
    assert config.startswith("homeassistant/device/relay_door_")
    assert kept
    assert states == [("relay/door/state", state, True)] * 2
    assert device["availability"] == [{"topic": "relay/status"}]
    assert {each["platform"] for each in device["components"].values()} == {
        *("event", "binary_sensor")
    }
    ids = [each["unique_id"] for each in device["components"].values()]
    assert len({*ids}) == len(ids) == 3


async def test_an_alert_is_published_with_its_picture_and_not_retained() -> None:
    class Links:
        async def link_to(self, _target: AlertTarget, _stream_id: str) -> str:
            return "https://relay.example.org/still"

    brokers = FakeBrokers()
    with_picture = evolve(TARGET, options={"picture": True})
    delivery = Delivery(ALERT, suppressed=3)
    await adapter(brokers, MqttStreamTable(), Links()).deliver(with_picture, delivery)
    (topic, link, kept), (alert_topic, content, alert_kept) = brokers.messages
    assert (topic, link, kept) == ("relay/door/picture", "https://relay.example.org/still", False)
    assert (alert_topic, alert_kept) == ("relay/door/alert", False)
    assert content == {
        "alertId": 5,
        "streamId": "door",
        "severity": "high",
        "message": "Smoke",
        "metadata": {"room": 1},
        "timestamp": 1_700_000_000_000,
        "event_type": "high",
        "suppressed": 3,
        "picture": "https://relay.example.org/still",
    }


async def test_over_the_bound_streams_are_published_and_not_retained() -> None:
    brokers = FakeBrokers()
    online = Delivery(event("stream.online"))
    await adapter(brokers, MqttStreamTable(room=0)).deliver(TARGET, online)
    assert brokers.messages == [("relay/door/state", "online", False)]


async def test_an_event_is_tried_again_while_the_broker_or_the_database_is_away() -> None:
    for brokers, table, why in (
        (FakeBrokers(fails=True), MqttStreamTable(), "the broker cannot be connected to"),
        (FakeBrokers(), MqttStreamTable(away=True), "the database is away"),
    ):
        assert await adapter(brokers, table).deliver(TARGET, Delivery(ALERT)) == RetryLater(why)


async def test_a_new_connection_is_told_of_all_streams_and_forgotten_ones_are_withdrawn(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    states = {f"s{number:03}": (number % 2 == 0, number % 4 == 0) for number in range(120)}
    brokers, table = FakeBrokers(is_connected=False), MqttStreamTable(dict(states), [TARGET])
    await nursery.start(RetainedStreams(table, as_brokers(brokers), "relay").run)
    await trio.sleep(20)
    assert brokers.messages == []
    brokers.is_connected = True
    brokers.on_connected()
    await trio.sleep(1)
    retained = brokers.retained()
    assert len(retained) == 240
    seen = [retained[StreamTopics("relay", each).state] for each in ("s000", "s001", "s002")]
    assert seen == ["watched", "offline", "online"]
    published = len(brokers.messages)
    await trio.sleep(60)
    assert len(brokers.messages) == published
    for each in [*states][:118]:
        del table.states[each]
    await trio.sleep(80)
    assert len(brokers.retained()) == 4
    assert table.leased_by is None


async def test_nothing_is_published_while_another_process_delivers_and_a_failure_is_made_good(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    brokers, table = FakeBrokers(fails=True), MqttStreamTable({"door": (True, False)}, [TARGET])
    table.leased_by = UUID(int=1)
    await nursery.start(RetainedStreams(table, as_brokers(brokers), "relay").run)
    await trio.sleep(5)
    assert table.leased_by == UUID(int=1)
    table.leased_by = None
    await trio.sleep(20)
    assert brokers.messages == []
    assert table.releases > 0
    assert table.retries == 0
    brokers.fails = False
    await trio.sleep(20)
    assert table.retries == 1
    assert brokers.retained()["relay/door/state"] == "online"
