"""A connection to an MQTT broker, over memory streams: the broker's side is written out here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

pytest.importorskip("paho.mqtt", reason="needs paho-mqtt: the extra `mqtt`")

from relay.errors import ConfigError
from relay.outgoing.mqtt_broker import (
    BROKER_STABLE_TIME,
    FLOOD_PACKETS,
    PUBACK_TIMEOUT,
    STATUS_PACE,
    MqttBroker,
    parse_broker_url,
)
from relay.outgoing.mqtt_refusal import MessageRefused
from relay.outgoing.mqtt_session import MAX_PACKET_BYTES, MqttLogin, MqttSession, PacketCheck
from relay.outgoing.webhook_client import Undelivered

CONNACK, CONNACK_4 = b"\x20\x03\x00\x00\x00", b"\x20\x02\x00\x00"
CONNACK_ONE_AT_A_TIME = b"\x20\x06\x00\x00\x03\x21\x00\x01"
CONNACK_256_BYTES = b"\x20\x08\x00\x00\x05\x27\x00\x00\x01\x00"
OFFLINE = b"\x30\x16\x00\x0crelay/status\x00offline"
ONLINE = b"\x30\x15\x00\x0crelay/status\x00online"
PASSWORD = "5ecret-of-the-broker"
Serve = Callable[["Client"], Awaitable[None]]


@define(eq=False)
class Client:
    """The relay that has connected, as a broker sees it."""

    stream: trio.abc.Stream
    received: bytearray = field(factory=bytearray)
    packets: list[tuple[int, bytes]] = field(factory=list)

    async def packet(self) -> tuple[int, bytes]:
        """The first byte and the body of the next packet, which is shorter than 16 KiB."""
        while True:
            size, at = 0, 1
            if len(self.received) > 2:
                size = self.received[1] & 0x7F
                if self.received[1] & 0x80:
                    size, at = size + (self.received[2] << 7), 2
            if len(self.received) > at + size and len(self.received) >= 2:
                first, body = self.received[0], bytes(self.received[at + 1 : at + 1 + size])
                del self.received[: at + 1 + size]
                self.packets.append((first, body))
                return first, body
            data = await self.stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            self.received += data

    async def serve(
        self, connack: bytes = CONNACK, *, refused: str = "", reason: int = 0x87
    ) -> None:
        """Accept, and acknowledge all that is published, but refuse what is on one topic."""
        while True:
            first, body = await self.packet()
            if first >> 4 == 1:
                await self.stream.send_all(connack)
            if first >> 4 == 3:
                end = 2 + int.from_bytes(body[:2], "big")
                said = bytes([reason] if body[2:end] == refused.encode() else [])
                answer = bytes([0x40, 2 + len(said)]) + body[end : end + 2] + said
                with suppress(trio.BrokenResourceError):  # relay has said goodbye
                    await self.stream.send_all(answer)

    def published(self) -> list[tuple[str, bytes]]:
        """Topics, and what follows: the id, the properties if it is MQTT 5, and the payload."""
        found = []
        for first, body in self.packets:
            if first >> 4 == 3:
                end = 2 + int.from_bytes(body[:2], "big")
                found.append((body[2:end].decode(), body[end + 3 :]))
        return found


@define(eq=False)
class Brokers:
    """What each connection is answered with, one after the other; the last one again and again."""

    serves: list[Serve]
    nursery: trio.Nursery
    clients: list[Client] = field(factory=list)

    async def dial(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        client = Client(theirs)
        self.clients.append(client)
        serve = self.serves[min(len(self.clients), len(self.serves)) - 1]
        self.nursery.start_soon(self._serve, serve, client)
        return ours

    async def _serve(self, serve: Serve, client: Client) -> None:
        with suppress(trio.EndOfChannel, trio.BrokenResourceError):
            await serve(client)
        await client.stream.aclose()


async def test_a_message_is_delivered_once_the_broker_has_acknowledged_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    acknowledge = trio.Event()

    async def serve(client: Client) -> None:
        await client.packet()
        await client.stream.send_all(CONNACK)
        _, body = await client.packet()
        await acknowledge.wait()
        await client.stream.send_all(b"\x40\x02" + body[5:7])
        await client.serve()

    broker = broker_of([serve], nursery)
    done: list[str] = []

    async def publish() -> None:
        await broker.publish("a/b", b"x")
        done.append("x")

    nursery.start_soon(publish)
    await trio.sleep(3)
    assert done == []
    acknowledge.set()
    await trio.sleep(1)
    assert done == ["x"]


@pytest.mark.parametrize(
    ("reason", "is_unfit", "why"),
    [
        (0x87, False, "not authorized"),
        (0x97, False, "quota exceeded"),
        (0x90, True, "topic name invalid"),
        (0x95, True, "its content or its size"),  # which the standard does not allow: Mosquitto
        (0x99, True, "its content or its size"),
        (0xA5, False, "unspecified error"),
    ],
)
async def test_a_message_that_the_broker_refuses_is_not_delivered_and_others_are(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    reason: int,
    is_unfit: bool,
    why: str,
) -> None:
    async def serve(client: Client) -> None:
        await client.serve(refused="a/b", reason=reason)

    broker = broker_of([serve], nursery)
    with pytest.raises(MessageRefused, match=f"refused the message: {why}") as raised:
        await broker.publish("a/b", b"x")
    assert raised.value.is_unfit == is_unfit
    await broker.publish("a/c", b"x")
    assert broker.connections == 1


async def test_a_broker_gets_nothing_larger_than_it_takes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve(client: Client) -> None:
        await client.serve(CONNACK_256_BYTES)

    broker = broker_of([serve], nursery)
    for size in (253, 300, 5000):
        with pytest.raises(MessageRefused, match="no more than 256 bytes") as raised:
            await broker.publish("a/b", b"x" * size)
        assert raised.value.is_unfit
    await broker.publish("a/b", b"x" * 200)
    [client] = brokers_of(broker).clients
    assert [len(payload) for _, payload in client.published()] == [200]


async def test_a_message_that_nobody_waits_for_has_its_place_until_it_is_acknowledged(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Else a broker would get more at once than it takes, and hang up."""
    early: list[tuple[int, bytes]] = []

    async def serve(client: Client) -> None:
        await client.packet()
        await client.stream.send_all(CONNACK_ONE_AT_A_TIME)
        _, body = await client.packet()
        with trio.move_on_after(4):
            early.append(await client.packet())
        await client.stream.send_all(b"\x40\x02" + body[5:7])
        await client.serve()

    broker = broker_of([serve], nursery)
    with trio.move_on_after(1):
        await broker.publish("a/b", b"given up")
    await broker.publish("a/b", b"next")
    assert early == []
    assert broker.connections == 1


