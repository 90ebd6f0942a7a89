"""The still and the clip of an alert: which pictures they have, and what keeps them from being."""

from __future__ import annotations

import re

import pytest
import trio
import trio.lowlevel

from relay.clips.recorder import MAX_CAPTURES_OF_USER, MAX_CLIPS_WRITTEN, ClipLimits
from relay.metrics import PictureOutcome
from tests.unit.clips.studio import open_studio
from tests.unit.memory import Client, MemoryRelay
from tests.unit.web.pictures.gallery import picture, send_picture

pytestmark = pytest.mark.mock_clock


async def send_every(phone: Client, seconds: float, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await send_picture(phone, picture(number))
        await trio.sleep(seconds)


def pictures_in(clip: bytes) -> list[bytes]:
    """The pictures of a clip file, whose form is checked."""
    boundary, _, rest = clip.partition(b"\r\n")
    assert re.fullmatch(rb"--relay-[0-9a-f]{24}", boundary)
    found = []
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        size = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        found.append(rest[:size])
        rest = rest[size:]
        assert rest.startswith(b"\r\n" + boundary)
        rest = rest[len(boundary) + 4 :]
    assert clip.endswith(boundary + b"--")
    return found


@pytest.mark.parametrize("msgpack", [False, True])
async def test_a_still_is_the_picture_of_that_moment(relay: MemoryRelay, msgpack: bool) -> None:
    async with open_studio(relay) as studio:
        phone = await relay.phone(msgpack=msgpack)
        await send_every(phone, 0.1, 3)
        alert_id = studio.alert(still="pending")
        await send_every(phone, 0.1, 1, first=3)
        assert studio.state(alert_id, "still") == "kept"
        assert studio.file(alert_id, "still") == picture(2)
        assert relay.metrics.alert_pictures["still", PictureOutcome.KEPT] == 1


async def test_a_camera_that_rests_is_woken_for_the_still(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        phone = await relay.phone()
        await send_picture(phone, picture(0))
        await trio.sleep(60)
        alert_id = studio.alert(still="pending")
        assert (await phone.receive_type("status"))["consumers"] == 1
        await send_picture(phone, picture(1))
        await trio.sleep(2)
        assert studio.file(alert_id, "still") == picture(1)
        while (await phone.receive_type("status"))["consumers"]:
            pass
        assert relay.hub.streams()[0].ring is None


@pytest.mark.parametrize(("age", "state"), [(4, "kept"), (60, "failed")])
async def test_an_older_picture_is_kept_only_if_it_is_not_much_older(
    relay: MemoryRelay, age: float, state: str
) -> None:
    async with open_studio(relay) as studio:
        await send_picture(await relay.phone(), picture(0))
        await trio.sleep(age)
        alert_id = studio.alert(still="pending")
        await trio.sleep(7)
        assert studio.state(alert_id, "still") == state


async def test_what_is_no_jpeg_picture_is_not_kept(relay: MemoryRelay) -> None:
    async with open_studio(relay, clips=True) as studio:
        phone = await relay.phone()
        await send_picture(phone, b"<html>")
        alert_id = studio.alert(still="pending", clip="pending")
        await trio.sleep(20)
        assert studio.state(alert_id, "still") == studio.state(alert_id, "clip") == "failed"
        assert studio.storage.files == {}
        assert relay.metrics.alert_pictures["clip", PictureOutcome.NO_PICTURE] == 1


async def test_an_alert_that_wants_nothing_costs_nothing(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.1, 3)
        studio.alert()
        await trio.sleep(1)
        assert studio.table.rows == {}
        assert relay.hub.streams()[0].ring is None


async def test_an_alert_from_sql_has_what_the_settings_say(relay: MemoryRelay) -> None:
    async with open_studio(relay, every=True) as studio:
        await send_picture(await relay.phone(), picture(0))
        alert_id = studio.alert()
        await trio.sleep(0.1)
        assert studio.state(alert_id, "still") == "kept"


async def test_a_clip_has_the_seconds_before_and_after(relay: MemoryRelay) -> None:
    async with open_studio(relay, clips=True, limits=ClipLimits(3, 2, fps=1)) as studio:
        phone = await relay.phone()
        await send_every(phone, 1, 10)
        alert_id = studio.alert(clip="pending")
        assert (await phone.receive_type("status"))["consumers"] == 1
        await send_every(phone, 1, 5, first=10)
        clip = pictures_in(studio.file(alert_id, "clip"))
        assert clip == [picture(each) for each in range(7, 12)]
        assert studio.state(alert_id, "clip") == "kept"


async def test_a_clip_is_thinned_to_its_rate(relay: MemoryRelay) -> None:
    async with open_studio(relay, clips=True, limits=ClipLimits(2, 2, fps=5)) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.05, 60)
        alert_id = studio.alert(clip="pending")
        await send_every(phone, 0.05, 60, first=60)
        clip = pictures_in(studio.file(alert_id, "clip"))
        assert 18 <= len(clip) <= 22


async def test_the_memory_of_a_stream_that_stops_is_freed(relay: MemoryRelay) -> None:
    async with open_studio(relay, clips=True) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.5, 8)
        account = relay.hub.frame_budget.account("ann")
        held = account.bytes
        await trio.sleep(1)
        assert relay.metrics.clip_buffer_bytes > 8 * len(picture(0))
        await trio.sleep(15)
        assert relay.metrics.clip_buffer_bytes == 0
        assert account.bytes < held - 7 * len(picture(0))
        assert studio.table.rows == {}


