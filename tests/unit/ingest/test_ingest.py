"""When a source is read, and what is said about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from attrs import define, field

from relay.client import PicturePlan, PlannedPicture
from relay.ingest.ingest import LINGER, CodecChanged, Ingest, IngestOptions
from relay.ingest.reader_process import CopiedFrame, SourceEnded, SourceFailed
from relay.ingest.source import parse_source
from relay.ingest.wire import ReadRequest, SourceInfo, WantedPicture

pytestmark = pytest.mark.mock_clock

CAMERA = parse_source("rtsp://user:s3cret@cam/main")


@define(eq=False)
class MemoryStream:
    """A stream whose viewers the test decides."""

    registered: bool = True
    consumers: int = 0
    full: bool = False
    sent: list[tuple[bytes, bool | None, str | None]] = field(factory=list)
    times: list[float] = field(factory=list)
    width: int | None = None
    watched: trio.Event = field(factory=trio.Event)

    @property
    def is_wanted(self) -> bool:
        return self.consumers > 0

    async def wanted(self) -> None:
        if not self.consumers:
            await self.watched.wait()

    def next(self, *, fps: float, width: int | None = None) -> PicturePlan | None:
        self.width = width
        return None if self.full else PicturePlan((PlannedPicture("full", 640, 0.8),), 0)

    def send_frame(
        self,
        data: bytes,
        *,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        discardable: bool | None = None,
        layer: str | None = None,
    ) -> bool:
        self.sent.append((data, keyframe, layer))
        self.times.append(trio.current_time())
        return True


@define(eq=False)
class MemoryCamera:
    """A source that the test breaks."""

    problem: Exception | None = None
    frames: list[CopiedFrame] = field(factory=list)
    codec: str | None = None
    patience: float = 0.1
    """Seconds until it is open, or fails."""
    opened: list[float] = field(factory=list)
    reading: int = 0
    wanted: list[WantedPicture] = field(factory=list)

    @asynccontextmanager
    async def open_reader(self) -> AsyncIterator[MemoryCamera]:
        self.reading += 1
        try:
            yield self
        finally:
            self.reading -= 1

    async def open(self, request: ReadRequest) -> SourceInfo:
        self.opened.append(trio.current_time())
        await trio.sleep(self.patience)
        if not isinstance(self.problem, SourceEnded):  # it has begun before
            self._fail()
        return SourceInfo("h264" if request.copies else "mjpeg", 640, 480, self.codec)

    async def take(self, pictures: list[WantedPicture]) -> list[bytes]:
        await trio.sleep(0.01)
        self._fail()
        self.wanted += pictures
        return [b"picture"] * len(pictures)

    async def next_frame(self) -> CopiedFrame:
        await trio.sleep(0.04)
        self._fail()
        if not self.frames:
            raise SourceEnded("it has ended")
        return self.frames.pop(0)

    def _fail(self) -> None:
        if self.problem is not None:
            raise self.problem


@define(eq=False)
class Scene:
    """An ingest that runs."""

    stream: MemoryStream
    camera: MemoryCamera
    said: list[str]
    ingest: Ingest

    def watch(self, consumers: int) -> None:
        self.stream.consumers = consumers
        self.stream.watched.set()
        self.stream.watched = trio.Event()
        self.ingest._note_change()


@asynccontextmanager
async def playing(options: IngestOptions, camera: MemoryCamera) -> AsyncIterator[Scene]:
    said: list[str] = []
    ingest = Ingest(options, said.append, camera.open_reader)
    stream = MemoryStream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingest.publish, stream)
        yield Scene(stream, camera, said, ingest)
        nursery.cancel_scope.cancel()


async def test_a_source_is_read_only_while_somebody_watches() -> None:
    async with playing(IngestOptions(CAMERA, "cam"), MemoryCamera()) as scene:
        await trio.sleep(60)
        assert scene.camera.opened == []
        scene.watch(1)
        await trio.sleep(2)
        assert scene.camera.reading == 1
        assert scene.stream.sent
        scene.watch(0)
        await trio.sleep(LINGER + 0.5)
        assert scene.camera.reading == 0
        scene.watch(1)
        await trio.sleep(1)
        assert (scene.camera.reading, len(scene.camera.opened)) == (1, 2)


async def test_a_viewer_who_comes_back_soon_finds_the_source_open() -> None:
    async with playing(IngestOptions(CAMERA, "cam"), MemoryCamera()) as scene:
        scene.watch(1)
        await trio.sleep(1)
        scene.watch(0)
        await trio.sleep(LINGER - 1)
        scene.watch(1)
        await trio.sleep(60)
        assert len(scene.camera.opened) == 1


async def test_no_more_pictures_are_taken_than_are_wanted_a_second() -> None:
    async with playing(IngestOptions(CAMERA, "cam", fps=5), MemoryCamera()) as scene:
        scene.watch(1)
        await trio.sleep(10)
    assert 45 <= len(scene.stream.sent) <= 51


async def test_no_picture_is_taken_while_the_link_is_full() -> None:
    async with playing(IngestOptions(CAMERA, "cam"), MemoryCamera()) as scene:
        scene.stream.full = True
        scene.watch(1)
        await trio.sleep(5)
        assert not scene.camera.wanted
        scene.stream.full = False
        await trio.sleep(1)
        assert scene.stream.sent[0] == (b"picture", None, "full")


@pytest.mark.parametrize(
    ("options", "wanted", "width"),
    [
        ({}, WantedPicture(640, 0.8, may_copy=True), 640),
        ({"quality": 0.5}, WantedPicture(640, 0.5), 640),
        ({"max_width": 320}, WantedPicture(640, 0.8, may_copy=True), 320),
    ],
)
async def test_the_best_quality_and_the_largest_width_are_kept(
    options: dict[str, float], wanted: WantedPicture, width: int
) -> None:
    chosen = IngestOptions(CAMERA, "cam", **options)  # type: ignore[arg-type]
    async with playing(chosen, MemoryCamera()) as scene:
        scene.watch(1)
        await trio.sleep(1)
    assert (scene.camera.wanted[0], scene.stream.width) == (wanted, width)


async def test_a_camera_that_fails_is_tried_again_after_longer_and_longer() -> None:
    camera = MemoryCamera(problem=SourceFailed("Connection refused"))
    async with playing(IngestOptions(CAMERA, "cam"), camera) as scene:
        scene.watch(1)
        await trio.sleep(120)
        opened = camera.opened
        pauses = [round(b - a) for a, b in pairwise(opened)]
        assert pauses == [1, 2, 4, 8, 16, 30, 30]
        assert scene.said[1] == "cannot read rtsp://cam/main: Connection refused; again in 1 s"
        assert sum("cannot read" in each for each in scene.said) == 5
        camera.problem = None
        await trio.sleep(40)
        assert scene.said[-1] == "rtsp://cam/main is back"
        assert scene.stream.sent
        assert not any("s3cret" in each for each in scene.said)


async def test_a_camera_that_takes_long_to_fail_has_not_worked() -> None:
    camera = MemoryCamera(problem=SourceFailed("it sends nothing"), patience=12.0)
    async with playing(IngestOptions(CAMERA, "cam"), camera) as scene:
        scene.watch(1)
        await trio.sleep(120)
    pauses = [round(b - a) for a, b in pairwise(camera.opened)]
    assert pauses == [13, 14, 16, 20, 28]


async def test_a_camera_that_worked_for_a_while_is_tried_again_soon() -> None:
    camera = MemoryCamera(problem=SourceFailed("away"))
    async with playing(IngestOptions(CAMERA, "cam"), camera) as scene:
        scene.watch(1)
        await trio.sleep(60)
        camera.problem = None
        await trio.sleep(60)
        camera.problem, before = SourceFailed("gone"), trio.current_time()
        await trio.sleep(5)
        assert camera.opened[-1] - before > 1
        assert camera.opened[-2] - before < 1.5


async def test_frames_are_passed_on_as_they_come() -> None:
    frames = [CopiedFrame(b"I", True, False), CopiedFrame(b"P", False, False)]
    camera = MemoryCamera(frames=[*frames])
    async with playing(IngestOptions(CAMERA, "cam", "h264"), camera) as scene:
        scene.watch(1)
        await trio.sleep(1)
    assert scene.stream.sent == [(b"I", True, None), (b"P", False, None)]


@pytest.mark.parametrize("problem", [SourceFailed("broken"), SourceEnded("it has ended")])
async def test_a_file_is_not_tried_again(tmp_path: Path, problem: SourceFailed) -> None:
    (tmp_path / "film.mp4").touch()
    options = IngestOptions(parse_source(f"file:{tmp_path}/film.mp4"), "cam")
    camera, stream, said = MemoryCamera(problem=problem), MemoryStream(consumers=1), list[str]()
    with trio.fail_after(10):
        ingest = Ingest(options, said.append, camera.open_reader)
        if isinstance(problem, SourceEnded):
            await ingest.publish(stream)
            assert said[-1] == "film.mp4 has ended"
        else:
            with pytest.RaisesGroup(
                pytest.RaisesExc(SourceFailed, match=r"^cannot read film.mp4: broken$")
            ):
                await ingest.publish(stream)
    assert len(camera.opened) == 1


async def test_a_camera_with_another_codec_is_published_anew() -> None:
    camera, stream = MemoryCamera(codec="avc1.640028"), MemoryStream(consumers=1)
    ingest = Ingest(IngestOptions(CAMERA, "cam", "h264"), list[str]().append, camera.open_reader)
    with trio.fail_after(10), pytest.raises(CodecChanged):
        await ingest.publish(stream)
    assert stream.sent == []
    with trio.fail_after(10):
        camera.frames = [CopiedFrame(b"I", True, False)]
        with trio.move_on_after(1):
            await ingest.publish(stream)
    assert stream.sent[0] == (b"I", True, None)
