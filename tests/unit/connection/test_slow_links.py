"""A message that takes long on its way is a sign of life, and a dead link is still noticed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import msgpack
import pytest
import trio
from attrs import define, evolve, field
from wsproto import events

from relay.connection.peer import Peer
from relay.protocol.endings import Ending
from relay.transport.budget import Budget
from tests.unit.memory import ANN, Client, MemoryRelay, open_relay

pytestmark = pytest.mark.mock_clock

PROMISED = 20.0
"""Seconds in which the project's clients notice a dead link."""
LINKS = pytest.mark.parametrize(
    ("size", "rate"), [(256 * 1024, 10_000), (3_000_000, 125_000)], ids=["10KBps", "1Mbps"]
)
TURN = 0.1
"""Seconds between two looks at a link."""
READY = {"parts": True, "progressInterval": 2500}
"""What a client asks for that cannot see half a message."""


@pytest.fixture
async def relay() -> AsyncIterator[MemoryRelay]:
    """One that takes messages as large as they may be."""
    async with open_relay() as relay:
        relay.timing = evolve(relay.timing, max_message_size=16 << 20)
        relay.budget = Budget(64 << 20)
        yield relay


@define(eq=False)
class SlowReader:
    """Reads what comes to a client at a rate, and notes when each thing came."""

    client: Client
    rate: float
    answers: bool = True
    """Whether it answers pings: not while it is in the middle of a message of its own."""
    heard: list[tuple[float, str, Any]] = field(factory=list)
    """Times, and messages, `ping`s and `close`s."""
    parts: dict[str | None, list[Any]] = field(factory=dict)
    _text: str | bytes | None = None

    async def run(self) -> None:
        pipe = self.client.link.incoming
        while not pipe.ended:
            await trio.sleep(TURN)
            data = bytes(pipe.content[: int(self.rate * TURN)])
            del pipe.content[: len(data)]
            pipe.changed.unpark_all()
            if data:
                self.client.protocol.receive_data(data)
            for event in self.client.protocol.events():
                await self._take(event)

    async def _take(self, event: events.Event) -> None:
        if isinstance(event, events.Ping):
            self._note("ping", None)
            if self.answers:
                await self.client.send_bytes(self.client.protocol.send(event.response()))
        elif isinstance(event, events.CloseConnection):
            self._note("close", event.code)
        elif isinstance(event, events.Message):
            data = event.data if isinstance(event.data, str) else bytes(event.data)
            whole = data if self._text is None else self._text + data  # type: ignore[operator]
            self._text = None if event.message_finished else whole
            if event.message_finished:
                self._read(whole)

    def _read(self, content: str | bytes) -> None:
        message = msgpack.unpackb(content) if isinstance(content, bytes) else json.loads(content)
        self._note(message["type"], message)
        if message["type"] != "part":
            return
        pieces = self.parts.setdefault(message.get("streamId"), [])
        if message["index"] == 1:
            pieces.clear()
        pieces.append(message["data"])
        assert len(pieces) == message["index"]
        if len(pieces) == message["count"]:
            self._read((b"" if isinstance(pieces[0], bytes) else "").join(pieces))

    def _note(self, kind: str, message: Any) -> None:
        self.heard.append((trio.current_time(), kind, message))

    def times(self, *kinds: str) -> list[float]:
        return [time for time, kind, _ in self.heard if not kinds or kind in kinds]

    def last(self, kind: str) -> Any:
        return [message for _, each, message in self.heard if each == kind][-1]

    async def until(self, kind: str, count: int = 1) -> None:
        await until(lambda: len(self.times(kind)) >= count)


async def until(condition: Callable[[], object], within: float = 3600) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 (it looks at the code under test)
            await trio.sleep(TURN)


def longest_pause(times: list[float]) -> float:
    return max(later - earlier for earlier, later in pairwise(times))


async def slow_viewer(
    relay: MemoryRelay, nursery: trio.Nursery, rate: float, asks: dict[str, Any], **terms: Any
) -> SlowReader:
    client = await relay.open(msgpack=terms.pop("msgpack", False))
    await client.ask({"type": "auth", "token": ANN, **asks})
    consumes = ["video-frame", "alert"]
    request = {"type": "subscribe", "streamId": "front-door", "consumes": consumes, **terms}
    await client.send(request)
    reader = SlowReader(client, rate)
    nursery.start_soon(reader.run)
    await reader.until("status")
    return reader


def picture(size: int) -> str:
    return base64.b64encode(os.urandom(size)).decode()