async def test_one_that_never_acknowledges_what_nobody_waits_for_is_left(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve_well(client: Client) -> None:
        await client.serve()

    broker = broker_of([accept_and_stall, serve_well], nursery)
    with trio.move_on_after(1):
        await broker.publish("a/b", b"given up")
    await trio.sleep(3 * PUBACK_TIMEOUT)
    assert broker.connections == 2


async def test_alerts_do_not_depend_on_the_status(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve(client: Client) -> None:
        await client.serve(refused="relay/status")

    broker = broker_of([serve], nursery, status_topic="relay/status")
    await broker.publish("a/b", b"x")
    await trio.sleep(60)
    assert (broker.is_connected, broker.connections) == (True, 1)


async def stall(client: Client) -> None:
    await client.packet()
    await trio.sleep_forever()


async def accept_and_stall(client: Client) -> None:
    await client.packet()
    await client.stream.send_all(CONNACK)
    await trio.sleep_forever()


async def hang_up(client: Client) -> None:
    await client.packet()


async def hang_up_on_messages(client: Client) -> None:
    await accept(client)
    await client.packet()


async def accept(client: Client) -> None:
    await client.packet()
    await client.stream.send_all(CONNACK)


async def refuse(client: Client) -> None:
    await client.packet()
    await client.stream.send_all(b"\x20\x03\x00\x86\x00")


async def disconnect(client: Client) -> None:
    await accept(client)
    await client.stream.send_all(b"\xe0\x02\x8b\x00")


def sends(*after: bytes, times: int = 1) -> Serve:
    async def serve(client: Client) -> None:
        await accept(client)
        for _ in range(times):
            for data in after:
                await client.stream.send_all(data)
        await trio.sleep_forever()

    return serve


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (stall, "the broker does not answer"),
        (hang_up, "the broker closed the connection"),
        (refuse, "refused the connection: bad user name or password"),
        (accept_and_stall, "does not acknowledge messages"),
        (hang_up_on_messages, "the broker closed the connection|broke"),
        (disconnect, "the broker ended the connection: server shutting down"),
        (sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "no answer of MQTT"),
        (sends(b"\x30\xff\xff\xff\x7f"), "too large"),
        (sends(b"\x30\xff\xff\xff\xff\xff"), "too large"),
        (sends(b"\x34\x06\x00\x01a\x00\x01\x00"), "no answer of MQTT"),
        (sends(b"\x40\x00"), "ended"),
        (sends(b"\xd0\x00" * 100, times=FLOOD_PACKETS), "more than it has reason to"),
        (
            sends(b"\x30\xd0\x86\x03\x00\x01t\x00" + b"x" * 49_996, times=10),
            "more than it has reason to",
        ),
    ],
)
async def test_what_a_broker_does_wrong_is_told_and_ends_the_connection(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, serve: Serve, why: str
) -> None:
    async def serve_well(client: Client) -> None:
        await client.serve()

    broker = broker_of([serve, serve, serve_well], nursery)
    with trio.fail_after(9), pytest.raises(Undelivered, match=why) as raised:
        await keep_publishing(broker)
    assert PASSWORD not in str(raised.value)
    with trio.fail_after(60):
        while True:
            with suppress(Undelivered):
                await broker.publish("a/b", b"x")
                break
            await trio.sleep(1)