async def test_a_clip_has_as_many_bytes_as_its_buffer(relay: MemoryRelay) -> None:
    size = len(picture(0))
    limits = ClipLimits(10, 10, fps=10, buffer=6 * size)
    async with open_studio(relay, clips=True, limits=limits) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.5, 20)
        assert sum(each.ring.bytes for each in relay.hub.streams() if each.ring) <= limits.buffer
        alert_id = studio.alert(clip="pending")
        await send_every(phone, 0.5, 20, first=20)
        clip = studio.file(alert_id, "clip")
        assert 2 <= len(pictures_in(clip)) <= 12


async def test_pictures_for_clips_are_the_first_to_go_when_memory_is_short(
    relay: MemoryRelay,
) -> None:
    async with open_studio(relay, clips=True) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.2, 10)
        (stream,) = relay.hub.streams()
        assert stream.ring is not None
        assert stream.ring.bytes > 0
        alert_id = studio.alert(clip="pending")
        await trio.lowlevel.checkpoint()
        relay.hub.frame_budget.limit_per_owner = 1000
        await send_every(phone, 0.2, 1)
        assert stream.ring.bytes == 0
        assert stream.fanout.keyframe is None  # that is not enough, but it was the first
        await trio.sleep(12)
        assert studio.state(alert_id, "clip") == "failed"
        assert relay.metrics.alert_pictures["clip", PictureOutcome.NO_ROOM] == 1


async def test_the_next_owner_of_a_stream_gets_no_picture_of_the_one_before(
    relay: MemoryRelay,
) -> None:
    async with open_studio(relay, clips=True) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.2, 10)
        alert_id = studio.alert(clip="pending")
        relay.hub.change_owner("front-door", "bob")
        await trio.sleep(12)
        later = studio.alert(owner_id="bob", clip="pending")
        await trio.sleep(12)
        assert studio.state(later, "clip") == "failed"
        assert {each.alert_id for each in studio.storage.files} == {alert_id}


