"""A producer of frames that build on one another is asked for a keyframe when a viewer needs one,
and says which frames may be left out alone."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from relay.hub.keyframe_requests import MAX_VIEWER_KEYFRAMES, VIEWER_KEYFRAME_RATE
from tests.unit.hub.test_paced_viewers import DistantViewer
from tests.unit.memory import SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

BIG = "A" * 6000
KEY, DELTA = {"keyframe": True}, {"keyframe": False}
DISCARDABLE = {"keyframe": False, "discardable": True}


async def publish(phone: Client, *frames: dict[str, Any], data: str = "AAAA") -> None:
    for frame in frames:
        await phone.send({"type": "video-frame", "data": data, **frame})
        await trio.testing.wait_all_tasks_blocked()


async def received(client: Client, kind: str) -> list[dict[str, Any]]:
    """The messages of this type that come before nothing comes for a while."""
    messages = []
    while True:
        with trio.move_on_after(0.1) as scope:
            messages.append(await client.receive_type(kind))
        if scope.cancelled_caught:
            return messages


async def seqs(viewer: Client) -> list[int]:
    return [frame["seq"] for frame in await received(viewer, "video-frame")]


async def requests(phone: Client) -> int:
    """How often the phone was asked for a keyframe."""
    notices = await received(phone, "notice")
    assert all(
        (notice["code"], notice["streamId"]) == ("KEYFRAME_WANTED", "front-door")
        for notice in notices
    )
    return len(notices)


async def test_a_phone_is_asked_for_a_keyframe_when_a_viewer_comes_behind_the_last(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    await publish(phone, KEY, DELTA)
    assert await requests(phone) == 0
    viewer = await relay.viewer()
    assert await requests(phone) == 1
    await publish(phone, DELTA, KEY, DELTA)
    assert await seqs(viewer) == [1, 4, 5]


async def test_a_viewer_that_the_latest_keyframe_serves_needs_no_other(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await publish(phone, KEY, DISCARDABLE)
    viewer = await relay.viewer()
    await publish(phone, DELTA)
    assert await seqs(viewer) == [1, 3]
    assert await requests(phone) == 0


async def test_a_phone_whose_frames_stand_alone_is_never_asked(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    await publish(phone, *[{}] * 5, data=BIG)
    await relay.viewer()
    assert await seqs(slow) == [1, 2, 5]
    assert await requests(phone) == 0


async def test_a_phone_is_asked_when_a_frame_that_others_build_on_was_dropped(
    relay: MemoryRelay,
) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    await publish(phone, KEY, DELTA, DELTA, DELTA, data=BIG)
    assert await requests(phone) == 0  # a frame still waits: a keyframe would, too
    assert await seqs(slow) == [1, 2, 3]
    await publish(phone, DELTA, DELTA)
    assert await requests(phone) == 1
    await publish(phone, KEY, DELTA)
    assert await seqs(slow) == [7, 8]


async def test_a_phone_that_begins_with_a_delta_is_asked_once_somebody_watches(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    await publish(phone, DELTA)
    assert await requests(phone) == 0
    viewer = await relay.viewer()
    await publish(phone, DELTA, KEY)
    assert await requests(phone) == 1
    assert await seqs(viewer) == [3]


async def test_a_phone_is_asked_again_after_a_second_while_no_keyframe_comes(
    relay: MemoryRelay,
) -> None:
    phone, _ = await relay.phone(), await relay.viewer()
    for _ in range(30):
        await publish(phone, DELTA)
        await trio.sleep(0.1)
    assert await requests(phone) == 3


async def test_viewers_that_need_a_keyframe_together_ask_once(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await publish(phone, KEY, DELTA)
    viewers = [await relay.viewer() for _ in range(5)]
    await publish(phone, DELTA)
    assert await requests(phone) == 1
    assert len(viewers) == 5


async def test_a_user_who_comes_and_goes_all_the_time_causes_few_keyframes(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    await publish(phone, KEY, DELTA)
    restless = await relay.login()
    for _ in range(240):
        for kind in ("subscribe", "unsubscribe"):
            message = {"type": kind, "streamId": "front-door", "consumes": ["video-frame"]}
            await restless.ask(message)
        await publish(phone, DELTA)
        await trio.sleep(0.25)
    assert await requests(phone) <= MAX_VIEWER_KEYFRAMES + 60 * VIEWER_KEYFRAME_RATE + 1


async def test_the_requests_of_one_user_take_nothing_from_another(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await publish(phone, KEY, DELTA)
    asked = 0
    while True:
        await relay.viewer()
        if not await requests(phone):
            break
        asked += 1
        await trio.sleep(1.01)
    assert asked >= MAX_VIEWER_KEYFRAMES
    service = await relay.login(SENTRY)
    await service.ask({"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]})
    assert await requests(phone) == 1


async def test_a_viewer_that_wants_fewer_frames_causes_no_keyframes_by_that(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxFps=5)
    for number in range(40):
        await publish(phone, KEY if number == 0 else DELTA)
        await trio.sleep(0.05)
    assert await seqs(viewer) == [1]
    assert await requests(phone) == 0


async def test_a_discardable_frame_that_waits_gives_way_to_any_other(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    await publish(phone, KEY, DELTA, DISCARDABLE, DELTA, DISCARDABLE, data=BIG)
    assert await seqs(slow) == [1, 2, 4]
    await publish(phone, DELTA, DISCARDABLE)
    assert await seqs(slow) == [6, 7]
    assert await requests(phone) == 0
    assert relay.hub.ledger().dropped == {"superseded": 2}


async def test_a_discardable_frame_gives_way_to_a_newer_one(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    await publish(phone, KEY, DELTA, *[DISCARDABLE] * 3, data=BIG)
    assert await seqs(slow) == [1, 2, 5]


async def test_only_a_delta_is_discardable(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    key = {"keyframe": True, "discardable": True}
    await publish(phone, key, key, key, DELTA, data=BIG)
    assert await seqs(slow) == [1, 2, 3]
    await publish(phone, DELTA)
    assert await seqs(slow) == []


async def test_viewers_are_told_what_is_discardable_if_the_phone_says_so(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    packed = await relay.viewer(msgpack=True)
    await publish(phone, KEY, DISCARDABLE)
    for each in (viewer, packed):
        key, delta = await received(each, "video-frame")
        assert "discardable" not in key
        assert (delta["keyframe"], delta["discardable"]) == (False, True)


async def test_a_thin_link_loses_discardable_frames_and_does_not_freeze(
    relay: MemoryRelay,
) -> None:
    """40 kB/s are sent, half of them in discardable frames; the link carries 32 kB/s."""
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), 32_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for number in range(400):
            kind = KEY if number == 0 else DISCARDABLE if number % 2 else DELTA
            timestamp = round(trio.current_time() * 1000)
            await publish(phone, {**kind, "timestamp": timestamp}, data="A" * 2_000)
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    seen = viewer.seqs["front-door"]
    others = [seq for seq in range(1, 390) if seq % 2]
    assert [seq for seq in seen if seq % 2 and seq < 390] == others
    assert 0 < sum(seq % 2 == 0 for seq in seen) < 200
    assert max(viewer.ages["front-door"]) < 0.5
