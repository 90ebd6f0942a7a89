"""Requests and answers that cross on a link: an answer to an earlier request is no answer."""

from __future__ import annotations

import json

import msgpack
import pytest
import trio

from relay.client.websocket import WebSocket
from relay.cluster.streams.messages import LINK_PROTOCOL_VERSION
from tests.unit.cluster.frames import VIEW, frame, numbers, only, received
from tests.unit.cluster.memory_cluster import LinkStream, MemoryCluster
from tests.unit.hostile import masked_frame

pytestmark = pytest.mark.mock_clock

REGISTER = {"type": "register", "streamId": "front-door"}


async def test_the_end_of_an_epoch_does_not_end_the_next_one(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"first epoch"))
    assert await numbers(viewer) == [1]
    link = pair.call("b", "a").ours
    link.stall()
    await phone.ask({**REGISTER, "streamId": "other"})
    await phone.ask(REGISTER)
    await trio.sleep(0.3)  # the directory tells the edge of the next epoch first
    link.go_on()
    await trio.sleep(0.2)
    await phone.send(frame(b"second epoch"))
    assert await numbers(viewer, 0.1) == [1]


async def test_frames_of_an_epoch_that_wait_for_a_link_do_not_come_in_the_next_one(
    pair: MemoryCluster,
) -> None:
    pair.capacity = 20_000
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"first epoch"))
    await received(viewer)
    link = pair.call("b", "a").ours
    link.stall()
    for _ in range(8):
        await phone.send(frame(b"x" * 9000))
    await trio.sleep(0.01)
    assert pair["a"].links.totals.waiting > 1
    await phone.ask({**REGISTER, "streamId": "other"})
    await phone.ask(REGISTER)
    await phone.send(frame(b"second epoch"))
    link.go_on()
    messages = await received(viewer, 3)
    last_epoch = max(each["epoch"] for each in only("status", messages))
    begun = [each for each in messages if each.get("epoch") == last_epoch]
    behind = messages[messages.index(begun[0]) :]
    assert [each["seq"] for each in only("video-frame", behind)] == [1]
    await phone.send(frame(b"second epoch"))
    assert await numbers(viewer) == [2]


async def test_a_stream_that_went_away_and_came_back_is_carried_again(three: MemoryCluster) -> None:
    phone = await three["a"].phone()
    viewer = await three["b"].viewer()
    await phone.send(frame(b"1"))
    assert await numbers(viewer) == [1]
    link = three.call("b", "a").ours
    link.stall()
    await three["c"].phone()
    await trio.sleep(0.3)
    phone = await three["a"].phone()
    await trio.sleep(0.3)
    link.go_on()
    await trio.sleep(0.5)
    await phone.send(frame(b"2"))
    assert await numbers(viewer) == [2]


async def test_a_viewer_who_comes_back_at_once_gets_what_a_newcomer_gets(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    await phone.send(frame(b"1"))
    first = await pair["b"].viewer()
    assert await numbers(first) == [1]
    link = pair.call("b", "a").ours
    link.stall()
    viewer = await pair["b"].relay.login()
    await first.ask({"type": "unsubscribe", "streamId": "front-door"})
    for _ in range(3):
        await viewer.send(VIEW)
        await viewer.send({"type": "unsubscribe", "streamId": "front-door"})
    await viewer.send(VIEW)
    await trio.sleep(0.1)
    await phone.send(frame(b"2"))
    link.go_on()
    assert await numbers(viewer, 0.1) in ([1, 2], [2])
    producers = pair["b"].links.origins["a"].carried
    assert [each.stream for each in producers] == [pair["b"].stream()]
    assert len(pair["a"].stream().edges) == 1


async def test_who_leaves_before_the_answer_leaves_nothing(pair: MemoryCluster) -> None:
    await pair["a"].phone()
    other = await pair["a"].phone("side-door")
    viewer = await pair["b"].viewer("side-door")
    link = pair.call("b", "a").ours
    link.stall()
    for _ in range(3):
        passer = await pair["b"].viewer()
        await passer.ask({"type": "unsubscribe", "streamId": "front-door"})
    newcomer = await pair["a"].phone()  # another epoch would do as well
    link.go_on()
    await trio.sleep(0.1)
    assert pair["b"].relay.hub.find("front-door") is None
    assert pair["a"].stream().edges == {}
    assert list(pair["b"].relay.hub.live_ids()) == ["side-door"]
    await other.send(frame(b"1"))
    assert await numbers(viewer) == [1]
    assert newcomer is not None


@pytest.mark.parametrize("packs", [False, True])
async def test_who_takes_a_stream_over_gets_its_last_frame_with_the_answer(
    pair: MemoryCluster, *, packs: bool
) -> None:
    """A frame of its own could be taken for one of a later epoch."""
    phone = await pair["a"].phone(msgpack=packs)
    await phone.send(frame(b"last", phone))
    link = pair.open_edge(pair.join_as("x"), "a")
    hello = {"type": "hello", "version": LINK_PROTOCOL_VERSION}
    take = {"type": "take", "streamId": "front-door", "term": 2**52}
    link.send(b"".join(masked_frame(2, msgpack.packb(each)) for each in (hello, take)))
    await trio.sleep(0.1)
    messages: list[memoryview] = []
    socket = WebSocket(LinkStream(link))
    await socket.read(lambda payload: messages.append(memoryview(bytes(payload))))
    *_, answer = [msgpack.unpackb(each) for each in messages]
    assert (answer["type"], answer["seq"]) == ("taken", 1)
    assert "video-frame" not in [msgpack.unpackb(each)["type"] for each in messages]
    keyframe = (msgpack.unpackb if packs else json.loads)(answer["keyframe"])
    assert (keyframe["seq"], keyframe["data"]) == (1, frame(b"last", phone)["data"])


@pytest.mark.parametrize("packs", [False, True])
async def test_newcomers_get_the_last_frame_of_the_node_before(
    pair: MemoryCluster, *, packs: bool
) -> None:
    phone = await pair["a"].phone(msgpack=packs)
    await phone.send(frame(b"last", phone))
    await trio.sleep(0.01)
    await pair["b"].phone()
    newcomer = await pair["b"].viewer()
    (got,) = only("video-frame", await received(newcomer))
    assert (got["seq"], got["data"]) == (1, frame(b"last")["data"])
