"""Clips as MP4, by the real worker process."""

from __future__ import annotations

import io
import sys
from itertools import islice

import av
import pytest
import trio

from relay.clips import mp4
from relay.clips.mp4 import Mp4Maker, NoMp4, TooBusy, fitting
from relay.demo.video import default_video, play
from relay.hub.frames.jpeg_parts import JpegParts
from tests.unit.clips.studio import MemoryFile


@pytest.fixture(scope="module")
def film() -> list[bytes]:
    return [each.jpeg for each in islice(play(default_video()), 12)]


@pytest.fixture
def maker() -> Mp4Maker:
    return Mp4Maker.find()


def clip_of(pictures: list[bytes], step: int = 100) -> MemoryFile:
    """A clip with a picture each so many milliseconds."""
    parts = JpegParts()
    found = [
        parts.enclose(each, number, 1_700_000_000_000 + number * step)
        for number, each in enumerate(pictures)
    ]
    return MemoryFile(b"".join([parts.first_boundary, *(each for each in found if each)]))


async def test_a_clip_is_a_video_with_the_times_of_its_pictures(
    maker: Mp4Maker, film: list[bytes]
) -> None:
    made = await maker.make(clip_of(film, 250), "ann")
    with av.open(io.BytesIO(made.content), "r", format="mp4") as container:
        video = container.streams.video[0]
        assert video.codec_context.name == "h264"
        times = [float(frame.time or 0) for frame in container.decode(video)]
    assert times == pytest.approx([0.25 * number for number in range(len(film))], abs=0.01)


async def test_a_clip_that_is_made_again_is_the_same_file(
    maker: Mp4Maker, film: list[bytes]
) -> None:
    first, again, other = [await maker.make(clip_of(film, step), "ann") for step in (50, 50, 60)]
    assert first == again
    assert first.etag != other.etag


async def test_pictures_that_cannot_be_decoded_are_left_out(
    maker: Mp4Maker, film: list[bytes]
) -> None:
    broken = film[1][:400]
    made = await maker.make(clip_of([film[0], broken, b"\xff\xd8\xff no picture", film[2]]), "ann")
    with av.open(io.BytesIO(made.content), "r", format="mp4") as container:
        assert 2 <= len(list(container.decode(video=0))) <= 3


@pytest.mark.parametrize("content", [b"", b"--relay-0\r\n", b"Content-Length: 99999999\r\n" * 99])
async def test_what_is_no_clip_makes_no_video(maker: Mp4Maker, content: bytes) -> None:
    with pytest.raises(NoMp4, match="no usual JPEG"):
        await maker.make(MemoryFile(content), "ann")


async def test_a_worker_that_hangs_is_killed_and_one_that_lies_is_not_believed(
    film: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp4, "MP4_TIMEOUT", 0.5)
    hanging = Mp4Maker([sys.executable, "-c", "import time; time.sleep(60)"])
    with trio.fail_after(10), pytest.raises(TooBusy, match="not made within"):
        await hanging.make(clip_of(film), "ann")
    monkeypatch.setattr(mp4, "MP4_TIMEOUT", 20.0)
    for script in ("print('<html>')", "import os; os.abort()", "pass"):
        with pytest.raises(NoMp4, match="cannot be made"):
            await Mp4Maker([sys.executable, "-c", script]).make(clip_of(film), "ann")


async def test_nobody_has_two_made_at_a_time(film: list[bytes]) -> None:
    hanging = Mp4Maker([sys.executable, "-c", "import time; time.sleep(60)"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hanging.make, clip_of(film), "ann")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooBusy):
            await hanging.make(clip_of(film), "ann")
        nursery.cancel_scope.cancel()


async def test_without_pyav_there_is_none(film: list[bytes]) -> None:
    with pytest.raises(NoMp4, match=r"relay\[mp4\]"):
        await Mp4Maker(None).make(clip_of(film), "ann")


async def test_the_worker_can_open_nothing(film: list[bytes], maker: Mp4Maker) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from relay.renditions.worker import limit_resources\n"
        "limit_resources(1 << 30, 20)\n"
        "try: open('/etc/passwd')\n"
        "except OSError: sys.stdout.buffer.write(b'....ftyp')"
    )
    assert maker._command is not None
    probe = Mp4Maker([sys.executable, "-I", "-c", script, *maker._command[3:]])
    assert (await probe.make(clip_of(film), "ann")).content == b"....ftyp"


def test_a_video_has_even_sides_that_are_not_too_long() -> None:
    assert fitting((641, 361)) == (640, 360)
    assert fitting((4096, 1024)) == (1920, 480)
    assert fitting((1, 3)) == (2, 4)
