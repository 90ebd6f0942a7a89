"""Phones that publish layers, and viewers that ask for one, on the client and the real hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from relay.client import (
    Demand,
    Frame,
    Layer,
    Publication,
    Registered,
    SimpleClient,
    Status,
)
from relay.client.simple_client import open_client as open_simple_client
from tests.unit.client.phone_model import FULL_BYTES, MBIT
from tests.unit.client.scripted_relay import (
    ScriptedRelay,
    next_of,
    open_client,
    open_door,
    subscribed,
)
from tests.unit.client.slow_link import SlowLink
from tests.unit.memory import ANN, Client, MemoryRelay, open_relay
from tests.unit.memory.scripted_server import ScriptedServer

pytestmark = pytest.mark.mock_clock

LAYERS = [Layer(id="l", width=320), Layer(id="m", width=640), Layer(id="h", width=1280)]
IDS = ["l", "m", "h"]
FPS = 15


@pytest.fixture
async def relay() -> AsyncIterator[MemoryRelay]:
    async with open_relay() as relay:
        yield relay


async def accept(
    server: ScriptedServer, needed: list[str] | None, *, known: bool = True, consumers: int = 1
) -> dict[str, Any]:
    """Register the phone, and say what somebody needs."""
    request = await server.answer(streamId="door", **({"layers": IDS} if known else {}))
    await need(server, needed, consumers)
    return request


async def need(server: ScriptedServer, layers: list[str] | None, consumers: int = 1) -> None:
    told = {} if layers is None else {"layers": layers}
    status = {"streamId": "door", "epoch": 1, "status": "online", "timestamp": 1}
    await server.send("status", **status, consumers=consumers, **told)
    await trio.testing.wait_all_tasks_blocked()


def planned(phone: Publication) -> list[str | None]:
    plan = phone.next(fps=FPS)
    return [] if plan is None else [each.layer for each in plan.pictures]


async def test_the_relay_is_told_of_the_layers_and_says_which_are_needed(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        server = await scripted.login()
        request = await accept(server, ["l", "x"])
        assert request["layers"] == [
            {"id": "l", "width": 320},
            {"id": "m", "width": 640},
            {"id": "h", "width": 1280},
        ]
        assert (await next_of(client, Registered)).layers == ("l", "m", "h")
        assert await next_of(client, Demand) == Demand("door", 1, ("l",))
        assert planned(phone) == ["l"]
        await need(server, ["h", "m"])
        assert await next_of(client, Demand) == Demand("door", 1, ("m", "h"))
        assert phone.wanted_layers == ("m", "h")
        await need(server, [])
        assert planned(phone) == []
        await need(server, IDS, consumers=0)
        assert planned(phone) == []
        assert phone.wanted_layers == ()


async def test_needs_are_of_one_connection(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        server = await scripted.login()
        await accept(server, ["l"])
        await server.lose()
        server = await scripted.login()
        await server.answer(streamId="door", layers=IDS)
        await trio.testing.wait_all_tasks_blocked()
        assert planned(phone) == []
        await need(server, ["m"])
        assert planned(phone) == ["m"]


async def test_the_only_layer_never_stops_for_a_list_that_lacks_it(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS[-1:])
        await accept(await scripted.login(), [])
        await phone.wanted()
        assert planned(phone) == ["h"]


async def test_a_relay_that_knows_no_layers_gets_the_largest_as_a_frame_without_one(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        server = await scripted.login()
        await accept(server, None, known=False)
        await phone.wanted()
        assert planned(phone) == ["h"]
        assert not phone.send_frame(b"small", layer="l", timestamp=5)
        assert phone.send_frame(b"large", layer="h", timestamp=5)
        frame = await server.receive()
        assert (frame["type"], "layer" in frame) == ("video-frame", False)


async def test_of_one_picture_all_layers_are_sent_or_none(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        server = await scripted.login()
        await accept(server, IDS)
        await phone.wanted()
        large = phone._policy.max_buffered_bytes + 1
        assert phone.send_frame(bytes(large), layer="l", timestamp=2, keyframe=True)
        assert not phone.has_room
        assert phone.send_frame(b"more", layer="m", timestamp=2, keyframe=True)
        assert not phone.send_frame(b"next", layer="l", timestamp=3)
        assert [(await server.receive())["layer"] for _ in range(2)] == ["l", "m"]
        question = await server.receive()
        await server.send("error", id=question["id"], code="INVALID_MESSAGE", message="no")
        await trio.testing.wait_all_tasks_blocked()
        assert phone.has_room
        assert not phone.send_frame(b"late", layer="m", timestamp=3)
        assert phone.send_frame(b"again", layer="l", timestamp=4)


async def test_a_layer_sends_no_delta_after_a_frame_that_was_skipped(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        await accept(await scripted.login(), IDS)
        await phone.wanted()
        assert phone.send_frame(b"k", layer="m", timestamp=1, keyframe=True)
        assert not phone.send_frame(b"d", layer="l", timestamp=2, keyframe=False)
        assert phone.send_frame(b"d", layer="m", timestamp=2, keyframe=False)


async def test_a_keyframe_is_needed_once_for_each_layer_that_somebody_needs(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        server = await scripted.login()
        await accept(server, ["m"])
        await phone.wanted()
        assert phone.needs_keyframe
        assert phone.send_frame(b"k", layer="m", timestamp=1, keyframe=True)
        assert not phone.needs_keyframe
        await need(server, ["l", "m"])
        assert phone.needs_keyframe
        for layer in ("l", "m"):
            assert phone.send_frame(b"k", layer=layer, timestamp=2, keyframe=True)
        assert not phone.needs_keyframe


async def test_a_frame_without_a_layer_is_of_the_largest_and_an_unknown_one_is_refused(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=LAYERS)
        server = await scripted.login()
        await accept(server, IDS)
        await phone.wanted()
        assert phone.send_frame(b"picture")
        assert (await server.receive())["layer"] == "h"
        with pytest.raises(ValueError, match="no layer x"):
            phone.send_frame(b"picture", layer="x")


async def test_layers_without_a_width_need_that_of_the_camera(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door", layers=[Layer(id="only")])
        await accept(await scripted.login(), ["only"])
        await phone.wanted()
        with pytest.raises(ValueError, match="width"):
            phone.next(fps=FPS)
        assert phone.next(fps=FPS, width=640).pictures[0].width <= 640


async def test_a_viewer_says_what_it_can_show_and_its_frames_which_layer_they_are(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        viewing = client.subscribe("door", alerts=False, max_width=320)
        server = await scripted.login()
        request = await subscribed(server)
        assert (request["maxWidth"], "layer" in request) == (320, False)
        viewing.update(max_width=None, layer="m")
        request = await server.answer(streamId="door", epoch=7)
        assert (request["layer"], "maxWidth" in request) == ("m", False)
        await server.frame(1, layer="m")
        assert (await next_of(client, Frame)).layer == "m"


async def test_frames_of_streams_without_layers_have_none(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        server = await open_door(client, scripted)
        await server.frame(1)
        assert (await next_of(client, Frame)).layer is None


async def film(phone: Publication) -> None:
    """Be a camera: pictures with the bytes of their width and quality."""
    while True:
        plan = phone.next(fps=FPS)
        if plan is not None:
            for each in plan.pictures:
                size = FULL_BYTES * (each.width / 1280) ** 1.6 * each.quality / 0.8
                data = bytes(round(size))
                assert phone.send_frame(data, layer=each.layer, timestamp=plan.timestamp)
        await trio.sleep(1 / FPS)


async def layers_seen(viewer: Client, seconds: float) -> Counter[str]:
    """The layers of the frames that come in so long; no picture comes twice."""
    seen: list[dict[str, Any]] = []
    with trio.move_on_after(seconds):
        while True:
            seen.append(await viewer.receive_type("video-frame"))
    numbers = [frame["seq"] for frame in seen]
    assert numbers == sorted(set(numbers))
    return Counter(frame["layer"] for frame in seen)


@pytest.mark.parametrize(("rate", "largest"), [(100, "h"), (5, "h"), (0.7, "l")])
async def test_viewers_get_their_layers_of_what_the_uplink_carries(
    relay: MemoryRelay, rate: float, largest: str
) -> None:
    link = SlowLink(relay, up=rate * MBIT)
    async with link.client() as client, trio.open_nursery() as nursery:
        phone = client.publish("front-door", layers=LAYERS)
        await phone.ready()
        nursery.start_soon(film, phone)
        small = await relay.viewer(msgpack=True, maxWidth=400)
        whole = await relay.viewer(msgpack=True)
        seen: dict[str, Counter[str]] = {}

        async def watch(name: str, viewer: Client) -> None:
            await layers_seen(viewer, 8)
            seen[name] = await layers_seen(viewer, 5)

        async with trio.open_nursery() as watching:
            watching.start_soon(watch, "small", small)
            watching.start_soon(watch, "whole", whole)
        nursery.cancel_scope.cancel()
    assert set(seen["small"]) == {"l"}
    assert seen["whole"].most_common(1)[0][0] == largest
    assert min(each.total() for each in seen.values()) >= 0.6 * 5 * FPS
    assert len(link.streams) == 1


async def test_only_the_layers_of_those_who_watch_are_sent(relay: MemoryRelay) -> None:
    async with SlowLink(relay).client() as client, trio.open_nursery() as nursery:
        phone = client.publish("front-door", layers=LAYERS)
        await phone.ready()
        nursery.start_soon(film, phone)
        viewer = await relay.viewer(msgpack=True, layer="m")
        nursery.start_soon(layers_seen, viewer, 60)
        await trio.sleep(4)
        assert phone.wanted_layers == ("m",)
        nursery.cancel_scope.cancel()


async def test_a_client_of_one_connection_publishes_and_watches_layers(
    relay: MemoryRelay,
) -> None:
    async with trio.open_nursery() as nursery:
        link = SlowLink(relay)
        async with link.dial(()) as socket, open_simple_client(socket, ANN) as phone:
            registered = await phone.register("front-door", layers=LAYERS)
            assert registered.layers == ("l", "m", "h")
            async with link.dial(()) as other, open_simple_client(other, ANN) as viewer:
                await viewer.subscribe("front-door", max_width=640)
                await needs(phone, "l")
                for number in range(3):
                    for layer in IDS:
                        await phone.send_frame(b"picture", layer=layer, timestamp=number + 1)
                async for event in viewer:
                    if isinstance(event, Frame):
                        assert event.layer in {"l", "m"}
                        break
        nursery.cancel_scope.cancel()


async def needs(phone: SimpleClient, layer: str) -> None:
    async for event in phone:
        if isinstance(event, Status) and event.layers and layer in event.layers:
            return
