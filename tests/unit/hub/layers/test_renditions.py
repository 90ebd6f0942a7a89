"""Smaller pictures that the relay makes, for viewers on slow links, of a phone's JPEG pictures."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import msgpack
import pytest
import trio
from attrs import define, field
from wsproto import events

from relay.hub.flow_control import FlowControlOptions
from relay.hub.layers.layer_set import LayerSet, StreamLayer
from relay.hub.layers.renditions import FAILURE_PAUSE
from relay.hub.layers.selection import LayerSelection
from relay.renditions.jpeg_header import read_size
from tests.unit.hub.layers.test_layered_streams import FPS, check_ledger, received
from tests.unit.hub.test_paced_viewers import DELAY, DistantViewer
from tests.unit.memory import Client, MemoryRelay, MemoryRenderer, jpeg

pytestmark = pytest.mark.mock_clock

ENDLESS, MBIT = 10_000_000.0, 125_000.0
SIZE = 50_000
"""Bytes of a picture that is 1280 pixels wide; as JSON a third more."""


@define(eq=False)
class MeasuringViewer(DistantViewer):
    """It notes the widths of pictures, too."""

    widths: list[int | None] = field(factory=list)

    def _read(self, message: dict[str, Any], nursery: trio.Nursery) -> None:
        if message["type"] == "video-frame":
            size = read_size(base64.b64decode(message["data"]))
            self.widths.append(None if size is None else size[0])
        super()._read(message, nursery)


@define(eq=False)
class Picture:
    """What a phone sends, again and again."""

    data: bytes = field(factory=lambda: jpeg(1280, 720, SIZE))
    fields: dict[str, Any] = field(factory=dict)

    def frame(self) -> dict[str, Any]:
        timestamp = round(trio.current_time() * 1000)
        data = base64.b64encode(self.data).decode()
        return {"type": "video-frame", "timestamp": timestamp, "data": data, **self.fields}


async def publish(
    phone: Client, seconds: float, picture: Picture | None = None, fps: float = FPS
) -> None:
    for _ in range(round(seconds * fps)):
        await phone.send((picture or Picture()).frame())
        await trio.sleep(1 / fps)


async def watch(
    relay: MemoryRelay,
    phone: Client,
    seconds: float,
    *viewers: DistantViewer,
    picture: Picture | None = None,
) -> None:
    async with trio.open_nursery() as nursery:
        for viewer in viewers:
            nursery.start_soon(viewer.run)
        await publish(phone, seconds, picture)
        nursery.cancel_scope.cancel()
    check_ledger(relay)


@pytest.fixture
def renderer(relay: MemoryRelay) -> MemoryRenderer:
    relay.hub.renderer = MemoryRenderer()
    return relay.hub.renderer


@pytest.mark.parametrize(
    ("megabits", "layer", "fps"), [(1, "320", 11), (3, "640", 8), (25, None, 23)]
)
async def test_a_viewer_gets_the_largest_picture_that_its_link_carries(
    relay: MemoryRelay, renderer: MemoryRenderer, megabits: float, layer: str | None, fps: float
) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    viewer = DistantViewer(client, megabits * MBIT)
    await watch(relay, phone, 15, viewer)
    layers, ages = viewer.layers["front-door"], viewer.ages["front-door"]
    late = layers[len(layers) // 3 :]
    assert late.count(layer) >= 0.95 * len(late)
    assert len(late) >= fps * 10 * 0.95
    assert median(ages[-50:]) < 0.2
    seqs = viewer.seqs["front-door"]
    assert seqs == sorted(set(seqs))


@pytest.mark.parametrize("megabits", [0.3, 1])
async def test_a_viewer_behind_a_deep_queue_waits_for_one_large_picture_at_most(
    relay: MemoryRelay, renderer: MemoryRenderer, megabits: float
) -> None:
    """Whatever is under way there cannot be called back."""
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), megabits * MBIT)
    large, small = (size * 4 / 3 / (megabits * MBIT) for size in (SIZE, 10_000))
    await watch(relay, phone, large + 2 * small + 1, viewer)
    layers, ages = viewer.layers["front-door"], viewer.ages["front-door"]
    assert layers[0] is None
    assert set(layers[1:]) <= {"320", "640"}
    assert len(layers) >= 3
    assert max(ages[1:]) < 1.2 * small + DELAY + 2 / FPS


async def test_a_viewer_begins_with_a_small_picture_if_there_is_one_and_then_gets_what_fits(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, slow = await relay.phone(), DistantViewer(await relay.viewer(), MBIT)
    late = [DistantViewer(await relay.login(), rate) for rate in (0.3 * MBIT, ENDLESS)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.run)
        await publish(phone, 3)
        for viewer in late:
            await viewer.client.send(
                {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
            )
            nursery.start_soon(viewer.run)
        await publish(phone, 3)
        nursery.cancel_scope.cancel()
    thin, fast = (viewer.layers["front-door"] for viewer in late)
    assert thin[0] == fast[0] == "320"
    assert set(fast[1:]) == {None}
    assert set(thin[1:]) == {"320"}
    check_ledger(relay)


async def test_a_picture_that_stays_for_long_is_not_the_smallest(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, slow = await relay.phone(), DistantViewer(await relay.viewer(), 0.1 * MBIT)
    late = DistantViewer(await relay.login(), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.run)
        await publish(phone, 40, fps=0.5)
        assert renderer.made
        await late.client.send(
            {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
        )
        nursery.start_soon(late.run)
        await publish(phone, 4, fps=0.5)
        nursery.cancel_scope.cancel()
    assert set(late.layers["front-door"]) == {None}


async def test_nothing_is_made_while_nobody_needs_it(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), ENDLESS)
    await watch(relay, phone, 5, viewer)
    assert renderer.made == []
    assert set(viewer.layers["front-door"]) == {None}


async def test_nothing_is_made_any_more_when_the_slow_viewer_has_left(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, fast = await relay.phone(), DistantViewer(await relay.viewer(), ENDLESS)
    client = await relay.viewer()
    slow = DistantViewer(client, MBIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fast.run)
        nursery.start_soon(slow.run)
        await publish(phone, 6)
        assert renderer.made
        await client.send({"type": "unsubscribe", "streamId": "front-door"})
        await publish(phone, 3)
        before = len(renderer.made)
        await publish(phone, 3)
        nursery.cancel_scope.cancel()
    assert len(renderer.made) == before
    assert fast.seqs["front-door"][-1] >= 12 * FPS - 2
    check_ledger(relay)


async def test_slow_viewers_share_what_is_made(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone = await relay.phone()
    viewers = [DistantViewer(await relay.viewer(), MBIT) for _ in range(4)]
    await watch(relay, phone, 10, *viewers)
    assert len(renderer.made) <= 10 * FPS
    for viewer in viewers:
        assert viewer.layers["front-door"][-40:] == ["320"] * 40


async def test_who_does_not_get_a_rendition_gets_what_its_link_carries_of_the_original(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), MBIT)
    renderer.has_room = False
    await watch(relay, phone, 30, viewer)
    seconds = SIZE * 4 / 3 / MBIT
    assert set(viewer.layers["front-door"]) == {None}
    assert len(viewer.seqs["front-door"]) >= 0.8 * 30 / seconds - 3
    assert median(viewer.ages["front-door"][3:]) < 1.2 * seconds + DELAY + 1 / FPS


async def test_pictures_of_which_nothing_can_be_made_are_tried_now_and_then(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), MBIT)
    renderer.fails = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phone, 30)
        assert 3 <= renderer.tried <= 3 * (30 / FAILURE_PAUSE + 1)
        assert len(viewer.seqs["front-door"]) >= 30
        renderer.fails = False
        await publish(phone, 15)
        nursery.cancel_scope.cancel()
    assert viewer.layers["front-door"][-20:] == ["320"] * 20
    check_ledger(relay)


async def test_the_newest_picture_is_made_when_the_renderer_is_slow(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    renderer.seconds = 0.11
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), MBIT)
    await watch(relay, phone, 15, viewer)
    assert viewer.layers["front-door"][-40:] == ["320"] * 40
    late = viewer.seqs["front-door"][-40:]
    assert {after - before for before, after in itertools.pairwise(late)} == {3}
    assert median(viewer.ages["front-door"][-40:]) < 0.11 + 0.12


@pytest.mark.parametrize(
    "picture",
    [
        Picture(b"not a JPEG".ljust(SIZE)),
        Picture(jpeg(1280, 720, SIZE)[:2].ljust(SIZE, b"\xff")),
        Picture(jpeg(5000, 720, SIZE)),
        Picture(jpeg(320, 240, SIZE)),
        Picture(fields={"keyframe": True}),
    ],
    ids=["other", "no size", "too large", "too small", "keyframes"],
)
async def test_of_other_pictures_nothing_is_made(
    relay: MemoryRelay, renderer: MemoryRenderer, picture: Picture
) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), MBIT)
    await watch(relay, phone, 10, viewer, picture=picture)
    assert renderer.made == []
    assert len(viewer.seqs["front-door"]) >= 10


async def test_pictures_may_change_their_size(relay: MemoryRelay, renderer: MemoryRenderer) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), MBIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for width, layer in ((1280, "320"), (640, "320"), (320, None), (1920, "320")):
            picture = Picture(jpeg(width, 480, int(SIZE * (width / 1280) ** 1.5)))
            await publish(phone, 8, picture)
            assert viewer.layers["front-door"][-30:] == [layer] * 30
        nursery.cancel_scope.cancel()
    seqs = viewer.seqs["front-door"]
    assert seqs == sorted(set(seqs))
    check_ledger(relay)


@pytest.mark.parametrize(
    ("terms", "width"),
    [
        ({"maxWidth": 320}, 320),
        ({"maxWidth": 700}, 640),
        ({"maxWidth": 1280}, 1280),
        ({"layer": "640"}, 640),
        ({"layer": "original"}, 1280),
        ({"maxWidth": 320, "policy": "lossless"}, 1280),
    ],
)
async def test_a_viewer_may_ask_for_smaller_pictures_on_any_link(
    relay: MemoryRelay, renderer: MemoryRenderer, terms: dict[str, Any], width: int
) -> None:
    phone, viewer = await relay.phone(), MeasuringViewer(await relay.viewer(**terms), ENDLESS)
    await watch(relay, phone, 3, viewer)
    assert viewer.widths[-40:] == [width] * 40
    seqs = viewer.seqs["front-door"]
    assert seqs == sorted(set(seqs))


async def test_a_rendition_has_all_that_its_picture_had(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, old = await relay.phone(), await relay.viewer(maxWidth=320)
    binary = await relay.viewer(maxWidth=320, msgpack=True)
    fields = {"metadata": {"lens": "wide"}, "timestamp": 123_456}
    for _ in range(10):
        await phone.send({**Picture().frame(), **fields})
        await trio.sleep(0.1)
    for viewer in (old, binary):
        frame = (await received(viewer))[-1]
        assert frame.pop("data")
        assert frame["seq"] == 10
        assert frame["layer"] == "320"
        assert frame["timestamp"] == 123_456
        assert frame["metadata"] == {"lens": "wide"}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_renditions_are_made_of_pictures_in_either_encoding(
    relay: MemoryRelay, renderer: MemoryRenderer, codec: str
) -> None:
    phone = await relay.phone(msgpack=codec == "msgpack")
    viewer = await relay.viewer(maxWidth=320)
    frame = Picture().frame()
    if codec == "msgpack":
        frame["data"] = Picture().data
    for _ in range(10):
        await phone.send(frame)
        await trio.sleep(0.1)
    frames = await received(viewer)
    assert frames[-1]["layer"] == "320"


async def test_viewers_who_know_no_layers_can_be_left_alone(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    relay.layers_for_old_clients = False
    phone = await relay.phone()
    old = DistantViewer(await relay.viewer(), MBIT)
    new = DistantViewer(await relay.viewer(maxWidth=4000), MBIT)
    await watch(relay, phone, 10, old, new)
    assert set(old.layers["front-door"]) == {None}
    assert new.layers["front-door"][-20:] == ["320"] * 20


async def test_a_rendition_that_comes_after_the_end_of_its_epoch_is_thrown_away(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    renderer.seconds = 8.0
    phone, viewer = await relay.phone(), await relay.viewer(maxWidth=320)
    await publish(phone, 1.5, fps=10)
    phone.link.close()
    await trio.sleep(5.5)
    phone = await relay.phone()
    await publish(phone, 5, fps=10)
    frames = await received(viewer)
    assert len(renderer.made) == 1
    assert not [each for each in frames if each.get("layer") == "320"]
    check_ledger(relay)


async def test_a_renderer_that_breaks_harms_no_stream(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    renderer.problem = ZeroDivisionError()
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(maxWidth=320), ENDLESS)
    await watch(relay, phone, 10, viewer)
    assert len(viewer.seqs["front-door"]) >= 5 * FPS
    assert renderer.tried <= 6  # each time it is logged


def delay_tasks(relay: MemoryRelay) -> list[Callable[[], Awaitable[None]]]:
    """Keep the tasks that streams start from now on, for the test to run."""
    tasks: list[Callable[[], Awaitable[None]]] = []
    for stream in relay.hub.streams():
        stream.start_soon = tasks.append
    return tasks


async def test_a_stream_may_lose_its_owner_before_a_rendition_is_begun(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxWidth=320)
    tasks = delay_tasks(relay)
    await publish(phone, 0.2, fps=10)
    relay.hub.change_owner("front-door", None)
    for task in tasks:
        await task()
    assert tasks
    assert not [each for each in await received(viewer) if each.get("layer")]
    check_ledger(relay)


async def test_a_rendition_that_is_begun_late_is_not_given_to_viewers_of_another_epoch(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, _first = await relay.phone(), await relay.viewer(maxWidth=320)
    tasks = delay_tasks(relay)
    await publish(phone, 2, fps=10)
    late = tasks.copy()
    assert late
    phone.link.close()
    await trio.sleep(6)
    phone = await relay.phone()
    await publish(phone, 0.2, fps=10)
    for task in late:
        await task()
    newcomer = await relay.viewer(maxWidth=320)
    await publish(phone, 0.2, fps=10)
    for task in tasks[len(late) :]:
        await task()
    frames = await received(newcomer)
    assert [each["seq"] for each in frames] == [2, 3]
    check_ledger(relay)


async def test_a_rendition_of_other_layers_is_not_given_to_newcomers(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    renderer.seconds = 0.5
    phone, _first = await relay.phone(), await relay.viewer(maxWidth=320)
    await publish(phone, 0.1, fps=10)
    layers = [{"id": "s", "width": 300}, {"id": "b", "width": 1280}]
    await phone.ask({"type": "register", "streamId": "front-door", "layers": layers})
    await phone.send({**Picture().frame(), "layer": "b"})
    await trio.sleep(1)
    assert renderer.made
    newcomer = await relay.viewer(maxWidth=300)
    assert [each["layer"] for each in await received(newcomer)] == ["b"]


async def test_one_picture_is_made_smaller_at_a_time_when_many_come_at_once(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, viewer = await relay.phone(msgpack=True), await relay.viewer(maxWidth=320)
    frame = {**Picture().frame(), "data": jpeg(1280, 720, 30_000)}
    await phone.send(frame)
    await trio.sleep(0.3)
    message = events.BytesMessage(data=msgpack.packb(frame))
    together = b"".join(phone.protocol.send(message) for _ in range(10))
    await phone.send_bytes(together)
    await trio.sleep(0.3)
    assert renderer.most_at_work == 1
    assert (await received(viewer))[-1]["layer"] == "320"


async def test_a_careful_viewer_is_asked_before_each_picture() -> None:
    layers = LayerSet([StreamLayer("320", 320), StreamLayer("original", 1280)], from_producer=False)
    options = FlowControlOptions("latest", None, None, None, None, adapts=True)
    selection = LayerSelection.begin(layers, 0, options, adapts=True)
    assert selection.takes_largest
    choice = selection.choice
    choice.choose(trio.current_time(), layers.options(), bandwidth=1e9, late=True, period=0.0)
    assert choice.careful
    assert not selection.takes_largest


async def test_what_was_pictures_and_becomes_video_begins_with_a_keyframe_for_old_viewers(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    relay.layers_for_old_clients = False
    phone, old, _new = await relay.phone(), await relay.viewer(), await relay.viewer(maxWidth=320)
    picture = Picture(jpeg(1280, 720, 1000))
    await publish(phone, 0.3, picture)
    phone = await relay.phone()  # takes the stream over
    for keyframe in (False, True, False):
        await phone.send({**picture.frame(), "keyframe": keyframe})
        await trio.sleep(0.1)
    frames = await received(old)
    assert [each.get("keyframe") for each in frames[-3:]] == [None, True, False]


async def test_pictures_that_change_their_size_all_the_time_change_the_layers_once_a_second(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxWidth=320)
    renditions = relay.hub.streams()[0].renditions
    assert renditions is not None
    used: list[object] = [None]
    for number in range(100):
        width = 1280 if number % 4 in {0, 3} else 640
        await phone.send(Picture(jpeg(width, 480, 1000)).frame())
        await trio.sleep(0.05)
        if renditions.layers is not used[-1]:
            used.append(renditions.layers)
    assert 2 <= len(used) <= 1 + 5 + 1
    assert len(await received(viewer)) > 20
    check_ledger(relay)


async def test_who_gets_no_rendition_gets_the_original_though_its_size_changes_all_the_time(
    relay: MemoryRelay, renderer: MemoryRenderer
) -> None:
    renderer.has_room = False
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(maxWidth=320), ENDLESS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for number in range(10):
            width = 960 if number % 2 else 1280
            await publish(phone, 1, Picture(jpeg(width, 480, 1000)))
        nursery.cancel_scope.cancel()
    assert len(viewer.seqs["front-door"]) >= 8 * FPS
    check_ledger(relay)


@pytest.mark.parametrize("seconds", [0.005, 0.11, 0.15])
async def test_a_thinned_viewer_gets_its_rate_of_what_is_made(
    relay: MemoryRelay, renderer: MemoryRenderer, seconds: float
) -> None:
    renderer.seconds = seconds
    phone, client = await relay.phone(), await relay.viewer(maxWidth=320, maxFps=5)
    viewer = DistantViewer(client, ENDLESS)
    await watch(relay, phone, 20, viewer)
    late = [each for each in viewer.seqs["front-door"] if each > 10 * FPS]
    assert 0.9 * 5 * 10 <= len(late) <= 5 * 10
