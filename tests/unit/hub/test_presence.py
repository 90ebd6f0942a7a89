"""What the hub tells of streams to those elsewhere: online or not, watched or not."""

from __future__ import annotations

import base64

import pytest
import trio

from relay.model.targets.stream_event import StreamPresence
from tests.unit.memory import ANN, BOB, MemoryRelay

pytestmark = pytest.mark.mock_clock

GRACE = 5.0
"""Seconds that a stream outlives its producer."""


def follow(relay: MemoryRelay) -> list[str]:
    """What changes, in words."""
    told: list[str] = []
    last: dict[str, str] = {}

    def note(stream_id: str, presence: StreamPresence | None) -> None:
        if presence is None:
            return
        word = "offline"
        if presence.online:
            word = "watched" if presence.watched else "online"
        if last.get(stream_id, "offline") != word:
            last[stream_id] = word
            told.append(f"{stream_id} {word}")

    relay.hub.on_presence = note
    return told


async def test_a_stream_is_online_watched_and_offline(relay: MemoryRelay) -> None:
    told = follow(relay)
    early = await relay.viewer()  # before there is a stream
    phone = await relay.phone()
    assert told == ["front-door watched"]
    late = await relay.viewer()
    early.link.close()
    await trio.sleep(0.1)
    assert told[1:] == []
    late.link.close()
    await trio.sleep(0.1)
    assert told[1:] == ["front-door online"]
    phone.link.close()
    await trio.sleep(GRACE - 1)
    assert told[2:] == []
    await trio.sleep(2)
    assert told[2:] == ["front-door offline"]


async def test_a_phone_that_comes_back_in_time_is_not_noticed(relay: MemoryRelay) -> None:
    told = follow(relay)
    for _ in range(3):
        phone = await relay.phone()
        phone.link.close()
        await trio.sleep(GRACE - 1)
    await relay.phone()
    await trio.sleep(2 * GRACE)
    assert told == ["front-door online"]


async def test_viewers_that_may_not_see_a_stream_do_not_watch_it(relay: MemoryRelay) -> None:
    told = follow(relay)
    await relay.phone("s", ANN)
    await relay.viewer("s", BOB)
    await trio.sleep(1)
    assert told == ["s online"]


async def test_the_live_streams_are_listed_with_their_owners(relay: MemoryRelay) -> None:
    await relay.phone("s", ANN)
    await relay.viewer("s", ANN)
    await relay.viewer("nobody-produces-it", ANN)
    (presence,) = relay.hub.presences()
    assert (presence.stream_id, presence.owner_id) == ("s", "ann")
    assert (presence.online, presence.watched, presence.term) == (True, True, 0)


@pytest.mark.parametrize("msgpack", [False, True])
async def test_pictures_are_jpeg_by_how_they_begin(relay: MemoryRelay, *, msgpack: bool) -> None:
    phone = await relay.phone("s", ANN, msgpack=msgpack)
    await relay.viewer("another", ANN)
    assert [relay.hub.sends_jpeg(each) for each in ("s", "another", "none")] == [None] * 3
    for picture, is_jpeg in ((b"\xff\xd8\xff\xe0 JPEG", True), (b"\0\0\0\1 H.264", False)):
        data = picture if msgpack else base64.b64encode(picture).decode()
        await phone.send({"type": "video-frame", "data": data})
        await trio.sleep(0.1)
        assert relay.hub.sends_jpeg("s") == is_jpeg