@LINKS
async def test_pings_go_between_the_fragments_of_a_long_frame(
    relay: MemoryRelay, size: int, rate: float
) -> None:
    phone = await relay.phone()
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, rate, {})
        frame = {"type": "video-frame", "data": picture(2 * size)}
        begun = trio.current_time()
        await phone.send(frame)
        await viewer.until("video-frame")
        nursery.cancel_scope.cancel()
    assert viewer.last("video-frame")["data"] == frame["data"]
    assert trio.current_time() - begun > 2 * PROMISED
    every = relay.timing.ping_interval
    assert longest_pause([begun, *viewer.times("ping"), trio.current_time()]) < every + PROMISED


async def test_the_pong_of_a_client_goes_between_the_fragments_of_a_long_frame(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer(capacity=20_000)
    await phone.send({"type": "video-frame", "data": picture(1 << 20)})
    await viewer.send_bytes(viewer.protocol.send(events.Ping(b"are you there")))
    received = 0
    while True:
        await viewer.link.wait_readable()
        data = viewer.link.incoming.get(1000)
        received += len(data)
        viewer.protocol.receive_data(data)
        if any(isinstance(event, events.Pong) for event in viewer.protocol.events()):
            break
    assert received < 100_000


@LINKS
@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
async def test_a_viewer_that_sees_no_pings_hears_something_while_a_long_frame_comes(
    relay: MemoryRelay, size: int, rate: float, packed: bool
) -> None:
    phone = await relay.phone()
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, rate, READY, msgpack=packed, window=4)
        data, names = picture(size), {"where": "über 😀 " * 500}
        begun = trio.current_time()
        for _ in range(3):
            await phone.send({"type": "video-frame", "data": data, "metadata": names})
            await trio.sleep(2)
        alerted = trio.current_time()
        await phone.ask(
            {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
        )
        await viewer.until("video-frame", 2)
        nursery.cancel_scope.cancel()
    frame = viewer.last("video-frame")
    assert frame["data"] == (base64.b64decode(data) if packed else data)
    assert frame["metadata"] == names
    messages = viewer.times("part", "video-frame", "alert")
    assert longest_pause([begun, *messages]) < PROMISED / 4
    # And it goes ahead of what is left of the frame, behind what the link holds.
    assert viewer.times("alert")[0] - alerted < 64 * 1024 / rate + 3


async def test_a_frame_that_ends_with_its_epoch_leaves_nothing_behind(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, 20_000, READY)
        await phone.send({"type": "video-frame", "data": picture(1 << 20)})
        await viewer.until("part", 3)
        await phone.ask({"type": "register", "streamId": "elsewhere"})
        await phone.ask({"type": "register", "streamId": "front-door"})
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await viewer.until("video-frame")
        nursery.cancel_scope.cancel()
    assert viewer.last("video-frame")["data"] == "AAAA"
    assert viewer.last("part")["index"] < viewer.last("part")["count"]
    epoch = viewer.last("status")["epoch"]
    begun = [time for time, _, each in viewer.heard if each and each.get("epoch") == epoch]
    assert begun[0] >= viewer.times("part")[-1]


async def test_a_long_reply_goes_in_parts_to_who_takes_them(relay: MemoryRelay) -> None:
    await relay.phone()
    phone = await relay.login()
    metadata = {"text": "x" * 60_000}
    await phone.ask({"type": "register", "streamId": "front-door", "metadata": metadata})
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, 1 << 20, READY)
        await viewer.client.send({"type": "streams", "id": 7})
        await viewer.until("success", 2)
        nursery.cancel_scope.cancel()
    reply = viewer.last("success")
    assert (reply["id"], reply["streams"][0]["metadata"]) == (7, metadata)
    assert len(viewer.times("part")) > 3


async def test_a_status_with_much_metadata_goes_in_parts_to_who_takes_them(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    metadata = {"text": "x" * 60_000}
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, 1 << 20, READY)
        request = {"type": "register", "streamId": "front-door", "metadata": metadata}
        await phone.ask(request)
        await viewer.until("status", 2)
        nursery.cancel_scope.cancel()
    assert viewer.last("status")["metadata"] == metadata
    assert len(viewer.times("part")) > 3


async def test_of_long_statuses_the_last_one_waits_for_who_takes_parts(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, 20_000, READY)
        told = relay.connections[-1].peer
        for number in range(200):
            metadata = {"number": number, "text": "x" * 60_000}
            request = {"type": "register", "streamId": "front-door", "metadata": metadata}
            await phone.ask(request)
        assert told.mailbox.reserved < 200_000
        await until(lambda: told.ending or viewer.last("status").get("metadata") == metadata)
        assert told.ending is None
        nursery.cancel_scope.cancel()
    # Each of them takes four.
    assert 4 <= len(viewer.times("part")) < 40


