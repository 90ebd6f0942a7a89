"""What phones film: made up, a video file, or a recording. Floor 6."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Protocol

import msgspec
from attrs import define, field, frozen

from relay.errors import RelayError
from relay.load.content import MARK_SIZE
from relay.load.groups import Frames
from relay.load.schedule import Presence, Timeline

POOL = 4 * 1024 * 1024
"""Bytes of noise that all made-up frames are cut from."""
STEP = 4099
MOST = 12 * 1024 * 1024
PICTURES = 250
"""So many of a video are kept."""
TRACE = "relay-trace-1"


class Payloads(Protocol):
    """The frames of one phone."""

    def body(self, number: int) -> bytes:
        """What the frame of this number shows."""

    def due(
        self, timeline: Timeline, name: str, number: int, presence: Presence
    ) -> Iterator[float]:
        """When its frames are due."""


class _AtFps:
    def due(
        self, timeline: Timeline, name: str, number: int, presence: Presence
    ) -> Iterator[float]:
        return timeline.frames_due(name, number, presence)


@define(eq=False)
class MadeUp(_AtFps):
    """Noise, which nothing compresses, of sizes as the scenario wants them."""

    frames: Frames
    noise: bytes = field(repr=False)
    random: Random

    def body(self, number: int) -> bytes:
        size = max(0, self._size() - MARK_SIZE)
        start = number * STEP % (len(self.noise) - size)
        return self.noise[start : start + size]

    def _size(self) -> int:
        size = self.frames.size or 0
        if self.frames.most is not None:
            return self.random.randint(size, self.frames.most)
        if self.frames.spread is not None:
            return min(MOST, round(self.random.lognormvariate(0, self.frames.spread) * size))
        return size


@define(eq=False)
class Pictures(_AtFps):
    """The pictures of a video, over and over."""

    pictures: list[bytes] = field(repr=False)

    def body(self, number: int) -> bytes:
        return self.pictures[number % len(self.pictures)]


class TraceFrame(msgspec.Struct, frozen=True):
    """A frame of a recording, as a line of JSON."""

    at: float
    """Seconds after the first."""
    size: int
    data: str | None = None
    """Base64."""


@frozen
class Trace:
    frames: tuple[TraceFrame, ...]

    @property
    def length(self) -> float:
        """Seconds until it begins anew."""
        last = self.frames[-1].at
        return last + (last / (len(self.frames) - 1) if len(self.frames) > 1 else 1.0)


@define(eq=False)
class Replay:
    """A recording, over and over, at its own pace."""

    trace: Trace
    noise: bytes = field(repr=False)

    def body(self, number: int) -> bytes:
        frame = self.trace.frames[number % len(self.trace.frames)]
        if frame.data is not None:
            return base64.b64decode(frame.data)
        size = max(0, frame.size - MARK_SIZE)
        start = number * STEP % (len(self.noise) - size)
        return self.noise[start : start + size]

    def due(
        self,
        timeline: Timeline,  # noqa: ARG002 (it has a pace of its own)
        name: str,  # noqa: ARG002 (so it has)
        number: int,  # noqa: ARG002 (so it has)
        presence: Presence,
    ) -> Iterator[float]:
        start = presence.join
        while self.trace.length > 0:
            for frame in self.trace.frames:
                if start + frame.at >= presence.leave:
                    return
                yield start + frame.at
            start += self.trace.length


@define(eq=False)
class Library:
    """Makes what phones film; what is the same for all is read once."""

    seed: int
    _noise: bytes | None = field(default=None, repr=False)
    _pictures: dict[Path, list[bytes]] = field(factory=dict, repr=False)
    _traces: dict[Path, Trace] = field(factory=dict, repr=False)

    def payloads(self, frames: Frames, folder: Path, name: str, number: int) -> Payloads:
        """`RelayError` when a file cannot be read. Reads and decodes: call it in a thread."""
        if frames.video is not None:
            return Pictures(self._video(folder / Path(frames.video).expanduser()))
        if frames.recording is not None:
            path = folder / Path(frames.recording).expanduser()
            if path not in self._traces:
                self._traces[path] = read_trace(path)
            return Replay(self._traces[path], self._the_noise())
        random = Random(f"{self.seed} {name} {number} sizes")  # noqa: S311 (no secret)
        return MadeUp(frames, self._the_noise(frames.most or frames.size or 0), random)

    def _the_noise(self, size: int = 0) -> bytes:
        wanted = max(POOL, 2 * min(size, MOST))
        if self._noise is None or len(self._noise) < wanted:
            self._noise = Random(self.seed).randbytes(max(wanted, 2 * MOST))  # noqa: S311 (no secret)
        return self._noise

    def _video(self, path: Path) -> list[bytes]:
        found = self._pictures.get(path)
        if found is None:
            from relay.demo.video import play  # noqa: PLC0415 (needs an extra)

            found = [picture.jpeg for picture in islice(play(path), PICTURES)]
            self._pictures[path] = found
        return found


class BadTrace(RelayError):
    """A recording that cannot be replayed."""


def read_trace(path: Path) -> Trace:
    """Read a recording; `BadTrace`."""
    decoder = msgspec.json.Decoder(TraceFrame)
    try:
        with path.open("rb") as lines:
            if next(lines, b"").strip() != msgspec.json.encode({"format": TRACE}):
                raise BadTrace(f"{path} was not made by `relay load record`")
            frames = tuple(decoder.decode(line) for line in lines)
            for frame in frames:
                if not (0 <= frame.size <= MOST and frame.at >= 0):
                    raise BadTrace(f"{path}: a frame of {frame.size} bytes at {frame.at} s")
                if frame.data is not None:
                    base64.b64decode(frame.data, validate=True)
    except OSError as error:
        raise BadTrace(f"cannot read {path}: {error.strerror}") from None
    except ValueError as problem:
        raise BadTrace(f"{path}: {problem}") from None
    if not frames:
        raise BadTrace(f"there is no frame in {path}")
    return Trace(tuple(sorted(frames, key=lambda frame: frame.at)))
