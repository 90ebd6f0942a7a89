"""The figures of all streams, made in steps and within a size."""

from __future__ import annotations

import msgspec
import pytest
import trio

from relay.hub.figures import FIGURES_SLICE, encode_figures
from tests.unit.memory import ANN, MemoryRelay

pytestmark = pytest.mark.mock_clock


async def test_figures_that_are_too_long_leave_out_streams_and_say_how_many(
    relay: MemoryRelay,
) -> None:
    for number in range(3):
        await relay.phone(f"stream-{number}", ANN)
    whole = await encode_figures(relay.hub, "here")
    assert whole.omitted == 0
    assert [msgspec.json.decode(each)["node"] for each in whole.streams] == ["here"] * 3
    room_for_two = sum(len(each) + 1 for each in whole.streams[:2])
    cut = await encode_figures(relay.hub, "here", room_for_two)
    assert (cut.streams, cut.omitted) == (whole.streams[:2], 1)
    assert (await encode_figures(relay.hub, "here", 10)).omitted == 3


async def test_others_have_a_turn_while_there_are_many_streams(relay: MemoryRelay) -> None:
    for number in range(FIGURES_SLICE):
        relay.hub.open(f"stream-{number}")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        figures = await encode_figures(relay.hub)
        nursery.cancel_scope.cancel()
    assert len(figures.streams) == FIGURES_SLICE
    assert turns >= 1