async def keep_publishing(broker: MqttBroker) -> None:
    """Until it fails: a connection may be lost just after it was made."""
    while True:
        await broker.publish("a/b", b"x")
        await trio.sleep(0.1)


async def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_the_version_before(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve_old(client: Client) -> None:
        _, body = await client.packet()
        if body[6] != 4:
            await client.stream.send_all(b"\x20\x02\x00\x01")
            return
        await client.stream.send_all(CONNACK_4)
        await client.serve()

    started = trio.current_time()
    broker = broker_of([serve_old], nursery)
    await broker.publish("a/b", b"x")
    assert trio.current_time() - started < 1


async def test_a_broker_that_was_only_busy_is_spoken_to_in_mqtt_5_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The version before does not say what a broker refuses."""

    async def serve_and_restart(client: Client) -> None:
        with trio.move_on_after(5):
            await client.serve(CONNACK_4)

    async def serve_well(client: Client) -> None:
        await client.serve()

    broker = broker_of([hang_up, serve_and_restart, serve_well], nursery)
    await trio.sleep(60)
    versions = [client.packets[0][1][6] for client in brokers_of(broker).clients]
    assert versions == [5, 4, 5]
    assert broker.is_connected


async def test_a_broker_that_reads_nothing_holds_few_messages_and_delays_nobody_else(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    broker = broker_of([accept_and_stall], nursery)
    failed: list[str] = []

    async def publish() -> None:
        try:
            await broker.publish("a/b", b"x" * 1000)
        except Undelivered as why:
            failed.append(str(why))

    async with trio.open_nursery() as many:
        for _ in range(200):
            many.start_soon(publish)
    assert len(failed) == 200


async def test_relay_says_that_it_is_there_and_again_when_another_process_of_it_has_gone(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve(client: Client) -> None:
        await client.serve()

    broker = broker_of([serve], nursery, status_topic="relay/status")
    await broker.reach()
    await trio.sleep(10)
    [client] = brokers_of(broker).clients
    connect = client.packets[0][1]
    assert b"relay/status\x00\x07offline" in connect
    assert client.published() == [("relay/status", b"online")]
    for _ in range(1000):
        await client.stream.send_all(OFFLINE)
    await trio.sleep(4)
    assert client.published() == [("relay/status", b"online")] * 2
    # Of several that are left, one says it, and none has to wait before it says it again.
    await client.stream.send_all(OFFLINE + ONLINE)
    await trio.sleep(STATUS_PACE)
    assert client.published() == [("relay/status", b"online")] * 2
    await client.stream.send_all(OFFLINE)
    await trio.sleep(0.6)
    assert client.published() == [("relay/status", b"online")] * 3
    await client.stream.send_all(OFFLINE)
    await trio.sleep(STATUS_PACE + 0.6)
    assert client.published() == [("relay/status", b"online")] * 4


async def test_relay_says_goodbye_when_it_stops(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(client: Client) -> None:
        await client.serve()

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as inner:
            broker = MqttBroker(Brokers([serve], outer).dial, status_topic="relay/status")
            clients = broker._dial.__self__.clients  # type: ignore[attr-defined]
            inner.start_soon(broker.run)
            await broker.reach()
            await trio.sleep(1)
            inner.cancel_scope.cancel()
        await trio.sleep(1)
        assert clients[0].published()[-1] == ("relay/status", b"offline")
        assert clients[0].packets[-1][0] == 0xE0
        outer.cancel_scope.cancel()


@pytest.mark.parametrize("serve", [refuse, accept, disconnect])
async def test_attempts_come_later_and_later_unless_somebody_wants_to_publish(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, serve: Serve
) -> None:
    broker = broker_of([serve], nursery)
    await trio.sleep(600)
    attempts = len(brokers_of(broker).clients)
    assert 10 <= attempts <= 30
    with pytest.raises(Undelivered), trio.fail_after(1):
        await keep_publishing(broker)


async def test_a_connection_that_lasted_is_made_again_soon(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def serve_a_while(client: Client) -> None:
        with trio.move_on_after(BROKER_STABLE_TIME + 1):
            await client.serve()

    broker = broker_of([*[refuse] * 6, serve_a_while], nursery)
    await trio.sleep(600)
    assert len(brokers_of(broker).clients) > 6 + 400 / (BROKER_STABLE_TIME + 3)


def test_packets_are_checked_byte_by_byte_as_well_as_at_once() -> None:
    data = bytearray(CONNACK) + b"\x40\x02\x00\x01" + b"\xd0\x00" + b"\x30\x85\x01" + b"x" * 133
    at_once = PacketCheck()
    assert at_once.check(data) == 4
    one_by_one = PacketCheck()
    assert sum(one_by_one.check(bytearray([byte])) for byte in data) == 4
    with pytest.raises(Undelivered, match="too large"):
        one_by_one.check(bytearray([0x30, 0x81 | (MAX_PACKET_BYTES & 0x7F), 0x80, 0x04]))


def test_a_reason_that_paho_does_not_know_becomes_one_that_it_knows_wherever_it_is_cut() -> None:
    data = b"\x40\x03\x00\x01\x95\x40\x02\x00\x95\x40\x03\x00\x95\xa5\x40\x04\x00\x95\x87\x00"
    mended = b"\x40\x03\x00\x01\x99\x40\x02\x00\x95\x40\x03\x00\x95\x80\x40\x04\x00\x95\x87\x00"
    for size in (1, 2, 3, 4, 5, 7, len(data)):
        check, whole = PacketCheck(), bytearray()
        for at in range(0, len(data), size):
            part = bytearray(data[at : at + size])
            check.check(part)
            whole += part
        assert whole == mended


def test_no_credential_is_shown() -> None:
    login = MqttLogin("relay-1", "relay", PASSWORD)
    session = MqttSession.begin(
        login, version=5, on_acknowledged=lambda *_: None, on_message=lambda *_: None
    )
    assert PASSWORD not in f"{login!r} {session!r}"
    assert PASSWORD.encode() in session.take_output()
    for url in (f"mqtts://relay:{PASSWORD}@x", f"mqtts://x/{PASSWORD}", f"http://x?{PASSWORD}"):
        with pytest.raises(ConfigError) as raised:
            parse_broker_url(url)
        assert PASSWORD not in str(raised.value)


def broker_of(serves: list[Serve], nursery: trio.Nursery, **options: Any) -> MqttBroker:
    brokers = Brokers(serves, nursery)
    broker = MqttBroker(brokers.dial, "relay", PASSWORD, **options)
    nursery.start_soon(broker.run)
    return broker


def brokers_of(broker: MqttBroker) -> Brokers:
    found = broker._dial.__self__  # type: ignore[attr-defined]
    assert isinstance(found, Brokers)
    return found