async def test_metadata_is_encoded_once_for_all_viewers(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await relay.phone()
    for number in range(20):
        await relay.viewer(msgpack=number % 2 == 0)
    told: list[Any] = []
    monkeypatch.setattr(Peer, "tell_status", lambda _peer, status: told.append(status))
    request = {"type": "register", "streamId": "front-door", "metadata": {"codec": "jpeg"}}
    await phone.ask(request)
    encoded = [id(status.metadata) for status in told if status.metadata is not None]
    assert len(encoded) == 20
    assert len(set(encoded)) == 2


async def test_who_asks_for_nothing_gets_no_message_that_it_does_not_know(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, 50_000, {})
        frame = json.dumps({"type": "video-frame", "data": picture(256 * 1024)}).encode()
        await send_slowly(phone, frame, 50_000)
        await viewer.until("video-frame")
        nursery.cancel_scope.cancel()
    messages = {kind for _, kind, _ in viewer.heard if kind != "ping"}
    assert messages == {"success", "status", "video-frame"}
    assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"


async def send_slowly(client: Client, message: bytes, rate: float) -> None:
    """Send a message as a slow link lets it through."""
    data = client.protocol.send(events.TextMessage(data=message.decode()))
    step = int(rate * TURN)
    for at in range(0, len(data), step):
        await trio.sleep(TURN)
        await client.send_bytes(data[at : at + step])


@LINKS
async def test_a_phone_is_told_that_its_long_frame_arrives(
    relay: MemoryRelay, size: int, rate: float
) -> None:
    viewer = await relay.viewer()
    phone = await relay.open()
    await phone.ask({"type": "auth", "token": ANN, **READY})
    await phone.ask({"type": "register", "streamId": "front-door"})
    async with trio.open_nursery() as nursery:
        reader = SlowReader(phone, 1 << 20, answers=False)
        nursery.start_soon(reader.run)
        data, begun = picture(size), trio.current_time()
        await send_slowly(phone, json.dumps({"type": "video-frame", "data": data}).encode(), rate)
        assert (await viewer.receive_type("video-frame"))["data"] == data
        nursery.cancel_scope.cancel()
    received = [message["received"] for _, kind, message in reader.heard if kind == "progress"]
    assert received == sorted(set(received))
    assert longest_pause([begun, *reader.times("progress"), trio.current_time()]) < 3.0


async def test_nothing_is_told_once_the_link_is_dead(relay: MemoryRelay) -> None:
    phone = await relay.open()
    await phone.ask({"type": "auth", "token": ANN, **READY})
    await phone.ask({"type": "register", "streamId": "front-door"})
    async with trio.open_nursery() as nursery:
        reader = SlowReader(phone, 1 << 20, answers=False)
        nursery.start_soon(reader.run)
        whole = phone.protocol.send(events.TextMessage(data="x" * 300_000))
        for at in range(0, 100_000, 1000):
            await trio.sleep(TURN)
            await phone.send_bytes(whole[at : at + 1000])
        dead = trio.current_time()
        peer = relay.connections[-1].peer
        await until(lambda: peer.ending, within=relay.timing.idle_timeout + 1)
        nursery.cancel_scope.cancel()
    assert peer.ending is Ending.IDLE_TIMEOUT
    assert max(reader.times("progress")) < dead + TURN
    assert trio.current_time() - dead > relay.timing.idle_timeout - 1


@pytest.mark.parametrize("asks", [{}, READY], ids=["plain", "in parts"])
async def test_a_viewer_that_stops_reading_in_a_long_frame_is_noticed(
    relay: MemoryRelay, asks: dict[str, Any]
) -> None:
    phone = await relay.phone()
    async with trio.open_nursery() as nursery:
        viewer = await slow_viewer(relay, nursery, 10_000, asks)
        await phone.send({"type": "video-frame", "data": picture(1 << 20)})
        await trio.sleep(60)
        peer = relay.connections[-1].peer
        assert peer.ending is None
        nursery.cancel_scope.cancel()
    dead = trio.current_time()
    await until(lambda: peer.ending, within=relay.timing.idle_timeout + 1)
    assert peer.ending is Ending.IDLE_TIMEOUT
    assert trio.current_time() - dead > relay.timing.idle_timeout - relay.timing.ping_interval
    assert viewer.times("close") == []
