"""How the phone of the demo keeps time, on a mock clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.demo.figures import Figures
from relay.demo.participants import TOO_LATE, send_in_time
from relay.demo.video import Picture

FPS = 25
PICTURES = [Picture(bytes([number]), number / FPS) for number in range(50)]


async def play(
    send_seconds: float, decode_seconds: float = 0
) -> tuple[list[tuple[float, int]], Figures]:
    """When which picture was sent, in seconds since the first, and what was counted."""
    decoded, upcoming = trio.open_memory_channel[Picture](8)
    figures = Figures("phone")
    sent: list[tuple[float, int]] = []

    async def send(jpeg: bytes) -> None:
        sent.append((trio.current_time(), jpeg[0]))
        await trio.sleep(send_seconds)

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
    sent, figures = await play(send_seconds=0.01)
    assert [number for _, number in sent] == list(range(50))
    assert [at for at, _ in sent] == pytest.approx([picture.due for picture in PICTURES])
    assert (figures.frames_out, figures.missed) == (50, 0)


async def test_on_a_slow_link_pictures_are_skipped_and_the_rest_stays_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sent, figures = await play(send_seconds=0.3)
    assert figures.frames_out == len(sent) < 10
    assert figures.frames_out + figures.missed == 50
    assert all(at - number / FPS < TOO_LATE + 0.01 for at, number in sent[:-1])


async def test_with_a_slow_decoder_nothing_is_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sent, figures = await play(send_seconds=0, decode_seconds=0.2)
    assert [number for _, number in sent] == list(range(50))
    assert figures.missed == 0
