"""Layers that build on frames before, over a link between nodes that drops some."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio

from tests.unit.cluster.frames import frame, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster

pytestmark = pytest.mark.mock_clock

LAYERS: list[dict[str, Any]] = [
    {"id": "low", "width": 320},
    {"id": "mid", "width": 640},
    {"id": "high", "width": 1280},
]


@pytest.mark.parametrize("seed", range(8))
async def test_no_delta_comes_behind_one_that_was_dropped(pair: MemoryCluster, seed: int) -> None:
    pair.capacity, random = 60_000, Random(seed)
    phone = await pair["a"].relay.login()
    await phone.ask({"type": "register", "streamId": "front-door", "layers": LAYERS})
    viewers = {
        each["id"]: await pair["b"].viewer(layer=each["id"], capacity=8 << 20) for each in LAYERS
    }
    link = pair.call("b", "a").ours
    for number in range(60):
        match random.randrange(5):
            case 0:
                link.stall()
            case 1 | 2:
                link.go_on()
        keyframe = number % 3 == 0
        for place, layer in enumerate(LAYERS):
            content = b"x" * 2000 * (4 if keyframe else 1) * 2**place
            fields: dict[str, Any] = {
                "timestamp": number,
                "layer": layer["id"],
                "keyframe": keyframe,
            }
            await phone.send(frame(content, **fields))
        await trio.sleep(0.02)
    link.go_on()
    for layer_id, viewer in viewers.items():
        got = only("video-frame", await received(viewer, 1))
        assert len(got) > 3
        for before, after in pairwise(got):
            if not after["keyframe"]:
                assert after["layer"] == before["layer"], layer_id
                assert after["seq"] == before["seq"] + 1, layer_id
