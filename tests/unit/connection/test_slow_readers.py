"""Peers that do not read what they are told, or not fast enough."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from relay.metrics import Limit
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.protocol.codec import Codec
from relay.protocol.endings import Ending
from relay.protocol.messages import ServerMessage, Status
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

MARK = "what the phone says of itself"
FRAME = {"type": "video-frame", "data": "AAAA"}
WATCH = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
LEAVE = {"type": "unsubscribe", "streamId": "front-door"}


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def stalled(relay: MemoryRelay, token: str = ANN) -> Client:
    """A client that is authenticated, and whose link has room for little."""
    return await relay.login(token, capacity=1024)


async def send_all(client: Client, messages: list[dict[str, Any]]) -> None:
    for message in messages:
        await client.send(message)


async def said_until(client: Client, request_id: str) -> list[dict[str, Any]]:
    said = []
    while (message := await client.receive()).get("id") != request_id:
        said.append(message)
    return said


# -- a viewer that comes and goes


async def test_a_phone_that_reads_slowly_survives_a_viewer_that_comes_and_goes(
    relay: MemoryRelay,
) -> None:
    phone = await stalled(relay)
    await phone.ask({"type": "register", "streamId": "front-door"})
    viewer = await relay.login()
    for turn in range(520):
        await viewer.ask(WATCH)
        await viewer.ask(LEAVE)
        await phone.send(FRAME)
        await trio.sleep(2.1)
        if turn % 40 == 39:
            for _ in range(8):  # what its link holds
                await phone.receive()
    assert relay.connections[0].peer.ending is None
    await phone.send({"type": "unsubscribe", "streamId": "none", "id": "mark"})
    said = await said_until(phone, "mark")
    assert said[-1]["consumers"] == 0  # the last word
    assert len(said) < 30


@pytest.mark.parametrize("asks", [{}, {"parts": True}], ids=["plain", "in parts"])
async def test_much_metadata_that_changes_often_takes_one_place(
    relay: MemoryRelay, asks: dict[str, Any]
) -> None:
    phone = await relay.login()
    viewer = await relay.open(capacity=1024)
    await viewer.ask({"type": "auth", "token": ANN, **asks})
    await viewer.ask(WATCH)
    request = {"type": "register", "streamId": "front-door"}
    for turn in range(100):
        await phone.ask({**request, "metadata": {"turn": turn, "text": "x" * 60_000}})
        await settle()
    peer = relay.connections[1].peer
    assert peer.ending is None
    assert len(peer.mailbox._queue) < 10
    heard: list[int] = []
    content = ""
    while not heard or heard[-1] < 99:
        message = await viewer.receive()
        if message["type"] == "part":
            content = message["data"] if message["index"] == 1 else content + message["data"]
            if message["index"] < message["count"]:
                continue
            message = json.loads(content)
        heard += [message["metadata"]["turn"]] if "metadata" in message else []
    assert heard == sorted(heard)
    assert len(heard) < 10


async def test_a_phone_is_not_told_each_time_that_a_viewer_comes_and_goes_fast(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.login()
    for _ in range(200):
        await viewer.ask(WATCH)
        await viewer.ask(LEAVE)
    await trio.sleep(2)
    await phone.send({"type": "unsubscribe", "streamId": "none", "id": "mark"})
    said = await said_until(phone, "mark")
    assert len(said) < 10
    assert [each["consumers"] for each in said[:2]] == [1, 0]
    assert said[-1]["consumers"] == 0


async def test_the_last_number_reaches_the_phone_also_when_it_came_too_soon(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.login()
    for _ in range(10):
        await viewer.ask(WATCH)
        await viewer.ask(LEAVE)
    await viewer.ask(WATCH)
    await trio.sleep(2)
    await phone.send({"type": "unsubscribe", "streamId": "none", "id": "mark"})
    assert (await said_until(phone, "mark"))[-1]["consumers"] == 1


# -- statuses that a peer does not read


async def test_a_viewer_that_does_not_read_holds_one_status_a_stream(relay: MemoryRelay) -> None:
    viewer = await relay.viewer(capacity=600)
    phone = await relay.phone("back-door")
    for _ in range(600):
        await phone.ask({"type": "register", "streamId": "front-door"})
        await phone.ask({"type": "register", "streamId": "back-door"})
    assert relay.connections[0].peer.ending is None
    await viewer.send({**LEAVE, "id": "mark"})
    said = await said_until(viewer, "mark")
    assert len(said) < 10
    assert said[-1]["status"] == "offline"


async def test_metadata_of_streams_that_have_ended_is_not_kept(relay: MemoryRelay) -> None:
    """Neither for those who still watch them, nor for one that has not read it yet."""
    phone, viewer = await relay.login(), await relay.login()
    slow = await stalled(relay)
    gc.collect()
    before = sum(MARK in each for each in gc.get_objects() if type(each) is dict)
    for number in range(30):
        stream_id = f"cam-{number}"
        await viewer.ask({**WATCH, "streamId": stream_id})
        await slow.send({**WATCH, "streamId": stream_id})
        await settle()
        metadata = {MARK: [number]}
        await phone.ask({"type": "register", "streamId": stream_id, "metadata": metadata})
        await settle()
    assert relay.connections[2].peer.ending is None
    gc.collect()
    kept = sum(MARK in each for each in gc.get_objects() if type(each) is dict)
    assert kept - before < 5
    status: dict[str, Any] = {}
    while status.get("streamId") != "cam-29" or status.get("status") != "online":
        status = await slow.receive_type("status")
    assert status["metadata"] == {MARK: [29]}


async def test_metadata_that_waits_is_not_lost_to_a_later_status(relay: MemoryRelay) -> None:
    observer = await relay.login(SENTRY, capacity=200)
    await observer.send({**WATCH, "id": "s"})
    for turn in range(3):
        phone = await relay.login()
        register = {"type": "register", "streamId": "front-door", "metadata": {"turn": turn}}
        await phone.ask(register)
        await phone.send(FRAME)
        await settle()
    await phone.ask({"type": "register", "streamId": "front-door", "metadata": {"turn": 9}})
    await settle()
    told: list[dict[str, Any]] = []
    while not told or told[-1].get("metadata") != {"turn": 9}:
        told.append(await observer.receive())
    assert told[-1]["status"] == "streaming"


async def test_a_reply_and_the_status_behind_it_stay_together(relay: MemoryRelay) -> None:
    await relay.phone()
    viewer = await stalled(relay)
    for number in range(40):
        await viewer.send({**WATCH, "id": number})
    for number in range(40):
        reply = await viewer.receive_type("success")
        assert reply["id"] == number
        status = await viewer.receive()
        assert (status["type"], status["status"]) == ("status", "online")


async def test_all_streams_that_an_observer_may_see_can_change_at_once(relay: MemoryRelay) -> None:
    observer, phone = await relay.login(SENTRY, capacity=1024), await relay.login()
    await observer.ask({"type": "streams"})
    for number in range(600):
        await phone.ask({"type": "register", "streamId": f"cam-{number}"})
        await phone.send(FRAME)
    await settle()
    assert relay.connections[0].peer.ending is None
    last: dict[str, str] = {}
    while list(last.values()).count("offline") < 599 or last.get("cam-599") != "streaming":
        status = await observer.receive()
        last[status["streamId"]] = status["status"]


async def test_updates_that_nobody_will_read_are_not_encoded(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, phone = await relay.login(SENTRY, capacity=1024), await relay.login()
    await observer.ask({"type": "streams"})
    for number in range(200):
        await phone.ask({"type": "register", "streamId": f"cam-{number}"})
    peer, encoded = relay.connections[0].peer, 0
    encode = type(peer.codec).encode

    def count(self: Codec, message: ServerMessage) -> bytes:
        nonlocal encoded
        encoded += isinstance(message, Status)
        return encode(self, message)

    monkeypatch.setattr(type(peer.codec), "encode", count)
    observer.link.reset()
    await settle()
    assert peer.ending is Ending.CLIENT_GONE
    assert encoded == 0


async def test_a_grant_of_many_streams_reaches_a_viewer_that_reads_slowly(
    relay: MemoryRelay,
) -> None:
    for number in range(20):
        await relay.phone(f"cam-{number}")
    bob = await relay.login(BOB, capacity=1024)
    for number in range(20):
        await bob.ask({**WATCH, "streamId": f"cam-{number}"})
    peer = relay.connections[-1].peer
    for turn in range(61):
        before = relay.verifier.identities[BOB]
        assert isinstance(before, User)
        granted = frozenset(() if turn % 2 else ("*",))
        relay.verifier.identities[BOB] = evolve(before, granted=granted)
        relay.change_feed.tell(Change("user", "bob"))
        await settle()
    assert peer.ending is None
    last: dict[str, str] = {}
    while len(last) < 20 or set(last.values()) != {"online"}:
        status = await bob.receive_type("status")
        last[status["streamId"]] = status["status"]


# -- replies that a peer does not read


@pytest.mark.parametrize("msgpack", [False, True])
async def test_a_viewer_may_subscribe_to_many_streams_before_it_reads(
    relay: MemoryRelay, msgpack: bool
) -> None:
    viewer = await relay.login(capacity=1024, msgpack=msgpack)
    ids = [f"cam-{number}" for number in range(1000)]

    async def subscribe() -> None:
        await send_all(viewer, [{**WATCH, "streamId": each} for each in ids])

    answered: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribe)
        await settle()
        while len(answered) < len(ids):
            reply = await viewer.receive_type("success")
            answered.append(reply["streamId"])
    assert answered == ids
    assert relay.connections[0].peer.ending is None


@pytest.mark.parametrize(
    "request_",
    [
        LEAVE,
        {"type": "streams"},
        {"type": "alerts-since"},
        {"type": "alert", "streamId": "s", "severity": "low", "message": "m"},
        {"type": "auth", "token": ANN},
        {"type": "register", "streamId": "s"},
        {"type": "unheard-of"},
    ],
    ids=lambda each: each["type"],
)
async def test_who_reads_no_replies_is_read_no_further(
    relay: MemoryRelay, request_: dict[str, Any]
) -> None:
    client = await stalled(relay)
    text = json.dumps({**request_, "id": "x" * 200})
    with trio.move_on_after(60):
        for _ in range(5000):
            await client.send(text)
    peer = relay.connections[0].peer
    if request_["type"] == "unheard-of":
        assert peer.ending is Ending.INVALID_MESSAGES
        return
    assert peer.ending is None
    await trio.sleep(130)
    assert peer.ending is Ending.IDLE_TIMEOUT


async def test_the_frames_of_a_phone_go_on_while_it_reads_nothing(relay: MemoryRelay) -> None:
    phone, viewer = await stalled(relay), await relay.viewer()
    await phone.ask({"type": "register", "streamId": "front-door"})
    for _ in range(400):
        await phone.send({**LEAVE, "streamId": "none", "id": "x" * 200})
    for number in range(1, 20):
        await phone.send(FRAME)
        assert (await viewer.receive_type("video-frame"))["seq"] == number


async def test_missed_alerts_of_many_streams_fit_who_reads_slowly(relay: MemoryRelay) -> None:
    sentry, viewer = await relay.login(SENTRY), await stalled(relay)
    ids = [f"cam-{number}" for number in range(8)]
    for stream_id in ids:
        await relay.phone(stream_id)
        for _ in range(150):
            alert = {"streamId": stream_id, "severity": "low", "message": "m"}
            await sentry.ask({"type": "alert", **alert})
    requests = [{"type": "alerts-since", "streamId": each, "limit": 500} for each in ids]

    async def ask() -> None:
        await send_all(viewer, requests)

    alerts = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await settle()
        for _ in ids:
            while (message := await viewer.receive())["type"] == "alert":
                alerts += 1
            assert message["code"] == "ALERTS_REPLAYED"
    assert alerts == 8 * 150


# -- all together


async def test_the_user_with_most_unread_replies_gives_way(relay: MemoryRelay) -> None:
    relay.unread.limit = 1 << 20
    phone, greedy_phone = await relay.phone(), await relay.login(BOB)
    text = "x" * 60_000
    await greedy_phone.ask({"type": "register", "streamId": "b", "metadata": {"text": text}})
    viewer = await relay.login(capacity=1024)  # slow, and owes 60 KB
    await viewer.send({"type": "alerts-since", "id": "x" * 256})
    await phone.ask({"type": "register", "streamId": "front-door", "metadata": {"text": text}})
    await viewer.send(WATCH)
    await settle()
    greedy = [await relay.login(BOB, capacity=1024) for _ in range(8)]
    ask = {"type": "subscribe", "streamId": "b", "consumes": []}
    for client in greedy:
        await send_all(client, [ask] * 6)
        await settle()
        assert relay.unread.reserved <= relay.unread.limit
    endings = [connection.peer.ending for connection in relay.connections]
    assert endings[:3] == [None] * 3
    ended = endings.count(Ending.TOO_SLOW)
    assert endings[3:] == [*[Ending.TOO_SLOW] * ended, *[None] * (8 - ended)]
    assert 0 < ended < 8
    assert relay.metrics.limits_hit[Limit.REPLY_BUFFER] == ended
    while (message := await viewer.receive()).get("code") != "SUBSCRIBED":
        pass
    assert message["metadata"] == {"text": text}
    for client in greedy[ended:]:
        assert (await client.receive())["code"] == "SUBSCRIBED"
