"""Files that were made are kept for a while, and not without end."""

from __future__ import annotations

import pytest
import trio

from relay.clips.made_clips import MADE_SECONDS, MAX_MADE_BYTES, MadeClip, MadeClips
from relay.concurrency.alarms import Alarms
from relay.model.alerts.alert_picture import PictureName

pytestmark = pytest.mark.mock_clock


@pytest.fixture
async def clips(nursery: trio.Nursery) -> MadeClips:
    alarms = Alarms()
    await nursery.start(alarms.run)
    return MadeClips(alarms)


def name(number: int) -> PictureName:
    return PictureName(1_700_000_000_000_000 + number, "clip")


def clip_of(size: int) -> MadeClip:
    return MadeClip(bytes(size), f'"{size}"')


async def test_a_file_is_let_go_of_when_nobody_has_asked_for_it_for_a_while(
    clips: MadeClips,
) -> None:
    clips.keep(name(0), clip_of(10))
    clips.keep(name(1), clip_of(20))
    for _ in range(4):
        await trio.sleep(MADE_SECONDS / 2)
        assert clips.find(name(0)) == clip_of(10)
    assert clips.held_bytes == 10
    await trio.sleep(MADE_SECONDS + 1)
    assert clips.held_bytes == 0
    clips.keep(name(2), clip_of(30))
    await trio.sleep(MADE_SECONDS + 1)
    assert clips.held_bytes == 0


async def test_they_take_no_more_memory_than_they_may(clips: MadeClips) -> None:
    third = MAX_MADE_BYTES // 3
    for number in range(3):
        clips.keep(name(number), clip_of(third))
    assert clips.find(name(0)) is not None
    clips.keep(name(3), clip_of(third))
    assert clips.find(name(1)) is None  # which was asked for longest ago
    assert all(clips.find(name(number)) for number in (0, 2, 3))
    clips.keep(name(4), clip_of(MAX_MADE_BYTES + 1))
    assert clips.find(name(4)) is None
    assert clips.held_bytes <= MAX_MADE_BYTES


async def test_the_same_file_counts_once(clips: MadeClips) -> None:
    for _ in range(10):
        clips.keep(name(0), clip_of(MAX_MADE_BYTES // 2))
    assert clips.held_bytes == MAX_MADE_BYTES // 2


async def test_contents_are_in_no_repr() -> None:
    assert "\\x00" not in repr(clip_of(3))
