"""Whatever producers and viewers do, in any order: what each viewer gets can be shown, and each
picture is counted once."""

from __future__ import annotations

import base64
from random import Random
from typing import Any

import pytest
import trio
from attrs import define, evolve, field

from tests.unit.hub.layers.test_layered_streams import check_ledger
from tests.unit.hub.test_paced_viewers import DistantViewer
from tests.unit.memory import Client, MemoryRelay, MemoryRenderer, jpeg

pytestmark = pytest.mark.mock_clock

LAYER_SETS: list[list[dict[str, Any]] | None] = [
    None,
    [{"id": "l", "width": 320}, {"id": "m", "width": 640}, {"id": "h", "width": 1280}],
    [{"id": "l", "width": 320}, {"id": "h"}],
    [{"id": "h", "width": 1280}],
]
TERMS: list[dict[str, Any]] = [
    {},
    {"maxWidth": 640},
    {"layer": "l"},
    {"layer": "h", "maxFps": 5},
    {"policy": "lossless"},
    {"window": 2},
    {"maxWidth": 320, "policy": "lossless"},
]
RATES = (20_000.0, 125_000.0, 1_000_000.0, 10_000_000.0)


@define(eq=False)
class Checker(DistantViewer):
    """It checks what it gets as it comes."""

    last: tuple[int, int] = (0, 0)
    """The epoch and the seq of the last picture."""
    epoch: int = 0
    decodable: str | None = None
    """The layer of the last frame, on which a delta may build; None before a keyframe."""
    problems: list[str] = field(factory=list)

    def _read(self, message: dict[str, Any], nursery: trio.Nursery) -> None:
        if message["type"] == "status" and message["epoch"]:
            if message["epoch"] != self.epoch:
                self.decodable = None
            self.epoch = message["epoch"]
        if message["type"] == "video-frame":
            self._check(message)
        super()._read(message, nursery)

    def _check(self, frame: dict[str, Any]) -> None:
        position = (self.epoch, frame["seq"])
        if position <= self.last:
            self.problems.append(f"{position} after {self.last}")
        self.last = position
        layer = frame.get("layer", "only")
        if frame.get("keyframe") is False and self.decodable != layer:
            self.problems.append(f"delta of {layer} after {self.decodable}")
        self.decodable = layer


@define(eq=False)
class Scene:
    """A stream, and what happens to it."""

    relay: MemoryRelay
    random: Random
    nursery: trio.Nursery
    viewers: list[Checker] = field(factory=list)
    problems: list[str] = field(factory=list)
    phone: Client | None = None
    layers: list[dict[str, Any]] | None = None
    deltas: bool = False
    number: int = 0

    async def register(self) -> None:
        if self.phone is None or self.random.random() < 0.5:
            self.phone = await self.relay.login()
        self.layers = self.random.choice(LAYER_SETS)
        self.deltas = self.random.random() < 0.4
        request: dict[str, Any] = {"type": "register", "streamId": "door"}
        if self.layers is not None:
            request["layers"] = self.layers
        await self.phone.ask(request)
        self.number = 0

    async def film(self) -> None:
        for _ in range(self.random.randint(1, 30)):
            await self.picture()
            await trio.sleep(self.random.choice([0.0, 0.01, 0.04, 0.2]))

    async def picture(self) -> None:
        assert self.phone is not None
        fields: dict[str, Any] = {"type": "video-frame"}
        if self.random.random() < 0.9:
            fields["timestamp"] = round(trio.current_time() * 1000)
        self.number += 1
        for layer in self.layers or [{"id": None, "width": 1280}]:
            if self.random.random() < 0.1:
                continue  # it is left out
            if self.deltas:  # nearly always all layers are keyframes, or none
                fields["keyframe"] = self.number % 7 == 1 or self.random.random() < 0.05
            size = self.random.choice([200, 3000, 20_000])
            data = base64.b64encode(jpeg(layer.get("width", 700), 100, size)).decode()
            named = {} if layer["id"] is None else {"layer": layer["id"]}
            await self.phone.send({**fields, **named, "data": data})

    async def come(self) -> None:
        client = await self.relay.login()
        viewer = Checker(client, self.random.choice(RATES), answers=self.random.random() < 0.8)
        self.viewers.append(viewer)
        self.nursery.start_soon(self.follow, viewer)
        await self.subscribe(viewer)

    async def follow(self, viewer: Checker) -> None:
        try:
            await viewer.run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self.viewers.remove(viewer)  # it was too slow for `lossless`
            self.problems += viewer.problems

    async def subscribe(self, viewer: Checker) -> None:
        request = {"type": "subscribe", "streamId": "door", "consumes": ["video-frame"]}
        # What was under way by the old terms is followed by what they begin with.
        await trio.sleep(60)
        if viewer not in self.viewers:
            return
        viewer.last, viewer.decodable = (viewer.epoch, 0), None
        await viewer.client.send({**request, **self.random.choice(TERMS)})

    async def change(self) -> None:
        if not self.viewers:
            return
        viewer = self.random.choice(self.viewers)
        match self.random.randrange(3):
            case 0:
                viewer.rate = self.random.choice(RATES)
            case 1:
                await viewer.client.send({"type": "unsubscribe", "streamId": "door"})
            case 2:
                await self.subscribe(viewer)

    async def lose_phone(self) -> None:
        assert self.phone is not None
        self.phone.link.close()
        self.phone = None
        await trio.sleep(self.random.choice([1, 20]))
        await self.register()


@pytest.mark.parametrize("seed", range(8))
async def test_each_viewer_gets_what_it_can_show_and_each_picture_is_counted(
    relay: MemoryRelay, seed: int
) -> None:
    random = Random(seed)
    relay.timing = evolve(relay.timing, idle_timeout=1e9)
    relay.hub.renderer = MemoryRenderer(seconds=random.choice([0.001, 0.03, 0.3]))
    async with trio.open_nursery() as nursery:
        scene = Scene(relay, random, nursery)
        await scene.register()
        for _ in range(60):
            steps = [scene.film, scene.film, scene.film, scene.change, scene.come]
            step = random.choice([*steps, scene.register, scene.lose_phone])
            if step != scene.come or len(scene.viewers) < 5:
                await step()
            check_ledger(relay)
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    check_ledger(relay)
    problems = scene.problems + [text for each in scene.viewers for text in each.problems]
    assert problems == []
    assert relay.hub.ledger().written > 50
