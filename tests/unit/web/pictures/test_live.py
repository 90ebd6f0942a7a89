"""`GET /streams/ID/live.mjpeg`: a stream as pictures one behind the other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from relay.guard.connection_limits import Caps, ConnectionLimits
from relay.guard.guard import Guard, SessionLimits
from relay.hub.ledger import Drop
from relay.hub.stream import Stream
from relay.model.access.change import Change
from relay.model.access.identity import Service, User
from relay.protocol.endings import Ending
from tests.unit.memory import Client, MemoryRelay
from tests.unit.memory.verifier import BOB, SENTRY
from tests.unit.web.pictures.gallery import (
    Browser,
    answer,
    open_gallery,
    picture,
    request,
    send_picture,
)

pytestmark = pytest.mark.mock_clock

LIVE = "/streams/front-door/live.mjpeg"


@pytest.fixture
async def gallery(relay: MemoryRelay) -> MemoryRelay:
    open_gallery(relay)
    return relay


def stream_of(relay: MemoryRelay) -> Stream:
    (stream,) = relay.hub.streams()
    return stream


async def watching(gallery: MemoryRelay, path: str = LIVE, **options: object) -> Browser:
    """A reader whose answer has begun."""
    reader = await answer(gallery, path, **options)
    assert reader.status == 200
    await wait_all_tasks_blocked()
    return reader


async def phone_with_picture(gallery: MemoryRelay, number: int = 0) -> Client:
    phone = await gallery.phone()
    await send_picture(phone, picture(number))
    return phone


@pytest.mark.parametrize("msgpack", [False, True])
async def test_each_picture_comes_as_it_was_sent(gallery: MemoryRelay, msgpack: bool) -> None:
    phone = await gallery.phone(msgpack=msgpack)
    await send_picture(phone, picture(0))
    reader = await watching(gallery)
    for number in range(1, 4):
        await send_picture(phone, picture(number))
    parts = [await reader.part() for _ in range(4)]
    assert [data for _, data in parts] == [picture(number) for number in range(4)]
    assert [headers["X-Sequence"] for headers, _ in parts] == ["1", "2", "3", "4"]
    assert {headers["Content-Type"] for headers, _ in parts} == {"image/jpeg"}


async def test_a_picture_that_is_written_can_be_shown_at_once(gallery: MemoryRelay) -> None:
    """Browsers wait for the next boundary before they show a picture."""
    await phone_with_picture(gallery)
    reader = await watching(gallery)
    _, data = await reader.part()  # which asserts that the boundary came with it
    assert data == picture(0)
    assert not reader.received


async def test_the_head_says_what_it_is_and_nothing_is_chunked(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    headers = (await watching(gallery)).headers
    assert headers["content-type"].startswith("multipart/x-mixed-replace; boundary=")
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert headers["content-security-policy"].startswith("sandbox")
    assert headers["cache-control"] == "private, no-store"
    assert headers["x-content-type-options"] == "nosniff"


async def test_it_wakes_the_phone_and_lets_it_sleep(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery)
    assert (await phone.receive_type("status"))["consumers"] == 1
    reader.leave()
    assert (await phone.receive_type("status"))["consumers"] == 0


async def test_a_phone_that_sent_nothing_yet_is_woken_for_it(gallery: MemoryRelay) -> None:
    phone = await gallery.phone()
    reader = request(gallery, LIVE)
    assert (await phone.receive_type("status"))["consumers"] == 1
    await send_picture(phone, picture(1))
    assert await reader.head() == 200
    assert (await reader.part())[1] == picture(1)


async def test_a_phone_that_sends_nothing_is_given_up(gallery: MemoryRelay) -> None:
    await gallery.phone()
    began = trio.current_time()
    assert (await answer(gallery, LIVE)).status == 504
    assert trio.current_time() - began == pytest.approx(10.0)


async def test_a_slow_reader_gets_the_newest_and_harms_nobody(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    fast = await watching(gallery)
    slow = await watching(gallery, capacity=4096)
    seqs = []
    for number in range(1, 101):
        await send_picture(phone, picture(number, size=1000))
        seqs.append(int((await fast.part())[0]["X-Sequence"]))
    assert seqs == list(range(1, 101))
    got = []
    with trio.move_on_after(1.0):
        while True:
            got.append(int((await slow.part())[0]["X-Sequence"]))
    assert got == sorted(got)
    assert got[-1] == 101
    assert len(got) < 12


async def test_nothing_is_lost_from_the_ledger(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    slow = await watching(gallery, capacity=2048)
    for number in range(50):
        await send_picture(phone, picture(number, size=900))
    (figures,) = gallery.hub.figures().streams
    (reader,) = figures.consumers
    assert reader.frames == reader.written + sum(reader.dropped.values()) + reader.waiting
    assert reader.dropped.get(Drop.SUPERSEDED, 0) > 0
    slow.leave()
    await wait_all_tasks_blocked()
    ledger = gallery.hub.ledger()
    assert ledger.waiting == 0
    assert ledger.accepted == ledger.written + sum(ledger.dropped.values())


async def test_it_shows_in_the_figures_and_the_counts(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    before = gallery.metrics.connections
    reader = await watching(gallery)
    (figures,) = gallery.hub.figures().streams
    assert [each.connection for each in figures.consumers] == [2]
    assert gallery.metrics.connections == before + 1
    assert gallery.hub.count().consumers == 1
    reader.leave()
    await wait_all_tasks_blocked()
    assert gallery.metrics.connections == before
    assert gallery.hub.count().consumers == 0
    assert gallery.metrics.authenticated == 1


async def test_fewer_pictures_come_to_who_wants_fewer(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery, f"{LIVE}?maxFps=1")
    for number in range(50):
        await send_picture(phone, picture(number))
        await trio.sleep(0.1)
    got = 0
    with trio.move_on_after(0.5):
        while True:
            await reader.part()
            got += 1
    assert 5 <= got <= 7


async def test_a_picture_that_is_none_is_left_out(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery)
    for data in (b"<script>", picture(7)):
        await send_picture(phone, data)
    assert [(await reader.part())[1] for _ in range(2)] == [picture(0), picture(7)]


async def test_a_picture_that_holds_the_boundary_is_left_out(gallery: MemoryRelay) -> None:
    """Else whoever has a phone could send parts of any kind to browsers."""
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery)
    boundary = reader.headers["content-type"].partition("boundary=")[2].encode()
    evil = picture(1) + b"\r\n--" + boundary + b"\r\nContent-Type: text/html\r\n\r\n<script>"
    await send_picture(phone, evil)
    await send_picture(phone, picture(2))
    assert [(await reader.part())[1] for _ in range(2)] == [picture(0), picture(2)]
    assert b"script" not in reader.received


async def test_a_stream_of_no_pictures_is_refused(gallery: MemoryRelay) -> None:
    phone = await gallery.phone(msgpack=True)
    await send_picture(phone, b"\0\0\0\1", keyframe=True)
    assert (await answer(gallery, LIVE)).status == 406


async def test_unknown_streams_and_those_of_others_look_the_same(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    others = await answer(gallery, LIVE, token=BOB)
    unknown = await answer(gallery, LIVE.replace("front", "back"), token=BOB)
    assert (others.status, unknown.status) == (404, 404)
    assert await others.body() == await unknown.body()


async def test_a_request_for_the_head_consumes_nothing(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    got = await answer(gallery, LIVE, method="HEAD")
    assert (got.status, await got.body()) == (200, b"")
    assert gallery.hub.count().consumers == 0


@pytest.mark.parametrize("query", ["maxFps=0", "maxFps=-1", "maxFps=nan", "maxFps=1e9", "width=1"])
async def test_absurd_parameters_are_refused(gallery: MemoryRelay, query: str) -> None:
    await phone_with_picture(gallery)
    assert (await answer(gallery, f"{LIVE}?{query}")).status == 400


async def test_without_the_library_smaller_ones_are_refused(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    got = await answer(gallery, f"{LIVE}?width=320")
    assert got.status == 503
    assert b"relay[renditions]" in await got.body()


# -- how it ends


async def test_a_reader_that_takes_nothing_is_ended(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    await watching(gallery, capacity=600)
    for number in range(20):
        await send_picture(phone, picture(number, size=2000))
    await trio.sleep(65.0)
    await wait_all_tasks_blocked()
    assert gallery.hub.count().consumers == 0


async def test_an_answer_without_pictures_ends(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    reader = await watching(gallery)
    began = trio.current_time()
    await reader.body()
    assert 60.0 <= trio.current_time() - began <= 70.0
    assert gallery.connections[1].peer.ending is Ending.HTTP_ANSWERED


async def test_a_phone_that_comes_back_goes_on_in_the_same_answer(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery)
    await reader.part()
    phone.link.close()
    await trio.sleep(20.0)  # it was offline by then
    again = await gallery.phone()
    await send_picture(again, picture(9))
    assert (await reader.part())[1] == picture(9)


async def test_a_service_that_is_revoked_gets_nothing_more(gallery: MemoryRelay) -> None:
    gallery.nursery.start_soon(gallery.watch.run)
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery, token=SENTRY)
    await reader.part()
    del gallery.verifier.identities[SENTRY]
    gallery.change_feed.tell(Change("service", "sentry"))
    await trio.sleep(1.0)
    await send_picture(phone, picture(1))
    assert await reader.body() == b""
    assert gallery.connections[1].peer.ending is Ending.SESSION_REVOKED


async def test_a_service_whose_scope_shrinks_gets_nothing_more(gallery: MemoryRelay) -> None:
    gallery.nursery.start_soon(gallery.watch.run)
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery, token=SENTRY)
    await reader.part()
    gallery.verifier.identities[SENTRY] = Service(
        "sentry", frozenset({"back-door"}), alerts=False, operate=False
    )
    gallery.change_feed.tell(Change("service", "sentry"))
    await trio.sleep(1.0)
    await send_picture(phone, picture(1))
    assert await reader.body() == b""


async def test_a_session_that_ends_ends_it(gallery: MemoryRelay) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    gallery.verifier.identities["brief"] = User("ann", "brief", soon)
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery, token="brief")
    for number in range(3):
        await trio.sleep(30.0)
        await send_picture(phone, picture(number))
        await reader.part()
    assert gallery.connections[1].peer.ending is None
    await trio.sleep(11.0)
    assert gallery.connections[1].peer.ending is Ending.SESSION_EXPIRED


async def test_a_stream_that_gets_another_owner_ends_it(gallery: MemoryRelay) -> None:
    await phone_with_picture(gallery)
    reader = await watching(gallery)
    await reader.part()
    gallery.hub.change_owner("front-door", "bob")
    assert await reader.body() == b""


async def test_when_relay_stops_it_ends_with_whole_pictures(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    reader = await watching(gallery, capacity=700)
    for number in range(3):
        await send_picture(phone, picture(number, size=2000))
    gallery.connections[1].restart(0)
    rest = await reader.body()
    boundary = reader.headers["content-type"].partition("boundary=")[2].encode()
    assert rest.count(b"image/jpeg") >= 1
    assert rest.endswith(b"--" + boundary + b"\r\n")


@pytest.mark.parametrize("capacity", [0, 10, 300, 4096])
async def test_a_reader_that_leaves_at_once_is_no_failure(
    gallery: MemoryRelay, capacity: int
) -> None:
    await phone_with_picture(gallery)
    with structlog.testing.capture_logs() as logged:
        reader = request(gallery, LIVE, capacity=max(1, capacity))
        if capacity:
            await reader.read()
        reader.leave()
        await trio.sleep(40.0)
    assert gallery.hub.count().consumers == 0
    assert not [each for each in logged if each["log_level"] == "error"]


# -- limits


async def test_readers_count_among_the_connections_of_a_user(relay: MemoryRelay) -> None:
    caps = Caps(connections=9, per_address=9, per_user=2, unauthenticated=9)
    relay.guard = Guard(connections=ConnectionLimits(caps))
    open_gallery(relay)
    phone = await relay.phone()
    await send_picture(phone, picture())
    first, second = await watching(relay), await watching(relay)
    await wait_all_tasks_blocked()
    assert relay.connections[0].peer.ending is Ending.TOO_MANY_CONNECTIONS  # the newest stay
    assert (first.status, second.status) == (200, 200)


async def test_readers_of_one_address_have_a_limit(relay: MemoryRelay) -> None:
    caps = Caps(connections=9, per_address=2, per_user=9, unauthenticated=9)
    relay.guard = Guard(connections=ConnectionLimits(caps))
    open_gallery(relay)
    await send_picture(await relay.phone(), picture())
    await watching(relay)
    reader = await watching(relay)
    assert (await answer(relay, LIVE)).status == 429
    reader.leave()
    await wait_all_tasks_blocked()
    assert (await answer(relay, LIVE)).status == 200


async def test_readers_count_among_the_subscriptions_of_a_user(relay: MemoryRelay) -> None:
    relay.guard = Guard(session_limits=SessionLimits(max_subscriptions_of_user=1))
    open_gallery(relay)
    await send_picture(await relay.phone(), picture())
    await watching(relay)
    assert (await answer(relay, LIVE)).status == 429


# -- large pictures


async def test_a_large_picture_is_enclosed_once_for_all_readers(gallery: MemoryRelay) -> None:
    phone = await phone_with_picture(gallery)
    readers = [await watching(gallery) for _ in range(3)]
    big = picture(5, size=700_000)

    async def read(reader: Browser) -> None:
        assert [(await reader.part())[1] for _ in range(2)] == [picture(0), big]

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(read, reader)
        await send_picture(phone, big)
    (figures,) = gallery.hub.figures().streams
    assert [each.written for each in figures.consumers] == [2, 2, 2]
