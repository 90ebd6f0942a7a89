"""Streams whose producer sends each picture in several sizes: each viewer gets one that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import pytest
import trio
import trio.testing

from relay.hub.layers.layer_set import LayerSet, StreamLayer
from tests.unit.hub.test_paced_viewers import DELAY, DistantViewer
from tests.unit.lines import counted_lines
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

FPS = 25
SIZES = {"l": 8_500, "m": 27_000, "h": 67_000}
"""Bytes of a frame, as it goes over the wire."""
LAYERS = [{"id": "l", "width": 320}, {"id": "m", "width": 640}, {"id": "h", "width": 1280}]
ENDLESS = 10_000_000.0


async def register(relay: MemoryRelay, layers: Any = LAYERS, **fields: Any) -> Client:
    phone = await relay.login()
    request = {"type": "register", "streamId": "front-door", "layers": layers, **fields}
    reply = await phone.ask(request)
    assert reply["code"] == "REGISTERED", reply
    return phone


async def picture(phone: Client, layers: Iterable[str] = SIZES, **fields: Any) -> None:
    """Send one picture, in these layers."""
    timestamp = round(trio.current_time() * 1000)
    for layer in layers:
        frame = {"type": "video-frame", "layer": layer, "timestamp": timestamp, **fields}
        await phone.send({**frame, "data": "A" * (SIZES[layer] // 4 * 4)})


async def publish(
    phone: Client, seconds: float, layers: Callable[[], Iterable[str]] = lambda: SIZES
) -> None:
    for _ in range(round(seconds * FPS)):
        await picture(phone, layers())
        await trio.sleep(1 / FPS)


async def watch(relay: MemoryRelay, phone: Client, seconds: float, *viewers: DistantViewer) -> None:
    async with trio.open_nursery() as nursery:
        for viewer in viewers:
            nursery.start_soon(viewer.run)
        await publish(phone, seconds)
        nursery.cancel_scope.cancel()
    check_ledger(relay)


def check_ledger(relay: MemoryRelay) -> None:
    ledger = relay.hub.ledger()
    assert ledger.accepted == ledger.written + sum(ledger.dropped.values()) + ledger.waiting
    waiting = (each.waiting_frames for each in consumers(relay))
    assert ledger.waiting == sum(waiting)


def consumers(relay: MemoryRelay) -> Iterable[Any]:
    return itertools.chain.from_iterable(stream.watchers for stream in relay.hub.streams())


async def last_status(client: Client) -> dict[str, Any]:
    """The last status that has come."""
    status = None
    with trio.move_on_after(0.001):
        while True:
            status = await client.receive_type("status")
    assert status is not None
    return status


async def received(client: Client) -> list[dict[str, Any]]:
    """The frames that have come."""
    frames = []
    with trio.move_on_after(0.001):
        while True:
            frames.append(await client.receive_type("video-frame"))
    return frames


# -- what fits the link


@pytest.mark.parametrize(
    ("megabits", "layer", "fps"),
    [(0.3, "l", 4), (1, "l", 12), (3, "m", 10), (20, "h", 24)],
)
async def test_a_viewer_gets_the_largest_layer_that_its_link_carries(
    relay: MemoryRelay, megabits: float, layer: str, fps: float
) -> None:
    phone, client = await register(relay), await relay.viewer()
    rate = megabits * 125_000
    viewer = DistantViewer(client, rate)
    await watch(relay, phone, 15, viewer)
    layers, ages = viewer.layers["front-door"], viewer.ages["front-door"]
    late = layers[len(layers) // 3 :]
    assert late.count(layer) >= 0.97 * len(late)
    assert len(late) >= fps * 10 * 0.97 - 1
    assert median(ages[-50:]) < 1.15 * SIZES[layer] / rate + DELAY + 1 / FPS


async def test_viewers_with_different_links_get_different_layers_of_the_same_pictures(
    relay: MemoryRelay,
) -> None:
    phone = await register(relay)
    thin, fast = [DistantViewer(await relay.viewer(), rate) for rate in (125_000, ENDLESS)]
    await watch(relay, phone, 10, thin, fast)
    assert set(thin.layers["front-door"]) == {"l"}
    assert set(fast.layers["front-door"][-100:]) == {"h"}
    for viewer in (thin, fast):
        seqs = viewer.seqs["front-door"]
        assert seqs == sorted(set(seqs))
    assert fast.seqs["front-door"][-1] >= 10 * FPS - 2


async def test_a_viewer_follows_a_link_that_changes(relay: MemoryRelay) -> None:
    phone, client = await register(relay), await relay.viewer()
    viewer = DistantViewer(client, 2_500_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for rate, layer in ((2_500_000, "h"), (125_000, "l"), (2_500_000, "h")):
            viewer.rate = rate
            await publish(phone, 6)
            assert viewer.layers["front-door"][-20:] == [layer] * 20
        nursery.cancel_scope.cancel()
    layers = viewer.layers["front-door"]
    switches = sum(one != other for one, other in itertools.pairwise(layers[30:]))
    assert switches <= 4
    assert relay.metrics.layer_switches["down"] >= 1
    check_ledger(relay)


async def test_subscriptions_of_one_connection_share_its_link(relay: MemoryRelay) -> None:
    phones = []
    client = await relay.login()
    for number in range(2):
        phone = await relay.login()
        name = f"s{number}"
        await phone.ask({"type": "register", "streamId": name, "layers": LAYERS})
        phones.append(phone)
        await client.ask({"type": "subscribe", "streamId": name, "consumes": ["video-frame"]})
    viewer = DistantViewer(client, 10 * 125_000)  # enough for one in the middle layer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for _ in range(12 * FPS):
            for phone in phones:
                await picture(phone)
            await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()
    check_ledger(relay)
    for name in ("s0", "s1"):
        late = viewer.layers[name][-100:]
        assert set(late) <= {"l", "m"}
        assert median(viewer.ages[name][-100:]) < 0.15


async def test_operators_see_which_layer_each_viewer_is_to_get(relay: MemoryRelay) -> None:
    await register(relay)
    await relay.viewer(layer="m")
    await relay.phone("other")
    await relay.viewer("other")
    streams = {each.stream_id: each.consumers for each in relay.hub.figures().streams}
    assert [each.layer for each in streams["front-door"]] == ["m"]
    assert [each.layer for each in streams["other"]] == [None]


# -- what a picture is


async def test_the_frames_of_a_picture_have_one_seq(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), await relay.viewer(layer="h")
    frames = []
    for _ in range(3):
        await picture(phone)
        await trio.sleep(0.1)
        frames += await received(viewer)
    assert [each["seq"] for each in frames] == [1, 2, 3]
    # Which layers come is not known before the first picture.
    assert [each["layer"] for each in frames[1:]] == ["h", "h"]
    check_ledger(relay)


async def test_a_frame_without_a_timestamp_or_of_a_layer_that_was_there_is_a_new_picture(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await register(relay), await relay.viewer(layer="l", policy="lossless")
    for timestamp, layer in ((1, "l"), (1, "m"), (1, "l"), (2, "l"), (None, "m"), (None, "l")):
        stamp = {} if timestamp is None else {"timestamp": timestamp}
        await phone.send({"type": "video-frame", "layer": layer, "data": "AAAA", **stamp})
        await trio.sleep(0.01)
    assert relay.hub.streams()[0].seq == 5
    assert [each["seq"] for each in await received(viewer)] == [1, 2, 3, 5]
    check_ledger(relay)


async def test_a_frame_that_names_no_layer_is_of_the_largest(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), await relay.viewer(layer="h")
    await phone.send({"type": "video-frame", "data": "AAAA"})
    (frame,) = await received(viewer)
    assert (frame["seq"], frame["layer"]) == (1, "h")


async def test_a_layer_that_was_not_registered_is_refused_now_and_then(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), await relay.viewer()
    for _ in range(30):
        await phone.send({"type": "video-frame", "layer": "x", "data": "AAAA"})
        await trio.sleep(0.1)
    errors = []
    with trio.move_on_after(0.01):
        while True:
            errors.append(await phone.receive_type("error"))
    assert 2 <= len(errors) <= 4
    assert {each["code"] for each in errors} == {"INVALID_MESSAGE"}
    assert await received(viewer) == []


async def test_a_layer_in_a_stream_without_layers_is_refused(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await phone.send({"type": "video-frame", "layer": "l", "data": "AAAA"})
    assert (await phone.receive_type("error"))["code"] == "INVALID_MESSAGE"


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [{"id": str(number)} for number in range(5)],
        [{"id": "l"}, {"id": "l"}],
        [{"id": ""}],
        [{"id": "a" * 17}],
        [{"id": "ä"}],
        [{"id": "l\n"}],
        [{"id": "l", "width": 0}],
        [{"id": "l", "width": 65536}],
        [{"width": 320}],
        [3],
        {"l": 320},
    ],
)
async def test_layers_that_make_no_sense_are_refused(relay: MemoryRelay, layers: Any) -> None:
    phone = await relay.login()
    reply = await phone.ask({"type": "register", "streamId": "front-door", "layers": layers})
    assert reply["code"] == "INVALID_MESSAGE"


# -- terms


@pytest.mark.parametrize(
    ("terms", "layer"),
    [
        ({"maxWidth": 5000}, "h"),
        ({"maxWidth": 1279}, "m"),
        ({"maxWidth": 640}, "m"),
        ({"maxWidth": 100}, "l"),
        ({"layer": "m"}, "m"),
        ({"layer": "m", "maxWidth": 320}, "m"),
        ({"layer": "unknown"}, "h"),
        ({"policy": "lossless"}, "h"),
        ({"policy": "lossless", "layer": "l"}, "l"),
        ({"policy": "lossless", "maxWidth": 640}, "m"),
    ],
)
async def test_a_viewer_may_ask_for_less(
    relay: MemoryRelay, terms: dict[str, Any], layer: str
) -> None:
    phone, viewer = await register(relay), DistantViewer(await relay.viewer(**terms), ENDLESS)
    await watch(relay, phone, 5, viewer)
    assert set(viewer.layers["front-door"][-50:]) == {layer}
    assert len(viewer.layers["front-door"]) >= 5 * FPS - 15


async def test_a_layer_that_does_not_come_is_replaced_by_the_nearest_smaller(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await register(relay), DistantViewer(await relay.viewer(layer="h"), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phone, 2, lambda: ["l", "m"])
        nursery.cancel_scope.cancel()
    assert set(viewer.layers["front-door"][-20:]) == {"m"}
    check_ledger(relay)


async def test_where_only_a_larger_layer_comes_that_is_better_than_nothing(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await register(relay), DistantViewer(await relay.viewer(layer="l"), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phone, 3, lambda: ["h"])
        nursery.cancel_scope.cancel()
    assert viewer.layers["front-door"][-20:] == ["h"] * 20
    check_ledger(relay)


async def test_pictures_are_thinned_before_a_layer_is_chosen(relay: MemoryRelay) -> None:
    phone = await register(relay)
    viewer = DistantViewer(await relay.viewer(maxFps=5), 5 * 125_000)
    await watch(relay, phone, 20, viewer)
    layers = viewer.layers["front-door"]
    assert set(layers[-40:]) == {"h"}  # five a second of these are less than the link carries
    assert 4.5 * 20 <= len(layers) <= 5.5 * 20


async def test_a_new_viewer_begins_at_once_with_what_there_is(relay: MemoryRelay) -> None:
    phone = await register(relay)
    await picture(phone, ["h"])
    viewer = await relay.viewer()
    (frame,) = await received(viewer)
    assert (frame["seq"], frame["layer"]) == (1, "h")
    await picture(phone, ["l", "h"])
    await trio.sleep(0.1)
    (frame,) = await received(await relay.viewer())
    assert (frame["seq"], frame["layer"]) == (2, "l")
    check_ledger(relay)


async def test_a_new_viewer_gets_one_layer_of_a_picture_that_is_still_coming(
    relay: MemoryRelay,
) -> None:
    phone = await register(relay)
    fields = {"type": "video-frame", "timestamp": 1, "data": "AAAA"}
    await phone.send({**fields, "layer": "l"})
    await trio.sleep(0.01)
    viewer = await relay.viewer()
    await phone.send({**fields, "layer": "h"})
    assert [each["layer"] for each in await received(viewer)] == ["l"]


# -- what the producer is told


async def test_the_producer_hears_which_layers_are_needed(relay: MemoryRelay) -> None:
    phone = await register(relay)
    assert (await last_status(phone))["layers"] == []
    slow = await relay.viewer(layer="l")
    assert (await last_status(phone))["layers"] == ["l"]
    await relay.viewer(layer="h")
    assert (await last_status(phone))["layers"] == ["l", "h"]
    await slow.ask({"type": "unsubscribe", "streamId": "front-door"})
    await trio.sleep(1.5)
    await trio.sleep(3)
    assert (await last_status(phone))["layers"] == ["h"]


async def test_a_layer_is_needed_for_a_while_when_its_last_viewer_has_left(
    relay: MemoryRelay,
) -> None:
    phone = await register(relay)
    viewer, _ = await relay.viewer(layer="l"), await relay.viewer(layer="h")
    await trio.sleep(1.5)
    assert (await last_status(phone))["layers"] == ["l", "h"]
    await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    await trio.sleep(1.5)
    status = await last_status(phone)
    assert (status["consumers"], status["layers"]) == (1, ["l", "h"])
    await trio.sleep(2)
    assert (await last_status(phone))["layers"] == ["h"]


async def test_it_hears_it_again_after_each_registration(relay: MemoryRelay) -> None:
    phone = await register(relay)
    await relay.viewer(layer="m")
    await last_status(phone)
    again = {"type": "register", "streamId": "front-door", "layers": LAYERS}
    reply = await phone.ask(again)
    assert reply["layers"] == ["l", "m", "h"]
    assert (await last_status(phone))["layers"] == ["m"]
    newer = await register(relay)
    assert (await last_status(newer))["layers"] == ["m"]


async def test_one_without_layers_hears_of_none(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await relay.viewer()
    status = await phone.receive_type("status")
    assert status["consumers"] == 1
    assert "layers" not in status


async def test_viewers_that_come_and_go_do_not_take_the_phones_link(relay: MemoryRelay) -> None:
    phone = await register(relay)
    await relay.viewer(layer="h")
    await last_status(phone)
    hostile = await relay.login()
    for number in range(100):
        layer = "lm"[number % 2]
        request = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
        await hostile.ask({**request, "layer": layer})
        await trio.sleep(0.1)
    told = 0
    with trio.move_on_after(0.01):
        while True:
            await phone.receive_type("status")
            told += 1
    assert told <= 10 * 2 + 6


# -- changes of the layers, takeovers, deltas


async def test_other_layers_replace_the_old_ones(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), DistantViewer(await relay.viewer(), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phone, 4)
        other = [{"id": "x", "width": 320}, {"id": "y", "width": 1280}]
        newer = await register(relay, other)
        for number in range(4 * FPS):
            for layer in "xy":
                frame = {"type": "video-frame", "layer": layer, "timestamp": 10_000 + number}
                await newer.send({**frame, "data": "A" * 1000})
            await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()
    layers, seqs = viewer.layers["front-door"], viewer.seqs["front-door"]
    assert layers[-20:] == ["y"] * 20
    assert seqs == sorted(set(seqs))
    assert seqs[-1] >= 8 * FPS - 5
    check_ledger(relay)


async def test_a_stream_may_lose_its_layers_and_get_them_back(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), DistantViewer(await relay.viewer(), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phone, 3)
        await phone.ask({"type": "register", "streamId": "front-door"})
        for number in range(3 * FPS):
            data = {"timestamp": 100_000 + number, "data": "AAAA"}
            await phone.send({"type": "video-frame", **data})
            await trio.sleep(1 / FPS)
        assert viewer.layers["front-door"][-20:] == [None] * 20
        await phone.ask({"type": "register", "streamId": "front-door", "layers": LAYERS})
        await publish(phone, 3)
        nursery.cancel_scope.cancel()
    assert viewer.layers["front-door"][-20:] == ["h"] * 20
    seqs = viewer.seqs["front-door"]
    assert seqs == sorted(set(seqs))
    check_ledger(relay)


async def test_deltas_go_on_in_their_layer_until_a_keyframe(relay: MemoryRelay) -> None:
    phone, client = await register(relay), await relay.viewer()
    viewer = DistantViewer(client, ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for number in range(10 * FPS):
            await picture(phone, keyframe=number % 50 == 0)
            await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()
    seqs, layers = viewer.seqs["front-door"], viewer.layers["front-door"]
    assert seqs == list(range(1, 10 * FPS + 1))[: len(seqs)]
    changes = [
        seq
        for seq, (before, after) in zip(seqs[1:], itertools.pairwise(layers), strict=True)
        if before != after
    ]
    assert changes  # from the smallest, with which it began
    assert all(seq % 50 == 1 for seq in changes)
    assert layers[-1] == "h"
    check_ledger(relay)


@pytest.mark.parametrize("max_fps", [3.7, 7.3, 9.5])
async def test_a_viewer_that_wants_few_of_many_deltas_gets_the_keyframes(
    relay: MemoryRelay, max_fps: float
) -> None:
    phone = await register(relay)
    viewer = DistantViewer(await relay.viewer(maxFps=max_fps), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for number in range(10 * FPS):
            await picture(phone, keyframe=number % FPS == 0)
            await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()
    assert len(viewer.seqs["front-door"]) >= 9
    check_ledger(relay)


async def test_a_viewer_that_leaves_while_it_awaits_its_layer_is_counted(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await register(relay), await relay.viewer(layer="h")
    await picture(phone)
    await received(viewer)
    await phone.send({"type": "video-frame", "layer": "l", "timestamp": 5, "data": "AAAA"})
    await trio.sleep(0.01)
    assert relay.hub.ledger().waiting == 1
    check_ledger(relay)
    await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    ledger = relay.hub.ledger()
    assert ledger.waiting == 0
    assert ledger.dropped == {"no_layer": 1}
    check_ledger(relay)


async def test_an_epoch_ends_what_was_awaited(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), await relay.viewer(layer="h")
    await picture(phone)
    await phone.send({"type": "video-frame", "layer": "l", "timestamp": 5, "data": "AAAA"})
    phone.link.close()
    await trio.sleep(10)
    phone = await register(relay)
    await picture(phone)
    frames = await received(viewer)
    assert [each["seq"] for each in frames] == [1, 1]
    check_ledger(relay)


async def test_a_choice_takes_no_more_time_with_many_subscriptions(relay: MemoryRelay) -> None:
    phone, viewer = await register(relay), await relay.viewer()
    lines = []
    for others in (0, 500):
        for number in range(others):
            other = {"streamId": f"other-{number}", "consumes": ["video-frame"]}
            assert (await viewer.ask({"type": "subscribe", **other}))["code"] == "SUBSCRIBED"
        with counted_lines() as count:
            await picture(phone)
            await trio.sleep(0.001)
        lines.append(count.lines)
    assert await received(viewer)
    assert lines[1] < 1.2 * lines[0], lines


async def test_a_layer_of_deltas_is_needed_until_a_keyframe_of_the_next_has_come(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await register(relay), DistantViewer(await relay.viewer(), ENDLESS)
    asked = {"l"}

    async def obey() -> None:
        nonlocal asked
        while True:
            asked = set((await phone.receive_type("status"))["layers"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        nursery.start_soon(obey)
        for number in range(10 * FPS):
            keyframe = number % (8 * FPS) == 0
            await picture(phone, [each for each in SIZES if each in asked], keyframe=keyframe)
            await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()
    seqs = viewer.seqs["front-door"]
    assert max(after - before for before, after in itertools.pairwise(seqs)) < FPS
    assert viewer.layers["front-door"][-1] == "h"
    check_ledger(relay)


RATES = {"l": 250_000, "m": 800_000, "h": 2_500_000}
"""Bits a second of layers of video."""


async def film(phone: Client, seconds: float) -> None:
    """Be the page: send the layers that are needed, with a keyframe each five seconds and when one
    is wanted. Nothing builds on every other frame."""
    asked, is_wanted = {"l"}, True

    async def obey() -> None:
        nonlocal asked, is_wanted
        while True:
            message = await phone.receive()
            if message["type"] == "status":
                is_wanted = is_wanted or not asked.issuperset(message["layers"])
                asked = set(message["layers"])
            elif message.get("code") == "KEYFRAME_WANTED":
                is_wanted = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        for number in range(round(seconds * FPS)):
            key, is_wanted = is_wanted or number % (5 * FPS) == 0, False
            temporal = {"discardable": True} if number % 2 and not key else {}
            stamps = {"timestamp": round(trio.current_time() * 1000), "keyframe": key, **temporal}
            for layer in (each for each in RATES if each in asked):
                size = RATES[layer] // 8 // FPS * (6 if key else 1)
                message = {"type": "video-frame", "layer": layer, **stamps}
                await phone.send({**message, "data": "A" * (size // 4 * 4 - 160)})
            await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("megabits", "layer", "fps"),
    [
        (0.3, "l", 24),
        (0.5, "l", 24.5),
        (0.7, "l", 24.5),
        (1, "m", 24.5),
        (2, "m", 24.5),
        (3.2, "h", 24.5),
    ],
)
async def test_a_viewer_gets_the_layer_of_video_whose_every_frame_its_link_carries(
    relay: MemoryRelay, megabits: float, layer: str, fps: float
) -> None:
    """A frame of 640 pixels alone would take but 64 ms at 0.5 Mbit/s: it comes each 40 ms."""
    phone, client = await register(relay), await relay.viewer()
    # A ping is not behind the frame that it was written ahead of, and frames are small.
    viewer = DistantViewer(client, megabits * 125_000, packet_bytes=200)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await film(phone, 30)
        nursery.cancel_scope.cancel()
    layers, ages = viewer.layers["front-door"], viewer.ages["front-door"]
    count = len(layers)
    assert layers[count // 3 :].count(layer) == len(layers[count // 3 :])
    assert count >= fps * 30
    assert median(ages) < 0.1
    check_ledger(relay)


@pytest.mark.parametrize(
    ("pauses", "period"),
    [
        ([0.04] * 20 + [5.0] + [0.04] * 5, 0.04),
        ([0.04] * 20 + [1.0] * 30, 1.0),
        ([0.0, 0.0, 0.0, 0.16] * 30, 0.04),
    ],
    ids=["gap", "fewer", "bursts"],
)
async def test_a_gap_is_no_lower_rate_of_video(pauses: list[float], period: float) -> None:
    layers = LayerSet([StreamLayer("l", 320)], from_producer=True)
    for seq, pause in enumerate(pauses):
        layers.begin_picture(seq)
        layers.note(0, 1000, keyframe=False)
        await trio.sleep(pause)
    (option,) = layers.options()
    assert option.delta_period == pytest.approx(period, rel=0.4)


async def test_who_waits_for_alerts_only_needs_no_layer(relay: MemoryRelay) -> None:
    listener = await relay.login()
    request = {"type": "subscribe", "streamId": "front-door", "consumes": ["alert"]}
    await listener.ask(request)
    phone, _viewer = await register(relay), await relay.viewer(layer="h")
    for _ in range(5 * FPS):
        await picture(phone, ["h"])
        await trio.sleep(1 / FPS)
    assert (await last_status(phone))["layers"] == ["h"]


@pytest.mark.parametrize("layers", [None, [{"id": "l", "width": 320}]])
async def test_other_layers_begin_with_a_keyframe(relay: MemoryRelay, layers: Any) -> None:
    phone, viewer = await register(relay), await relay.viewer(layer="h")
    for keyframe in (True, False):
        await picture(phone, ["h"], keyframe=keyframe)
        await trio.sleep(0.1)
    before = len(await received(viewer))
    assert before == 2
    await phone.ask({"type": "register", "streamId": "front-door", "layers": layers})
    newcomer = await relay.viewer()
    for number, keyframe in enumerate((False, True, False)):
        frame = {"type": "video-frame", "timestamp": number, "keyframe": keyframe, "data": "AAAA"}
        await phone.send(frame)
        await trio.sleep(0.1)
    for each, seqs in ((viewer, [4, 5]), (newcomer, [1, 4, 5])):
        frames = await received(each)
        assert [frame["seq"] for frame in frames] == seqs
    check_ledger(relay)
