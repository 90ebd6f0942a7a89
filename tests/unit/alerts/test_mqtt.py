"""What is published to MQTT brokers, and what is kept true of streams there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

pytest.importorskip("paho.mqtt", reason="needs paho-mqtt: the extra `mqtt`")

from relay.alerts.targets.delivery import Delivered, Delivery, RetryLater, Undeliverable
from relay.alerts.targets.mqtt import MqttAdapter, MqttBrokers, open_brokers
from relay.alerts.targets.mqtt_messages import MAX_TOPIC_PART_BYTES, StreamTopics, escaped
from relay.alerts.targets.mqtt_streams import MQTT_LOOK_INTERVAL, RetainedStreams
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import AlertTarget, TargetRules
from relay.model.targets.stream_event import STREAM_EVENT_KINDS, StreamEvent, StreamEventKind
from relay.outgoing.mqtt_refusal import MessageRefused
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
    seconds: float = 0
    refuses: Callable[[str, bytes], MessageRefused | None] = lambda _topic, _payload: None
    on_connected: Any = None

    def of(self, _target: AlertTarget) -> FakeBrokers:
        return self

    def keep(self, targets: Sequence[AlertTarget]) -> None:
        pass

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await trio.sleep(self.seconds)
        if self.fails:
            raise Undelivered("the broker cannot be connected to")
        refused = self.refuses(topic, payload)
        if refused is not None:
            raise refused
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


async def test_discovery_that_did_not_come_through_is_published_again() -> None:
    brokers, table = FakeBrokers(fails=True), MqttStreamTable()
    assert isinstance(await adapter(brokers, table).deliver(TARGET, Delivery(ALERT)), RetryLater)
    brokers.fails = False
    failed = evolve(TARGET, failures=1)
    assert await adapter(brokers, table).deliver(failed, Delivery(ALERT)) == Delivered()
    assert [topic[:14] for topic, _, _ in brokers.messages] == ["homeassistant/", "relay/door/ale"]


def refusing(part: str, *, is_unfit: bool = False) -> Callable[[str, bytes], MessageRefused | None]:
    """Topics with this in them."""
    return lambda topic, _: MessageRefused("refused", is_unfit=is_unfit) if part in topic else None


async def test_an_alert_does_not_wait_for_discovery_that_the_broker_refuses() -> None:
    brokers = FakeBrokers(refuses=refusing("homeassistant"))
    assert await adapter(brokers, MqttStreamTable()).deliver(TARGET, Delivery(ALERT)) == Delivered()
    assert [topic for topic, _, _ in brokers.messages] == ["relay/door/alert"]


async def test_an_alert_that_is_refused_is_tried_again() -> None:
    brokers = FakeBrokers(refuses=refusing("/alert"))
    outcome = await adapter(brokers, MqttStreamTable()).deliver(TARGET, Delivery(ALERT))
    assert outcome == RetryLater("refused")


async def test_an_alert_that_is_too_large_for_the_broker_comes_in_brief() -> None:
    def over(most: int) -> Callable[[str, bytes], MessageRefused | None]:
        return lambda _, payload: (
            MessageRefused("too large", is_unfit=True) if len(payload) > most else None
        )

    large = evolve(ALERT, message="☁" * 2000, metadata={"text": "x" * 5000})
    plain = evolve(TARGET, options={})
    brokers = FakeBrokers(refuses=over(1000))
    outcome = await adapter(brokers, MqttStreamTable()).deliver(plain, Delivery(large))
    assert outcome == Delivered()
    [(topic, content, _)] = brokers.messages
    assert (topic, content["alertId"], content["truncated"]) == ("relay/door/alert", 5, True)
    assert content["message"] == "☁" * (256 // 3)
    assert "metadata" not in content
    # What is behind it is not held up even by one that takes nothing.
    brokers = FakeBrokers(refuses=over(10))
    for event_of in (large, event("stream.online")):
        outcome = await adapter(brokers, MqttStreamTable()).deliver(plain, Delivery(event_of))
        assert outcome == (Undeliverable() if event_of is large else Delivered())


async def test_a_state_that_would_stay_wrong_is_not_retained() -> None:
    brokers = FakeBrokers()
    no_offline = evolve(TARGET, rules=TargetRules(("stream.online",)), options={})
    online = Delivery(event("stream.online"))
    assert await adapter(brokers, MqttStreamTable()).deliver(no_offline, online) == Delivered()
    assert brokers.messages == [("relay/door/state", "online", False)]


async def test_what_is_raised_beside_brokers_comes_out_as_it_is() -> None:
    """`relay target remove` and others tell what was wrong."""
    with pytest.raises(Undelivered):
        async with open_brokers([], "relay", stays=False):
            raise Undelivered("the broker cannot be connected to")


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
    # Of a new one, the others are not repeated: anybody may begin one again and again.
    table.states["new"] = (True, False)
    await trio.sleep(60)
    assert len(brokers.messages) == published + 2
    for each in ["new", *states][:119]:
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


async def test_what_was_not_published_in_time_is_published_at_the_next_look(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    table = MqttStreamTable({"door": (True, False)}, [TARGET])
    brokers = FakeBrokers()
    await nursery.start(RetainedStreams(table, as_brokers(brokers), "relay").run)
    await trio.sleep(5)
    brokers.seconds = 1000
    table.states["hall"] = (True, False)
    await trio.sleep(MQTT_LOOK_INTERVAL + 1)
    brokers.seconds = 0
    await trio.sleep(60)
    assert brokers.retained()["relay/hall/state"] == "online"
    assert table.leased_by is None


async def test_over_the_bound_those_that_were_announced_stay_true(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    states = {f"s{number:03}": (True, False) for number in range(200)}
    announced = {f"s{number:03}" for number in range(120, 180)}
    table = MqttStreamTable(states, [TARGET], room=70, known={*announced})
    brokers = FakeBrokers()
    await nursery.start(RetainedStreams(table, as_brokers(brokers), "relay").run)
    await trio.sleep(60)
    told = {topic.split("/")[1] for topic in brokers.retained() if topic.endswith("/state")}
    assert len(told) == 70
    assert told >= announced


async def test_what_the_broker_refuses_of_one_stream_holds_up_no_other(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    states = {f"s{number:03}": (True, False) for number in range(120)}
    table = MqttStreamTable(dict(states), [TARGET], known={"gone", "s000"})
    brokers = FakeBrokers()

    def refuses(topic: str, _payload: bytes) -> MessageRefused | None:
        refused = ("/gone/", "/s000/", "/s060/")
        return MessageRefused("refused") if any(each in topic for each in refused) else None

    brokers.refuses = refuses
    await nursery.start(RetainedStreams(table, as_brokers(brokers), "relay").run)
    await trio.sleep(5)
    assert sum(topic.endswith("/state") for topic in brokers.retained()) == 118
    assert table.known == states.keys()
    assert table.retries == 1
    published = len(brokers.messages)
    await trio.sleep(120)
    assert len(brokers.messages) == published
