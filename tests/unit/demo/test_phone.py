"""How the phone of the demo keeps time, on a mock clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.demo.participants import MAX_LATENESS, send_in_time
from relay.demo.stats import ParticipantStats
from relay.demo.video import Picture

FPS = 25
PICTURES = [Picture(bytes([number]), number / FPS) for number in range(50)]


async def play(
    busy_seconds: float = 0, decode_seconds: float = 0
) -> tuple[list[tuple[float, int]], ParticipantStats]:
    """When which picture was sent, in seconds since the first, and what was counted. The link is
    busy with each for so long, and takes no other meanwhile."""
    decoded, upcoming = trio.open_memory_channel[Picture](8)
    figures = ParticipantStats("phone")
    sent: list[tuple[float, int]] = []

    def send(jpeg: bytes) -> bool:
        if sent and trio.current_time() < sent[-1][0] + busy_seconds:
            return False
        sent.append((trio.current_time(), jpeg[0]))
        return True

    async def decode() -> None:
        async with decoded:
            for picture in PICTURES:
                await trio.sleep(decode_seconds)
                await decoded.send(picture)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(decode)
        await trio.testing.wait_all_tasks_blocked()
        await send_in_time(upcoming, send, figures)
    start = sent[0][0]
    return [(at - start, number) for at, number in sent], figures


async def test_pictures_go_out_when_they_are_due(autojump_clock: trio.testing.MockClock) -> None:
    sent, figures = await play(busy_seconds=0.01)
    assert [number for _, number in sent] == list(range(50))
    assert [at for at, _ in sent] == pytest.approx([picture.due for picture in PICTURES])
    assert (figures.frames_out, figures.missed) == (50, 0)


async def test_what_a_slow_link_has_no_room_for_is_skipped_and_the_rest_stays_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sent, figures = await play(busy_seconds=0.3)
    assert figures.frames_out == len(sent) < 10
    assert figures.frames_out + figures.missed == 50
    assert [at for at, _ in sent] == pytest.approx([number / FPS for _, number in sent])


async def test_with_a_slow_decoder_pictures_are_late_and_none_is_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sent, figures = await play(decode_seconds=0.2)
    assert [number for _, number in sent] == list(range(50))
    assert figures.missed == 0


async def test_of_pictures_that_came_too_late_those_with_another_behind_are_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    decoded, upcoming = trio.open_memory_channel[Picture](50)
    figures = ParticipantStats("phone")
    sent: list[tuple[float, int]] = []

    def send(jpeg: bytes) -> bool:
        sent.append((trio.current_time(), jpeg[0]))
        return True

    async def decode() -> None:
        async with decoded:
            await decoded.send(PICTURES[0])
            await trio.sleep(1)  # a decoder that stood still
            for picture in PICTURES[1:]:
                decoded.send_nowait(picture)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(decode)
        await send_in_time(upcoming, send, figures)
    start, second = sent[0][0], sent[1]
    assert second[0] - start == pytest.approx(1)
    assert second[1] / FPS >= 1 - MAX_LATENESS
    assert (figures.frames_out + figures.missed, sent[-1][1]) == (50, 49)
