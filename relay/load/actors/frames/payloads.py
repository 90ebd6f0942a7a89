"""The content of a phone's frames: random bytes, a video file, or a recording."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Protocol

import msgspec
from attrs import define, field, frozen

from relay.errors import RelayError
from relay.load.actors.sent_files import NotSent, SentFiles
from relay.load.measures.reconciliation.integrity import MARK_SIZE
from relay.load.scenario.groups import FrameSource, PhoneGroup, PhoneLayer
from relay.load.scenario.schedule import Presence, Timeline
from relay.load.units import MAX_PAYLOAD_BYTES

NOISE_BYTES = 4 * 1024 * 1024
"""Random bytes that all synthetic frames are cut from."""
NOISE_STRIDE = 4099
"""Bytes from the start of one synthetic frame to the start of the next."""
MAX_VIDEO_FRAMES = 250
"""Frames of a video that are kept in memory."""
TRACE_FORMAT = "relay-trace-1"


class Payloads(Protocol):
    """The frames of one phone."""

    def body(self, number: int, layer: int, *, is_delta: bool) -> bytes:
        """The content of a frame, without its mark; `layer` is 0 where there are none."""

    def due(
        self, timeline: Timeline, name: str, number: int, presence: Presence
    ) -> Iterator[float]:
        """When each frame is due, in seconds of the run."""


class _AtFps:
    def due(
        self, timeline: Timeline, name: str, number: int, presence: Presence
    ) -> Iterator[float]:
        return timeline.frames_due(name, number, presence)


@define(eq=False)
class SyntheticFrames(_AtFps):
    """Incompressible frames in the sizes that the scenario asks for."""

    frames: FrameSource
    noise: bytes = field(repr=False)
    random: Random

    def body(self, number: int, layer: int, *, is_delta: bool) -> bytes:  # noqa: ARG002 (one size)
        return cut_noise(self.noise, self._size(is_delta=is_delta), number)

    def _size(self, *, is_delta: bool) -> int:
        size = (self.frames.delta_size if is_delta else self.frames.size) or 0
        if self.frames.most is not None:
            return self.random.randint(size, self.frames.most)
        if self.frames.spread is not None:
            return min(
                MAX_PAYLOAD_BYTES, round(self.random.lognormvariate(0, self.frames.spread) * size)
            )
        return size


@define(eq=False)
class LayeredFrames(_AtFps):
    """Incompressible frames, as large as their layer."""

    layers: Sequence[PhoneLayer]
    noise: bytes = field(repr=False)

    def body(self, number: int, layer: int, *, is_delta: bool) -> bytes:
        of = self.layers[layer]
        size = (of.delta_size if is_delta else None) or of.size
        return cut_noise(self.noise, size, number * len(self.layers) + layer)


@define(eq=False)
class VideoFrames(_AtFps):
    """The pictures of a video, in a loop."""

    pictures: list[bytes] = field(repr=False)

    def body(self, number: int, layer: int, *, is_delta: bool) -> bytes:  # noqa: ARG002 (one kind)
        return self.pictures[number % len(self.pictures)]


class TraceFrame(msgspec.Struct, frozen=True):
    """A frame of a recording; one line of JSON."""

    at: float
    """Seconds after the first frame."""
    size: int
    data: str | None = None
    """Base64."""


@frozen
class Trace:
    frames: tuple[TraceFrame, ...]

    @property
    def length(self) -> float:
        """Seconds after which it is repeated."""
        last = self.frames[-1].at
        return last + (last / (len(self.frames) - 1) if len(self.frames) > 1 else 1.0)


@define(eq=False)
class RecordedFrames:
    """A recording, in a loop, at its original pace."""

    trace: Trace
    noise: bytes = field(repr=False)

    def body(self, number: int, layer: int, *, is_delta: bool) -> bytes:  # noqa: ARG002 (one kind)
        frame = self.trace.frames[number % len(self.trace.frames)]
        if frame.data is not None:
            return base64.b64decode(frame.data)
        return cut_noise(self.noise, frame.size, number)

    def due(
        self,
        timeline: Timeline,  # noqa: ARG002 (a recording has its own pace)
        name: str,  # noqa: ARG002 (likewise)
        number: int,  # noqa: ARG002 (likewise)
        presence: Presence,
    ) -> Iterator[float]:
        start = presence.join
        while self.trace.length > 0:
            for frame in self.trace.frames:
                if start + frame.at >= presence.leave:
                    return
                yield start + frame.at
            start += self.trace.length


def cut_noise(noise: bytes, size: int, number: int) -> bytes:
    """Random content for a frame of `size` bytes, including its mark."""
    length = max(0, size - MARK_SIZE)
    start = number * NOISE_STRIDE % (len(noise) - length)
    return noise[start : start + length]


@define(eq=False)
class PayloadFactory:
    """Makes payloads for phones; files are read only once."""

    seed: int
    files: SentFiles | None = field(default=None, repr=False)
    """The content of all files; None to read them."""
    _noise: bytes | None = field(default=None, repr=False)
    _pictures: dict[str, list[bytes]] = field(factory=dict, repr=False)
    _traces: dict[str, Trace] = field(factory=dict, repr=False)

    def payloads(self, phones: PhoneGroup, folder: Path, name: str, number: int) -> Payloads:
        """Read and decode, which blocks: call it in a thread. `RelayError` if a file is bad."""
        frames = phones.frames
        if phones.layers:
            noise = self._enough_noise(max(layer.size for layer in phones.layers))
            return LayeredFrames(phones.layers, noise)
        if frames.video is not None:
            return VideoFrames(self._video(folder, frames.video))
        if frames.recording is not None:
            return RecordedFrames(self._trace(folder, frames.recording), self._enough_noise())
        random = Random(f"{self.seed} {name} {number} sizes")  # noqa: S311 (no secret)
        return SyntheticFrames(frames, self._enough_noise(frames.most or frames.size or 0), random)

    def _enough_noise(self, size: int = 0) -> bytes:
        wanted = max(NOISE_BYTES, 2 * min(size, MAX_PAYLOAD_BYTES))
        if self._noise is None or len(self._noise) < wanted:
            self._noise = Random(self.seed).randbytes(max(wanted, 2 * MAX_PAYLOAD_BYTES))  # noqa: S311 (no secret)
        return self._noise

    def _video(self, folder: Path, name: str) -> list[bytes]:
        found = self._pictures.get(name)
        if found is None:
            if self.files is None:
                found = read_video(folder / Path(name).expanduser())
            elif not (found := self.files.videos.get(name)):
                raise NotSent(f"the video {name} was not sent")
            self._pictures[name] = found
        return found

    def _trace(self, folder: Path, name: str) -> Trace:
        found = self._traces.get(name)
        if found is None:
            if self.files is None:
                found = read_trace(folder / Path(name).expanduser())
            elif (sent := self.files.recordings.get(name)) is not None:
                found = parse_trace(sent.splitlines(keepends=True), name)
            else:
                raise NotSent(f"the recording {name} was not sent")
            self._traces[name] = found
        return found


class BadTrace(RelayError):
    """A recording that cannot be replayed."""


def read_video(path: Path) -> list[bytes]:
    """The first pictures of a video, as JPEG; `RelayError`."""
    from relay.demo.video import play  # noqa: PLC0415 (needs an extra)

    return [picture.jpeg for picture in islice(play(path), MAX_VIDEO_FRAMES)]


def read_trace(path: Path) -> Trace:
    """Read a recording; `BadTrace` if it is none."""
    try:
        with path.open("rb") as lines:
            return parse_trace(lines, str(path))
    except OSError as error:
        raise BadTrace(f"cannot read {path}: {error.strerror}") from None


def parse_trace(lines: Iterable[bytes], name: str) -> Trace:
    """Read the lines of a recording; `BadTrace` if it is none."""
    decoder = msgspec.json.Decoder(TraceFrame)
    rest = iter(lines)
    try:
        if next(rest, b"").strip() != msgspec.json.encode({"format": TRACE_FORMAT}):
            raise BadTrace(f"{name} was not made by `relay load record`")
        frames = tuple(decoder.decode(line) for line in rest)
        for frame in frames:
            if not (0 <= frame.size <= MAX_PAYLOAD_BYTES and frame.at >= 0):
                raise BadTrace(f"{name}: a frame of {frame.size} bytes at {frame.at} s")
            if frame.data is not None:
                base64.b64decode(frame.data, validate=True)
    except ValueError as problem:
        raise BadTrace(f"{name}: {problem}") from None
    if not frames:
        raise BadTrace(f"there is no frame in {name}")
    return Trace(tuple(sorted(frames, key=lambda frame: frame.at)))
