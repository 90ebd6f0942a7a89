"""`GET /alerts/ID/still.jpg` and `clip.mjpeg`, for those who may see the stream."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import trio
from attrs import define, evolve

from relay.clips.made_clips import MadeClip, MadeClips
from relay.clips.mp4 import Mp4Maker
from relay.concurrency.alarms import Alarms
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.model.alerts.alert_picture import AlertPicture, PictureKind, PictureName
from relay.model.alerts.picture_link import PictureLinks
from relay.web.pictures.alert_pictures import MAX_WAITING_REQUESTS, KeptWithAlerts
from tests.unit.clips.studio import PLACE, MemoryPictureTable, MemoryStorage
from tests.unit.memory import MemoryRelay
from tests.unit.memory.verifier import ANN, BOB
from tests.unit.web.pictures.gallery import Browser, answer, open_gallery, picture, request

pytestmark = pytest.mark.mock_clock

CLIP = b"--relay-0123456789abcdef01234567\r\nContent-Type: image/jpeg\r\n\r\n"
ALERT_ID = 4_000_000_000_000_000
"""Of an alert far in the future, whose links do not expire while this runs."""
LINKS = PictureLinks(b"key of a test")
STILL_PATH, CLIP_PATH = f"/alerts/{ALERT_ID}/still.jpg", f"/alerts/{ALERT_ID}/clip.mjpeg"
MP4_PATH = f"/alerts/{ALERT_ID}/clip.mp4"


@pytest.fixture
def table() -> MemoryPictureTable:
    return MemoryPictureTable()


@pytest.fixture
async def storage(relay: MemoryRelay, table: MemoryPictureTable) -> MemoryStorage:
    storage = MemoryStorage()
    open_gallery(relay, kept=kept_in(table, storage, Mp4Maker(None)))
    return storage


def kept_in(table: MemoryPictureTable, storage: MemoryStorage, maker: object) -> KeptWithAlerts:
    made = MadeClips(Alarms())
    return KeptWithAlerts(table, storage, LINKS, cast("Mp4Maker", maker), made)


def keep(
    table: MemoryPictureTable, storage: MemoryStorage, content: bytes, kind: PictureKind = "still"
) -> AlertPicture:
    name = PictureName(ALERT_ID, kind)
    row = table.rows[name] = AlertPicture(name, "kept", "ann", PLACE, len(content))
    storage.files[name] = content
    return row


async def is_cut(got: Browser, content: bytes) -> bool:
    """Whether an answer ends before its end."""
    with suppress(ConnectionResetError):
        await got.body()
    return len(got.received) < len(content)


async def test_a_still_is_served_as_pictures_are(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, picture(7))
    got = await answer(relay, STILL_PATH)
    assert (got.status, await got.body()) == (200, picture(7))
    assert got.headers["content-type"] == "image/jpeg"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"].startswith("sandbox")
    assert got.headers["cross-origin-resource-policy"] == "same-origin"
    assert got.headers["cache-control"] == "private, no-store"
    assert got.headers["content-disposition"] == f'inline; filename="alert-{ALERT_ID}.jpg"'


async def test_a_long_clip_is_served_whole_with_its_boundary(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    content = CLIP + bytes(range(256)) * 4000
    keep(table, storage, content, "clip")
    got = await answer(relay, CLIP_PATH)
    assert (got.status, await got.body()) == (200, content)
    assert got.headers["content-length"] == str(len(content))
    assert got.headers["content-type"] == (
        "multipart/x-mixed-replace; boundary=relay-0123456789abcdef01234567"
    )


async def test_a_request_for_the_head_gets_no_body(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, picture(7))
    got = await answer(relay, STILL_PATH, method="HEAD")
    assert (got.status, await got.body()) == (200, b"")
    assert got.headers["content-length"] == str(len(picture(7)))


@pytest.mark.parametrize(
    "path", [CLIP_PATH, "/alerts/17/still.jpg", "/alerts/0/still.jpg", "/alerts/x%0A/still.jpg"]
)
async def test_what_is_not_there_and_what_is_not_for_you_look_the_same(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage, path: str
) -> None:
    keep(table, storage, picture(7))
    others, missing = await answer(relay, STILL_PATH, token=BOB), await answer(relay, path)
    assert (others.status, await others.body()) == (missing.status, await missing.body())
    assert others.status == 404


async def test_a_token_is_needed(relay: MemoryRelay, storage: MemoryStorage) -> None:
    assert (await answer(relay, STILL_PATH, token="")).status == 401
    assert (await answer(relay, f"{STILL_PATH}?token=x")).status == 400
    assert (await answer(relay, f"{STILL_PATH}?width=320")).status == 400


async def test_a_still_that_is_being_kept_is_waited_for(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    row = keep(table, storage, picture(7))
    table.rows[row.name] = evolve(row, state="pending")
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            await trio.sleep(3)
            table.rows[row.name] = row

        nursery.start_soon(finish)
        assert (await answer(relay, STILL_PATH)).status == 200
    assert trio.current_time() == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize(("kind", "wait"), [("still", 10), ("clip", 20)])
async def test_one_that_is_not_ready_is_to_be_asked_for_again(
    relay: MemoryRelay,
    table: MemoryPictureTable,
    storage: MemoryStorage,
    kind: PictureKind,
    wait: float,
) -> None:
    row = keep(table, storage, b"", kind)
    table.rows[row.name] = evolve(row, state="pending")
    got = await answer(relay, STILL_PATH if kind == "still" else CLIP_PATH)
    assert (got.status, got.headers["retry-after"]) == (503, "2")
    assert trio.current_time() == pytest.approx(wait, abs=0.5)


async def test_those_who_wait_are_few_and_ask_the_database_seldom(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    row = keep(table, storage, picture(7))
    table.rows[row.name] = evolve(row, state="pending")
    statuses: list[tuple[int, float]] = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            got = await answer(relay, STILL_PATH)
            statuses.append((got.status, trio.current_time()))

        for _ in range(2 * MAX_WAITING_REQUESTS):
            nursery.start_soon(ask)
        await trio.sleep(1)
        assert len(statuses) == MAX_WAITING_REQUESTS
    assert {status for status, _ in statuses} == {503}
    assert table.looks <= 24 * MAX_WAITING_REQUESTS
    table.rows[row.name] = row
    assert (await answer(relay, STILL_PATH)).status == 200


async def test_one_that_could_not_be_kept_says_so(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    row = keep(table, storage, b"")
    table.rows[row.name] = evolve(row, state="failed")
    got = await answer(relay, STILL_PATH)
    assert got.status == 404
    assert b"could not be kept" in await got.body()


@pytest.mark.parametrize("content", [b"<html>", b"", b"\xff\xd8"])
async def test_only_what_begins_as_a_jpeg_picture_is_served(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage, content: bytes
) -> None:
    keep(table, storage, content)
    keep(table, storage, content, "clip")
    for path in (STILL_PATH, CLIP_PATH):
        got = await answer(relay, path)
        assert (got.status, got.headers["content-type"]) == (503, "application/json")


async def test_a_file_of_another_machine_is_not_here(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, picture(7))
    storage.named = "folder:of-another-machine"
    got = await answer(relay, STILL_PATH)
    assert got.status == 503
    assert b"the relay that had the phone" in await got.body()
    assert "retry-after" not in got.headers


async def test_a_file_that_is_gone_is_not_said_to_be_elsewhere(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, picture(7))
    storage.files.clear()
    got = await answer(relay, STILL_PATH)
    assert got.status == 503
    assert b"does not have it any more" in await got.body()


async def test_a_reader_who_loses_the_permission_gets_no_more(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    content = CLIP + bytes(8 << 20)
    keep(table, storage, content, "clip")
    got = await answer(relay, CLIP_PATH)
    assert got.status == 200
    ann = relay.verifier.identities[ANN]
    assert isinstance(ann, User)
    relay.verifier.identities[ANN] = evolve(ann, granted=frozenset({"other"}))
    table.rows.clear()  # as for somebody who may not see the stream
    relay.change_feed.tell(Change("session", ann.session_id))
    await trio.sleep(1)
    assert await is_cut(got, content)


async def test_a_reader_whose_session_ends_gets_no_more(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    content = CLIP + bytes(8 << 20)
    keep(table, storage, content, "clip")
    got = await answer(relay, CLIP_PATH)
    del relay.verifier.identities[ANN]
    relay.change_feed.tell(Change("session", "session-of-ann"))
    await trio.sleep(1)
    assert await is_cut(got, content)


async def read_slowly(got: Browser, seconds: float) -> None:
    for _ in range(20):
        await got.read()
        await trio.sleep(seconds / 20)


@pytest.mark.parametrize("by_link", [False, True])
async def test_a_slow_reader_of_a_stream_that_gets_another_owner_gets_no_more(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage, by_link: bool
) -> None:
    content = CLIP + bytes(8 << 20)
    row = keep(table, storage, content, "clip")
    path = LINKS.link_to(row.name) if by_link else CLIP_PATH
    got = await answer(relay, path, token="" if by_link else ANN)
    table.rows.clear()  # nobody's identity changes
    with suppress(ConnectionResetError):
        await read_slowly(got, 10)
    assert await is_cut(got, content)


async def test_a_reader_reads_on_while_the_database_is_away(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    content = CLIP + bytes(8 << 20)
    keep(table, storage, content, "clip")
    got = await answer(relay, CLIP_PATH)
    table.unreadable = True
    await read_slowly(got, 10)
    assert await got.body() == content


async def test_a_video_counts_as_unread_until_it_has_been_read(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, CLIP, "clip")
    video = b"....ftyp" + bytes(8 << 20)
    open_gallery(relay, kept=kept_in(table, storage, ReadyMade(video)))
    assert relay.http is not None
    got = await answer(relay, MP4_PATH)
    assert got.status == 200
    assert relay.http._unsent.reserved >= len(video)
    assert await got.body() == video


@define(eq=False)
class ReadyMade:
    """Makes the same video of each clip."""

    video: bytes
    seconds: float = 0.0
    """That it takes."""
    makes: int = 0

    async def make(self, clip: object, sender: str) -> MadeClip:
        await trio.sleep(self.seconds)
        self.makes += 1
        return MadeClip(self.video, '"of the video"')


@pytest.mark.parametrize("why", ["owner", "session"])
async def test_a_slow_reader_of_a_video_that_may_not_see_it_any_more_gets_no_more(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage, why: str
) -> None:
    keep(table, storage, CLIP, "clip")
    video = b"....ftyp" + bytes(8 << 20)
    open_gallery(relay, kept=kept_in(table, storage, ReadyMade(video)))
    got = await answer(relay, MP4_PATH)
    assert got.status == 200
    if why == "owner":
        table.rows.clear()  # nobody's identity changes
    else:
        del relay.verifier.identities[ANN]
        relay.change_feed.tell(Change("session", "session-of-ann"))
    with suppress(ConnectionResetError):
        await read_slowly(got, 10)
    assert await is_cut(got, video)


async def test_a_slow_reader_of_a_video_reads_on_while_it_may(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, CLIP, "clip")
    video = b"....ftyp" + bytes(8 << 20)
    open_gallery(relay, kept=kept_in(table, storage, ReadyMade(video)))
    got = await answer(relay, MP4_PATH)
    await read_slowly(got, 20)
    assert await got.body() == video


@pytest.mark.parametrize("is_prolonged", [False, True])
@pytest.mark.parametrize("path", [CLIP_PATH, MP4_PATH])
async def test_a_slow_reader_reads_on_no_longer_than_its_session_lasts(
    relay: MemoryRelay,
    table: MemoryPictureTable,
    storage: MemoryStorage,
    path: str,
    is_prolonged: bool,
) -> None:
    content = CLIP + bytes(8 << 20)
    keep(table, storage, content, "clip")
    open_gallery(relay, kept=kept_in(table, storage, ReadyMade(content)))
    ann = relay.verifier.identities[ANN]
    assert isinstance(ann, User)
    soon = datetime.now(UTC) + timedelta(seconds=3)
    relay.verifier.identities[ANN] = evolve(ann, expires_at=soon)
    got = await answer(relay, path)
    assert got.status == 200
    if is_prolonged:
        relay.verifier.identities[ANN] = ann
    with suppress(ConnectionResetError):
        await read_slowly(got, 20)
    assert await is_cut(got, content) is not is_prolonged


@pytest.mark.parametrize("is_prolonged", [False, True])
@pytest.mark.parametrize("path", [CLIP_PATH, MP4_PATH])
async def test_a_session_that_expires_while_its_reader_waits_gets_nothing(
    relay: MemoryRelay,
    table: MemoryPictureTable,
    storage: MemoryStorage,
    path: str,
    is_prolonged: bool,
) -> None:
    row = keep(table, storage, CLIP, "clip")
    open_gallery(relay, kept=kept_in(table, storage, ReadyMade(b"....ftyp", seconds=8)))
    if path == CLIP_PATH:
        table.rows[row.name] = evolve(row, state="pending")
    ann = relay.verifier.identities[ANN]
    assert isinstance(ann, User)
    soon = datetime.now(UTC) + timedelta(seconds=3)
    relay.verifier.identities[ANN] = evolve(ann, expires_at=soon)
    got = request(relay, path)
    await trio.sleep(1)
    if is_prolonged:
        relay.verifier.identities[ANN] = ann
    await trio.sleep(6)
    table.rows[row.name] = row
    assert await got.head() == (200 if is_prolonged else 401)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        *(("bytes=0-1", slice(0, 2)), ("bytes=7-", slice(7, None))),
        *(("bytes=-5", slice(-5, None)), ("bytes=-99999999", slice(0, None))),
        *(("bytes=5-99999999", slice(5, None)), ("bytes=0-", slice(0, None))),
        ("bytes=300000-300009", slice(300_000, 300_010)),
        ("bytes=262143-524288", slice(262_143, 524_289)),
        ("Bytes= 600000-", slice(600_000, None)),
    ],
)
async def test_of_a_clip_that_is_kept_any_range_is_served(
    relay: MemoryRelay,
    table: MemoryPictureTable,
    storage: MemoryStorage,
    asked: str,
    place: slice,
) -> None:
    content = CLIP + bytes(range(256)) * 4000
    keep(table, storage, content, "clip")
    got = await answer(relay, CLIP_PATH, Range=asked)
    assert (got.status, await got.body()) == (206, content[place])
    first, end, _ = place.indices(len(content))
    assert got.headers["content-range"] == f"bytes {first}-{end - 1}/{len(content)}"
    assert got.headers["content-length"] == str(end - first)
    assert got.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("asked", ["bytes=90000000-", "bytes=-0", "bytes=90000-90010"])
async def test_a_range_that_the_file_does_not_have_is_refused_with_its_size(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage, asked: str
) -> None:
    keep(table, storage, picture(7))
    size = len(picture(7))
    got = await answer(relay, STILL_PATH, Range=asked)
    assert (got.status, got.headers["content-range"]) == (416, f"bytes */{size}")
    assert f"{size} bytes".encode() in await got.body()


@pytest.mark.parametrize(
    "asked",
    [
        *("bytes=5-2", "bytes=0-1,4-5", "bytes=", "bytes=-", "bytes=a-b", "lines=0-1", "0-1"),
        *(f"bytes={'9' * 5000}-", "bytes=\u0661-"),
    ],
)
async def test_what_is_no_single_range_gets_the_whole_file(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage, asked: str
) -> None:
    keep(table, storage, picture(7))
    got = await answer(relay, STILL_PATH, Range=asked)
    assert (got.status, await got.body()) == (200, picture(7))
    assert "content-range" not in got.headers


async def test_a_range_of_another_file_than_the_reader_knows_is_the_whole_file(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, picture(7))
    etag = (await answer(relay, STILL_PATH, method="HEAD", Range="bytes=0-1")).headers["etag"]
    same = await answer(relay, STILL_PATH, Range="bytes=0-1", If_Range=etag)
    assert (same.status, await same.body()) == (206, picture(7)[:2])
    other = await answer(relay, STILL_PATH, Range="bytes=0-1", If_Range='"another"')
    assert (other.status, await other.body()) == (200, picture(7))


async def test_a_video_is_made_once_for_a_player_that_asks_for_its_ranges(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, CLIP, "clip")
    maker = ReadyMade(b"....ftyp" + bytes(range(256)) * 1000)
    open_gallery(relay, kept=kept_in(table, storage, maker))
    first = await answer(relay, MP4_PATH, Range="bytes=0-1")
    assert (first.status, await first.body()) == (206, maker.video[:2])
    rest = await answer(relay, MP4_PATH, Range="bytes=1000-", If_Range=first.headers["etag"])
    assert (rest.status, await rest.body()) == (206, maker.video[1000:])
    beyond = await answer(relay, MP4_PATH, Range="bytes=900000-")
    assert (beyond.status, maker.makes) == (416, 1)
    table.rows.clear()
    assert (await answer(relay, MP4_PATH, Range="bytes=0-1")).status == 404


async def test_whoever_has_a_link_gets_one_file(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    keep(table, storage, picture(7))
    keep(table, storage, CLIP, "clip")
    link = LINKS.link_to(PictureName(ALERT_ID, "still"))
    got = await answer(relay, link, token="")
    assert (got.status, await got.body()) == (200, picture(7))
    assert got.headers["cross-origin-resource-policy"] == "cross-origin"
    assert got.headers["cache-control"] == "private, no-store"
    clip = await answer(relay, link.replace("still.jpg", "clip.mjpeg"), token="")
    other = await answer(relay, link.replace(str(ALERT_ID), str(ALERT_ID + 1)), token="")
    assert (clip.status, other.status) == (401, 401)


async def test_a_link_expires_and_cannot_be_prolonged(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    old = PictureName(1_700_000_000_000_000, "still")
    row = keep(table, storage, picture(7))
    table.rows[old] = evolve(row, name=old)
    storage.files[old] = picture(7)
    link = LINKS.link_to(old)
    expires = link.partition("expires=")[2].partition("&")[0]
    for each in (
        *(link, link.replace(expires, "4000000000")),
        *(link.partition("&")[0], f"/alerts/{old.alert_id}/still.jpg?signature=%C3%A9"),
    ):
        assert (await answer(relay, each, token="")).status == 401


async def test_a_link_and_a_token_are_not_sent_together(
    relay: MemoryRelay, table: MemoryPictureTable, storage: MemoryStorage
) -> None:
    row = keep(table, storage, picture(7))
    assert (await answer(relay, LINKS.link_to(row.name))).status == 400


async def test_a_link_to_what_is_not_there_any_more_finds_nothing(
    relay: MemoryRelay, storage: MemoryStorage
) -> None:
    link = LINKS.link_to(PictureName(ALERT_ID, "still"))
    assert (await answer(relay, link, token="")).status == 404
