"""A large audience that gets other layers to choose from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from attrs import define, field

from relay.concurrency import time_slice
from relay.hub.fanout import SLICE
from relay.hub.layers.layer_set import LayerSet, StreamLayer
from relay.hub.layers.rollout import LayerRollout
from tests.unit.hub.layers.test_layered_streams import (
    LAYERS,
    check_ledger,
    last_status,
    received,
    register,
)
from tests.unit.hub.test_takeover import message
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

OTHER = [{"id": "x", "width": 320}, {"id": "y", "width": 1280}]


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is longer than a slice."""
    monkeypatch.setattr(time_slice, "TIME_SLICE", -1.0)


@define(eq=False)
class Taker:
    """It notes what it was given."""

    given: list[tuple[LayerSet | None, int]] = field(factory=list)

    def change_layers(self, layers: LayerSet | None, seq: int) -> None:
        self.given.append((layers, seq))


def layer_set() -> LayerSet:
    return LayerSet([StreamLayer("l", 320)], from_producer=True)


async def test_others_have_a_turn_while_many_change_their_layers() -> None:
    takers, layers, turns = [Taker() for _ in range(100)], layer_set(), 0
    rollout = LayerRollout(layers, 7, iter(takers))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await rollout.run()
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns >= 90
    assert all(taker.given == [(layers, 7)] for taker in takers)


async def test_all_who_run_a_change_end_when_it_is_over_and_nobody_makes_it_twice() -> None:
    takers = [Taker() for _ in range(100)]
    rollout = LayerRollout(None, 7, iter(takers))
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(rollout.run)
    assert all(taker.given == [(None, 7)] for taker in takers)


async def test_a_change_that_another_one_replaces_goes_no_further() -> None:
    takers = [Taker() for _ in range(100)]
    rollout = LayerRollout(layer_set(), 7, iter(takers))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rollout.run)
        await trio.lowlevel.checkpoint()
        rollout.stop()
    assert sum(len(taker.given) for taker in takers) < 10


def frame(layer: dict[str, Any], number: int) -> dict[str, Any]:
    """One of a picture with this number, in a layer."""
    ids = {"layer": layer["id"]} if layer else {}
    return {"type": "video-frame", **ids, "timestamp": number, "data": "AAAA"}


async def send(phone: Client, layers: list[dict[str, Any]], number: int) -> None:
    for layer in layers:
        await phone.send(frame(layer, number))


async def audience(relay: MemoryRelay) -> list[Client]:
    """More than can change their layers at once; one of them wants the largest."""
    viewers = [await relay.viewer() for _ in range(2 * SLICE)]
    return [*viewers, await relay.viewer(layer=OTHER[-1]["id"])]


async def test_a_picture_that_comes_at_once_goes_to_all_in_one_of_its_layers(
    relay: MemoryRelay,
) -> None:
    phone, viewers = await register(relay), await audience(relay)
    await send(phone, LAYERS, 1)
    await phone.ask({"type": "register", "streamId": "front-door", "layers": OTHER})
    for number in (2, 3):
        await send(phone, OTHER, number)
    for viewer in viewers:
        frames = await received(viewer)
        assert [each["seq"] for each in frames] == [1, 2, 3]
        assert {each["layer"] for each in frames[1:]} <= {"x", "y"}
    assert frames[-1]["layer"] == "y"
    check_ledger(relay)


async def test_the_phone_is_asked_for_what_the_last_of_many_viewers_needs(
    relay: MemoryRelay,
) -> None:
    phone = await register(relay)
    await audience(relay)
    await phone.ask({"type": "register", "streamId": "front-door", "layers": OTHER})
    await trio.sleep(3)
    assert (await last_status(phone))["layers"] == ["x", "y"]


Step = Callable[[Client, Client], Awaitable[object]]


async def leave(_phone: Client, viewer: Client) -> None:
    await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})


async def register_again(phone: Client, _viewer: Client) -> None:
    await phone.ask({"type": "register", "streamId": "front-door", "layers": LAYERS})


@pytest.mark.parametrize("step", [leave, register_again])
async def test_who_leaves_and_what_is_replaced_during_a_change_is_needed_no_more(
    relay: MemoryRelay, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone, viewers = await register(relay), await audience(relay)
    goes_on, run = trio.Event(), LayerRollout.run

    async def wait_and_run(rollout: LayerRollout) -> None:
        await goes_on.wait()
        await run(rollout)

    monkeypatch.setattr(LayerRollout, "run", wait_and_run)
    await phone.ask({"type": "register", "streamId": "front-door", "layers": OTHER})
    await step(phone, viewers[-1])
    goes_on.set()
    await trio.sleep(4)
    (stream,) = relay.hub._streams.values()
    assert stream.layers is not None
    assert sum(each.needed_by for each in stream.layers.layers) == len(stream.fanout.audience)
    layers = LAYERS if step is register_again else OTHER
    await send(phone, layers, 9)
    (last,) = await received(viewers[-2])
    assert last["layer"] == layers[0]["id"]
    check_ledger(relay)


@pytest.mark.parametrize("layers", [None, OTHER])
async def test_a_picture_on_its_way_when_others_take_over_goes_to_all_once(
    relay: MemoryRelay, layers: list[dict[str, Any]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.hub.fanout.SLICE", 1)  # so each viewer gives the others a turn
    viewers = [await relay.viewer(policy="lossless", layer=each) for each in [*"lmh"] * 3]
    viewers += [await relay.viewer() for _ in range(6)]
    for turns in range(30):
        old, new = await register(relay), await relay.login()
        request: dict[str, Any] = {"type": "register", "streamId": "front-door"}
        if layers is not None:
            request["layers"] = layers
        burst = [frame(layer, 2 * turns) for layer in LAYERS]
        await old.send_bytes(b"".join(map(message, burst)))
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        last = [frame(layer, 2 * turns + 1) for layer in layers or [{}]]
        await new.send_bytes(b"".join(map(message, [request, *last])))
        assert (await new.receive())["code"] == "REGISTERED"
    for viewer in viewers[:9]:
        seqs = [each["seq"] for each in await received(viewer)]
        assert seqs == list(range(1, seqs[-1] + 1))
    for viewer in viewers[9:]:
        seqs = [each["seq"] for each in await received(viewer)]
        assert seqs == sorted(set(seqs))
    check_ledger(relay)