async def test_no_picture_is_kept_of_a_stream_that_is_not_live(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        alert_id = studio.alert(still="pending")
        await trio.sleep(0.1)
        assert studio.state(alert_id, "still") == "failed"


async def test_another_node_may_have_a_stream_that_is_not_here(relay: MemoryRelay) -> None:
    async with open_studio(relay, alone=False) as studio:
        studio.alert(still="pending")
        await trio.sleep(1)
        assert studio.table.rows == {}


async def test_an_alert_that_is_delivered_late_has_no_picture(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        await send_picture(await relay.phone(), picture(0))
        alert_id = studio.alert(still="pending", ago=300)
        await trio.sleep(0.1)
        assert studio.state(alert_id, "still") == "failed"


async def test_the_alert_says_when_it_could_not_be_written(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        studio.storage.problem = "No space left on device"
        await send_picture(await relay.phone(), picture(0))
        alert_id = studio.alert(still="pending")
        await trio.sleep(0.1)
        assert studio.state(alert_id, "still") == "failed"
        assert relay.metrics.alert_pictures["still", PictureOutcome.WRITE_FAILED] == 1


async def test_a_storage_that_hangs_delays_no_other_alert(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        phone = await relay.phone()
        await send_picture(phone, picture(0))
        studio.storage.delay = 1e6
        first = studio.alert(still="pending")
        await trio.sleep(0.5)
        studio.storage.delay = 0
        second = studio.alert(still="pending")
        await trio.sleep(0.1)
        assert (studio.state(first, "still"), studio.state(second, "still")) == (None, "kept")
        await trio.sleep(30)
        assert studio.state(first, "still") == "failed"


async def test_it_is_noted_as_kept_when_the_database_is_back(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        await send_picture(await relay.phone(), picture(0))
        studio.table.away = 3
        alert_id = studio.alert(still="pending")
        await trio.sleep(10)
        assert studio.state(alert_id, "still") == "kept"


async def test_a_user_with_many_alerts_at_once_leaves_room_for_others(relay: MemoryRelay) -> None:
    async with open_studio(relay, clips=True) as studio:
        await send_picture(await relay.phone(), picture(0))
        other = await relay.phone("back-door", token="token-of-bob")
        await send_picture(other, picture(1), streamId="back-door")
        alerts = [studio.alert(clip="pending") for _ in range(MAX_CAPTURES_OF_USER + 2)]
        await trio.sleep(0.1)
        alert_id = studio.alert("back-door", "bob", clip="pending")
        await trio.sleep(0.1)
        assert [studio.state(each, "clip") for each in alerts].count("failed") == 2
        assert studio.state(alert_id, "clip") is None
        await trio.sleep(12)
        assert studio.state(alert_id, "clip") == "kept"


async def test_a_user_who_keeps_too_much_keeps_no_more(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        await send_picture(await relay.phone(), picture(0))
        studio.usage.read({"ann": 2 << 20})
        alert_id = studio.alert(still="pending")
        await trio.sleep(0.1)
        assert studio.state(alert_id, "still") == "failed"
        assert studio.full == 1


REGISTER = {"type": "register", "streamId": "front-door"}


async def test_a_picture_a_second_is_wanted_while_nobody_watches_if_that_is_set(
    relay: MemoryRelay,
) -> None:
    async with open_studio(relay, clips=True, limits=ClipLimits(standby=True)):
        phone = await relay.login()
        assert (await phone.ask(REGISTER))["type"] == "success"
        status = await phone.receive_type("status")
        assert (status["consumers"], status["standby"]) == (0, 1)
        await relay.viewer()
        watched = await phone.receive_type("status")
        assert watched["consumers"] == 1
        assert "standby" not in watched


@pytest.mark.parametrize(("standby", "metadata"), [(False, {}), (True, {"codec": "avc1.640028"})])
async def test_nothing_is_wanted_of_other_phones_that_nobody_watches(
    relay: MemoryRelay, standby: bool, metadata: dict[str, str]
) -> None:
    async with open_studio(relay, clips=True, limits=ClipLimits(standby=standby)):
        phone = await relay.login()
        assert (await phone.ask({**REGISTER, "metadata": metadata}))["type"] == "success"
        assert "standby" not in await phone.receive_type("status")


async def test_what_became_of_many_alerts_is_noted_in_a_few_transactions(
    relay: MemoryRelay,
) -> None:
    async with open_studio(relay) as studio:
        for _ in range(600):
            studio.alert(still="pending", clip="pending")
        await trio.sleep(1)
        assert len(studio.table.rows) == 1200
        assert studio.table.transactions <= 8


async def test_a_slow_storage_has_few_clips_at_a_time_and_gets_all(relay: MemoryRelay) -> None:
    async with open_studio(relay, clips=True, limits=ClipLimits(2, 1)) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.1, 5)
        studio.storage.delay = 15
        alerts = [studio.alert(clip="pending") for _ in range(MAX_CAPTURES_OF_USER)]
        await trio.sleep(120)
        assert [studio.state(each, "clip") for each in alerts] == ["kept"] * MAX_CAPTURES_OF_USER
        assert studio.storage.most_at_once == MAX_CLIPS_WRITTEN


async def test_a_clip_that_waits_for_its_turn_is_given_up_when_memory_is_short(
    relay: MemoryRelay,
) -> None:
    async with open_studio(relay, clips=True, limits=ClipLimits(2, 1)) as studio:
        phone = await relay.phone()
        await send_every(phone, 0.1, 5)
        studio.storage.delay = 15
        alerts = [studio.alert(clip="pending") for _ in range(MAX_CLIPS_WRITTEN + 1)]
        await trio.sleep(5)
        account = relay.hub.frame_budget.account("ann")
        held = account.bytes
        relay.hub.frame_budget.limit_per_owner = held // 2
        await send_picture(phone, picture(9))
        await trio.sleep(0.1)
        assert account.bytes <= held // 2
        await trio.sleep(60)
        states = sorted(str(studio.state(each, "clip")) for each in alerts)
        assert states == ["failed"] + ["kept"] * MAX_CLIPS_WRITTEN


async def test_the_smallest_picture_counts_as_much_as_its_file_takes(relay: MemoryRelay) -> None:
    async with open_studio(relay) as studio:
        await send_picture(await relay.phone(), b"\xff\xd8\xff")
        alert_id = studio.alert(still="pending")
        await trio.sleep(0.1)
        assert len(studio.file(alert_id, "still")) == 3
        assert studio.usage.in_all == 4096
        assert (await studio.table.usage()) == {"ann": 4096}
