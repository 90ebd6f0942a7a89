"""A stream of one node, watched at another: the same as at its own."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from relay.connection.context import Timing
from relay.hub.stream_report import report_of
from relay.transport.budget import Budget
from tests.unit.cluster.frames import VIEW, frame, messages_as_sent, numbers, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster
from tests.unit.memory import BOB, Client

pytestmark = pytest.mark.mock_clock


@pytest.mark.parametrize("viewer_packs", [False, True])
@pytest.mark.parametrize("phone_packs", [False, True])
async def test_frames_are_byte_for_byte_those_of_the_origin(
    pair: MemoryCluster, *, phone_packs: bool, viewer_packs: bool
) -> None:
    phone = await pair["a"].phone(msgpack=phone_packs)
    await phone.send(frame(b"welcome", phone, timestamp=1))
    near = await pair["a"].viewer(msgpack=viewer_packs)
    far = await pair["b"].viewer(msgpack=viewer_packs)
    kinds: list[dict[str, Any]] = [
        {"timestamp": 5},
        {"timestamp": 1.5, "metadata": {"a": [1, {"b": None}], "é": "\u2028"}},
        {"keyframe": True},
        {"keyframe": False},
        {"keyframe": False, "discardable": True},
    ]
    for number, fields in enumerate(kinds):
        await phone.send(frame(b"picture%d" % number * 100, phone, **fields))
    assert await messages_as_sent(far, 6) == await messages_as_sent(near, 6)


@pytest.mark.parametrize("viewer_packs", [False, True])
@pytest.mark.parametrize("phone_packs", [False, True])
@pytest.mark.parametrize("size", [60_000, 2_500_000])
async def test_long_and_large_frames_cross(
    pair: MemoryCluster, size: int, *, phone_packs: bool, viewer_packs: bool
) -> None:
    pair["a"].relay.timing = Timing(10.0, 25.0, 120.0, 8 << 20)
    pair["a"].relay.budget = Budget(64 << 20)
    phone = await pair["a"].phone(msgpack=phone_packs)
    viewer = await pair["b"].relay.login(msgpack=viewer_packs)
    await viewer.ask(VIEW)
    await trio.sleep(0.01)
    content = bytes(range(256)) * (size // 256)
    await phone.send(frame(content, phone))
    (message,) = only("video-frame", await received(viewer))
    assert message["data"] == frame(content, viewer)["data"]


async def test_a_viewer_at_an_edge_gets_a_long_frame_in_parts(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].relay.open()
    await viewer.ask({"type": "auth", "token": "token-of-ann", "parts": True})
    await viewer.ask(VIEW)
    await trio.sleep(0.01)
    await phone.send(frame(b"x" * 60_000))
    parts = only("part", await received(viewer))
    assert parts[0]["count"] == len(parts) > 4
    assert {each["streamId"] for each in parts} == {"front-door"}


async def test_the_phone_is_told_of_the_viewers_of_all_nodes(three: MemoryCluster) -> None:
    phone = await three["a"].phone()
    viewers = [await three[name].viewer() for name in "bbc"]
    told = [each["consumers"] for each in only("status", await received(phone, 3))]
    assert told[0] == 1
    assert told[-1] == 3
    assert len(told) <= 3
    viewers.append(await three["a"].viewer())
    for viewer in viewers:
        await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    told = [each["consumers"] for each in only("status", await received(phone, 3))]
    assert told[-1] == 0


async def test_the_first_viewer_and_the_last_one_are_told_at_once(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    (status,) = only("status", await received(phone, 0.05))
    assert status["consumers"] == 1
    await trio.sleep(5)
    await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    (status,) = only("status", await received(phone, 0.05))
    assert status["consumers"] == 0


async def test_nothing_crosses_once_the_last_viewer_has_left(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"seen"))
    assert await numbers(viewer) == [1]
    await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    await trio.sleep(0.1)
    before = pair["a"].links.totals.frames.accepted
    for _ in range(5):
        await phone.send(frame(b"unseen"))
    await trio.sleep(0.1)
    assert pair["a"].links.totals.frames.accepted == before
    assert pair["b"].metrics.frames["received"] == 1


async def test_what_was_accepted_while_a_link_was_cut_is_lost_for_the_viewers_that_stay(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"1"))
    assert await numbers(viewer) == [1]
    pair.cut()
    for number in range(2, 6):
        await phone.send(frame(b"%d" % number))
    assert await numbers(viewer, 3) == [5]
    await phone.send(frame(b"6"))
    assert await numbers(viewer) == [6]
    assert pair["b"].metrics.frames["lost"] == 3
    (stream,) = pair["b"].relay.hub.streams()
    assert report_of(stream).lost == 3


async def test_what_nobody_watched_was_not_lost(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"1"))
    assert await numbers(viewer) == [1]
    await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    await trio.sleep(0.1)
    for number in range(2, 6):
        await phone.send(frame(b"%d" % number))
    await viewer.ask(VIEW)
    await phone.send(frame(b"6"))
    assert (await numbers(viewer))[-1] == 6
    assert pair["b"].metrics.frames["lost"] == 0


async def test_nothing_crosses_for_strangers(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    stranger = await pair["b"].viewer(token=BOB)
    for _ in range(5):
        await phone.send(frame(b"unseen"))
    assert only("video-frame", await received(stranger, 3)) == []
    assert not pair.calls
    assert only("status", await received(phone)) == []


async def test_a_viewer_who_comes_back_at_once_gets_frames(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].relay.login()
    for _ in range(5):
        await viewer.send(VIEW)
        await viewer.send({"type": "unsubscribe", "streamId": "front-door"})
    await viewer.send(VIEW)
    await received(viewer)
    await phone.send(frame(b"picture"))
    assert await numbers(viewer) == [1]


async def test_a_newcomer_gets_no_frame_of_the_time_before_nobody_watched(
    pair: MemoryCluster,
) -> None:
    """Somebody who waits for alerts only keeps the stream at the edge."""
    phone = await pair["a"].phone()
    listener = await pair["b"].relay.login()
    await listener.ask({**VIEW, "consumes": ["alert"]})
    first = await pair["b"].viewer()
    await phone.send(frame(b"old"))
    assert await numbers(first) == [1]
    await first.ask({"type": "unsubscribe", "streamId": "front-door"})
    await trio.sleep(2)
    for _ in range(3):
        await phone.send(frame(b"new"))
    second = await pair["b"].viewer()
    assert await numbers(second) == [4]


async def test_a_newcomer_gets_the_last_frame_though_it_came_before_nobody_watched(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    listener = await pair["b"].relay.login()
    await listener.ask({**VIEW, "consumes": ["alert"]})
    for _ in range(2):
        viewer = await pair["b"].viewer()
        if _ == 0:
            await phone.send(frame(b"only"))
        assert await numbers(viewer) == [1]
        await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
        await trio.sleep(2)


async def test_metadata_reach_the_viewers_of_all_nodes(pair: MemoryCluster) -> None:
    phone = await pair["a"].relay.login()
    await phone.ask({"type": "register", "streamId": "front-door", "metadata": {"codec": "jpeg"}})
    viewer = await pair["b"].relay.login()
    assert (await viewer.ask(VIEW))["metadata"] == {"codec": "jpeg"}
    await received(viewer)
    await phone.ask({"type": "register", "streamId": "front-door", "metadata": {"codec": "webp"}})
    (status,) = only("status", await received(viewer))
    assert status["metadata"] == {"codec": "webp"}


async def test_an_edge_that_needs_a_keyframe_asks_the_phone(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    first = await pair["b"].viewer()
    await phone.send(frame(b"key", keyframe=True))
    for _ in range(3):
        await phone.send(frame(b"delta", keyframe=False))
    await received(phone)
    second = await pair["b"].viewer()
    (notice,) = only("notice", await received(phone))
    assert (notice["code"], notice["streamId"]) == ("KEYFRAME_WANTED", "front-door")
    await phone.send(frame(b"delta", keyframe=False))
    await phone.send(frame(b"key", keyframe=True))
    await phone.send(frame(b"delta", keyframe=False))
    assert await numbers(first) == [1, 2, 3, 4, 5, 6, 7]
    assert await numbers(second) == [1, 6, 7]


async def test_the_phone_learns_that_viewers_elsewhere_cannot_read_its_data(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    reads_json = await pair["b"].viewer()
    packs = await pair["b"].viewer(msgpack=True)
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": "no base64!"})
    errors = only("error", await received(phone))
    assert [each["code"] for each in errors] == ["INVALID_MESSAGE"]
    assert [each["data"] for each in only("video-frame", await received(reads_json))] == [
        "no base64!"
    ] * 3
    assert await numbers(packs) == []
    await phone.send(frame(b"good"))
    assert await numbers(packs) == [4]


LAYERS = [{"id": "low", "width": 320}, {"id": "high", "width": 1280}]


async def layered_phone(cluster: MemoryCluster, name: str) -> Client:
    phone = await cluster[name].relay.login()
    await phone.ask({"type": "register", "streamId": "front-door", "layers": LAYERS})
    return phone


async def send_picture(phone: Client, number: int, **fields: Any) -> None:
    for layer in ("low", "high"):
        content = layer.encode() * 100
        await phone.send(frame(content, timestamp=number, layer=layer, **fields))


async def test_each_layer_crosses_and_viewers_at_the_edge_choose(pair: MemoryCluster) -> None:
    phone = await layered_phone(pair, "a")
    small = await pair["b"].viewer(layer="low")
    (*_, status) = only("status", await received(phone, 3))
    assert status["layers"] == ["low"]
    large = await pair["b"].viewer(layer="high")
    (*_, status) = only("status", await received(phone, 3))
    assert status["layers"] == ["low", "high"]
    near = [await pair["a"].viewer(layer=layer) for layer in ("low", "high")]
    for number in range(1, 6):
        await send_picture(phone, number)
        await trio.sleep(0.5)
    for far, other in zip((small, large), near, strict=True):
        frames = [
            [(each["seq"], each["layer"]) for each in only("video-frame", await received(viewer))]
            for viewer in (far, other)
        ]
        # Whether a layer flows is not known before the first picture has come as a whole.
        assert frames[0][1:] == frames[1][1:]
        assert [seq for seq, _ in frames[0]] == [1, 2, 3, 4, 5]
    for viewer in near:
        await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    await large.ask({"type": "unsubscribe", "streamId": "front-door"})
    (*_, status) = only("status", await received(phone, 8))
    assert status["layers"] == ["low"]


@pytest.mark.parametrize("options", [{"maxFps": 5}, {"window": 2}])
async def test_flow_control_works_at_the_edge(pair: MemoryCluster, options: Any) -> None:
    phone = await pair["a"].phone()
    free = await pair["b"].viewer()
    bound = await pair["b"].viewer(**options)
    for _ in range(20):
        await phone.send(frame(b"picture"))
        await trio.sleep(0.02)
    assert await numbers(free) == list(range(1, 21))
    got = await numbers(bound)
    assert got == sorted(set(got))
    assert len(got) in {2, 3}
    if "window" in options:
        await bound.send({"type": "ack", "streamId": "front-door", "seq": got[-1]})
        assert await numbers(bound) == [20]
