"""`GET /streams/ID/latest.jpg`: the newest picture, from memory or waited for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import trio
from attrs import fields
from trio.testing import wait_all_tasks_blocked

from relay.guard.guard import Guard, SessionLimits
from relay.hub.frames.frame import Frame
from relay.model.access.change import Change
from relay.settings.settings import Settings
from tests.unit.memory import MemoryRelay
from tests.unit.memory.renderer import MemoryRenderer
from tests.unit.memory.verifier import BOB, SENTRY
from tests.unit.web.pictures.gallery import answer, open_gallery, picture, request, send_picture

pytestmark = pytest.mark.mock_clock


@pytest.fixture
async def gallery(relay: MemoryRelay) -> MemoryRelay:
    open_gallery(relay)
    return relay


@pytest.mark.parametrize("msgpack", [False, True])
async def test_the_newest_picture_comes_as_it_was_sent(gallery: MemoryRelay, msgpack: bool) -> None:
    phone = await gallery.phone(msgpack=msgpack)
    for number in range(3):
        await send_picture(phone, picture(number))
    got = await answer(gallery)
    assert (got.status, await got.body()) == (200, picture(2))
    assert got.headers["content-length"] == str(len(picture(2)))
    assert got.headers["content-type"] == "image/jpeg"


async def test_browsers_are_told_to_do_nothing_but_show_it(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture())
    headers = (await answer(gallery)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("sandbox")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "private, no-store"


async def test_a_picture_that_the_client_has_is_not_sent_again(gallery: MemoryRelay) -> None:
    phone = await gallery.phone()
    await send_picture(phone, picture(1))
    etag = (await answer(gallery)).headers["etag"]
    same = await answer(gallery, If_None_Match=f'"other", W/{etag}')
    assert (same.status, await same.body(), same.headers["etag"]) == (304, b"", etag)
    assert "last-modified" in same.headers
    await send_picture(phone, picture(2))
    other = await answer(gallery, If_None_Match=etag)
    assert (other.status, await other.body()) == (200, picture(2))


async def test_its_age_is_told_in_seconds(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture())
    await trio.sleep(7.5)
    assert (await answer(gallery)).headers["age"] == "7"


async def test_a_request_for_the_head_gets_no_picture(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture())
    got = await answer(gallery, method="HEAD")
    assert got.headers["content-length"] == str(len(picture()))
    assert (got.status, await got.body()) == (200, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_not_allowed(gallery: MemoryRelay, method: str) -> None:
    assert (await answer(gallery, method=method)).status == 405


async def test_unknown_streams_and_those_of_others_look_the_same(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture())
    others = await answer(gallery, token=BOB)
    unknown = await answer(gallery, "/streams/back-door/latest.jpg", token=BOB)
    assert (others.status, unknown.status) == (404, 404)
    assert await others.body() == await unknown.body()
    assert len(gallery.hub.streams()) == 1


async def test_a_service_that_may_watch_gets_it(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture())
    assert (await answer(gallery, token=SENTRY)).status == 200


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("nonsense", 401), ("", 401)])
async def test_without_a_valid_token_there_is_none(
    gallery: MemoryRelay, token: str | None, status: int
) -> None:
    await send_picture(await gallery.phone(), picture())
    assert (await answer(gallery, token=token)).status == status


@pytest.mark.parametrize(
    "query",
    [
        "width=0", "width=-320", "width=321", "width=99999999999999999999", "width=wide", "width=",
        "maxAge=-1", "maxAge=nan", "maxAge=inf", "maxAge=1e99", "maxAge=soon", "other=1",
    ],
)  # fmt: skip
async def test_absurd_parameters_are_refused(gallery: MemoryRelay, query: str) -> None:
    await send_picture(await gallery.phone(), picture())
    got = await answer(gallery, f"/streams/front-door/latest.jpg?{query}")
    assert got.status == 400
    assert json.loads(await got.body())["error"]["code"] == "INVALID_MESSAGE"


@pytest.mark.parametrize("data", [b"<html>", b"\xff\xd8", b"\xff\xd8\xfe", b"", b"\x89PNG"])
async def test_what_is_no_jpeg_is_not_served(gallery: MemoryRelay, data: bytes) -> None:
    await send_picture(await gallery.phone(), data)
    got = await answer(gallery)
    assert got.status == 406
    assert got.headers["content-type"] == "application/json"


async def test_video_of_which_frames_build_on_one_another_is_not_served(
    gallery: MemoryRelay,
) -> None:
    await send_picture(await gallery.phone(msgpack=True), b"\0\0\0\1\x67", keyframe=True)
    assert (await answer(gallery)).status == 406


async def test_a_stream_without_a_picture_says_so(gallery: MemoryRelay) -> None:
    await gallery.phone()
    got = await answer(gallery)
    assert got.status == 404
    assert b"maxAge" in await got.body()


# -- a fresh one


async def test_one_that_is_young_enough_comes_at_once(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture(1))
    await trio.sleep(3.0)
    got = await answer(gallery, "/streams/front-door/latest.jpg?maxAge=5")
    assert await got.body() == picture(1)


async def test_for_a_fresh_one_the_phone_is_woken(gallery: MemoryRelay) -> None:
    phone = await gallery.phone()
    await send_picture(phone, picture(1))
    await trio.sleep(20.0)
    waiting = request(gallery, "/streams/front-door/latest.jpg?maxAge=5")
    assert (await phone.receive_type("status"))["consumers"] == 1
    await send_picture(phone, picture(2))
    assert (await waiting.head(), await waiting.body()) == (200, picture(2))
    assert (await phone.receive_type("status"))["consumers"] == 0
    ledger = gallery.hub.ledger()
    assert (ledger.accepted, ledger.waiting) == (ledger.written + sum(ledger.dropped.values()), 0)


async def test_when_none_comes_in_time_that_is_said(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture(1))
    await trio.sleep(1.0)
    began = trio.current_time()
    got = await answer(gallery, "/streams/front-door/latest.jpg?maxAge=0")
    assert got.status == 504
    assert trio.current_time() - began == pytest.approx(10.0)
    assert gallery.hub.count().consumers == 0


async def test_what_is_no_jpeg_ends_the_wait(gallery: MemoryRelay) -> None:
    phone = await gallery.phone()
    waiting = request(gallery, "/streams/front-door/latest.jpg?maxAge=0")
    await phone.receive_type("status")
    await send_picture(phone, b"no picture")
    assert await waiting.head() == 406


async def test_who_leaves_waits_no_longer(gallery: MemoryRelay) -> None:
    phone = await gallery.phone()
    waiting = request(gallery, "/streams/front-door/latest.jpg?maxAge=0")
    await phone.receive_type("status")
    waiting.leave()
    assert (await phone.receive_type("status"))["consumers"] == 0


async def test_who_waits_counts_among_the_subscriptions_of_the_user(relay: MemoryRelay) -> None:
    relay.guard = Guard(session_limits=SessionLimits(max_subscriptions_of_user=1))
    open_gallery(relay)
    phone = await relay.phone()
    waiting = request(relay, "/streams/front-door/latest.jpg?maxAge=0")
    await phone.receive_type("status")
    refused = await answer(relay, "/streams/front-door/latest.jpg?maxAge=0")
    assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    await send_picture(phone, picture())
    assert await waiting.head() == 200


async def test_who_may_not_see_it_any_more_while_waiting_gets_nothing(
    gallery: MemoryRelay,
) -> None:
    gallery.nursery.start_soon(gallery.watch.run)
    phone = await gallery.phone()
    waiting = request(gallery, "/streams/front-door/latest.jpg?maxAge=0", token=SENTRY)
    await phone.receive_type("status")
    del gallery.verifier.identities[SENTRY]
    gallery.change_feed.tell(Change("service", "sentry"))
    await trio.sleep(1.0)
    assert not gallery.hub.count().consumers
    await send_picture(phone, picture())
    assert await waiting.body() == b""


# -- smaller ones


@pytest.fixture
def small(relay: MemoryRelay) -> MemoryRenderer:
    renderer = MemoryRenderer()
    relay.hub.renderer = renderer
    return renderer


async def test_a_smaller_one_is_made_once_for_all(
    gallery: MemoryRelay, small: MemoryRenderer
) -> None:
    await send_picture(await gallery.phone(), picture(size=20_000))
    path = "/streams/front-door/latest.jpg?width=320"
    first, second = await answer(gallery, path), await answer(gallery, path)
    assert (first.status, second.status) == (200, 200)
    assert await first.body() == await second.body()
    assert small.made == [("ann", 320)]
    assert first.headers["etag"] != (await answer(gallery)).headers["etag"]


async def test_one_that_is_small_already_comes_as_it_is(
    gallery: MemoryRelay, small: MemoryRenderer
) -> None:
    await send_picture(await gallery.phone(), picture(width=160))
    got = await answer(gallery, "/streams/front-door/latest.jpg?width=320")
    assert await got.body() == picture(width=160)
    assert not small.made


async def test_without_the_library_that_is_said(gallery: MemoryRelay) -> None:
    await send_picture(await gallery.phone(), picture())
    got = await answer(gallery, "/streams/front-door/latest.jpg?width=320")
    assert got.status == 503
    words = (await got.body()).decode()
    assert "relay[renditions]" in words
    named = set(re.findall(r"`(\w+)`", words))
    assert "rendition_cores" in named
    assert named <= {each.name for each in fields(Settings)}


async def test_one_that_cannot_be_made_in_time_is_to_be_asked_for_again(
    gallery: MemoryRelay, small: MemoryRenderer
) -> None:
    small.fails = True
    await send_picture(await gallery.phone(), picture())
    got = await answer(gallery, "/streams/front-door/latest.jpg?width=320")
    assert (got.status, got.headers["retry-after"]) == (503, "1")


async def test_a_broken_header_is_no_picture_to_be_made_smaller(
    gallery: MemoryRelay, small: MemoryRenderer
) -> None:
    await send_picture(await gallery.phone(), b"\xff\xd8\xff\xe0\xff\xff")
    got = await answer(gallery, "/streams/front-door/latest.jpg?width=320")
    assert got.status == 406


# -- large ones


async def test_a_large_picture_comes_whole_and_base64_is_decoded_once(
    gallery: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    before: Callable[..., bytes | None] = Frame._content

    def count(frame: Frame) -> bytes | None:
        decoded.append(frame.seq)
        return before(frame)

    monkeypatch.setattr(Frame, "_content", count)
    phone = await gallery.phone()
    await send_picture(phone, picture(size=600_000))
    for _ in range(3):
        assert await (await answer(gallery)).body() == picture(size=600_000)
    assert decoded == [1]


async def test_a_reader_that_takes_nothing_does_not_keep_a_picture_for_ever(
    gallery: MemoryRelay,
) -> None:
    phone = await gallery.phone()
    await send_picture(phone, picture(size=600_000))
    stalled = await answer(gallery, capacity=1024)
    await trio.sleep(300.0)
    await wait_all_tasks_blocked()
    assert not any(each.peer.ending is None for each in gallery.connections[1:])
    assert len(stalled.received) < 10_000


async def test_a_width_that_is_not_made_is_answered_with_those_that_are(relay: MemoryRelay) -> None:
    open_gallery(relay)
    got = await answer(relay, "/streams/front-door/latest.jpg?width=333")
    assert got.status == 400
    said = await got.body()
    assert b"Expected one of `160`, `320`, `640`, `960`, got 333 - at `$.width`" in said
