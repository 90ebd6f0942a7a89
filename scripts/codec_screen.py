"""What a viewer of a video codec saw of the film of numbered_film.py; for scripts/figures.py.

The frames that came to a viewer are decoded in order, as its own decoder would do it: what lacks a
frame that it builds on is seen as it would be seen. Needs av, which is relay[ingest].
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
from attrs import define, field, frozen
from film import Luma, Scene, look_at, ssim, stretched
from layer_report import Codec, Seen
from numbered_film import CameraClock, picture_below, read_number

DECODERS = {"H.264": "h264", "VP9": "vp9", "VP8": "vp8"}


@frozen
class Arrival:
    """A frame that came to a viewer."""

    at: float
    """By the clock of the machine, in seconds, as all times here."""
    taken_at: float
    """When the page took the picture."""
    layer: str
    size: int
    """Bytes of the message."""
    data: bytes


@define(eq=False)
class Decoder:
    """Decodes the frames of one viewer, in order."""

    codec: Codec
    _context: av.VideoCodecContext = field(init=False)

    def __attrs_post_init__(self) -> None:
        context = av.CodecContext.create(DECODERS[self.codec], "r")
        assert isinstance(context, av.VideoCodecContext)
        context.thread_type = "NONE"  # each picture comes with its frame
        context.flags |= av.codec.context.Flags.low_delay
        self._context = context

    def decode(self, data: bytes) -> Luma | None:
        """The brightness of the picture that is on the screen from now on; None if it is the one
        before, since this frame cannot be decoded."""
        try:
            pictures = self._context.decode(av.Packet(data))
        except av.FFmpegError:
            return None
        return _luma(pictures[-1]) if pictures else None


def _luma(picture: av.VideoFrame) -> Luma:
    plane = picture.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width].copy()


def read_clock(codec: Codec, arrivals: Sequence[Arrival]) -> CameraClock:
    """When the camera showed which picture, by what came over a perfect link; SystemExit."""
    clock, decoder = CameraClock(), Decoder(codec)
    for arrival in arrivals:
        picture = decoder.decode(arrival.data)
        number = None if picture is None else read_number(picture)
        if number is not None:
            clock.add(number, arrival.taken_at)
    if not clock.is_known:
        raise SystemExit(f"of {len(arrivals)} frames from the page none shows a number")
    return clock


@define(eq=False)
class Screen:
    """What one viewer saw, and how like it was to what the camera showed at each instant."""

    codec: Codec
    scene: Scene
    clock: CameraClock
    instants: Sequence[int]
    """Numbers of the pictures of the camera to compare with, counted on."""
    seen: list[Seen] = field(factory=list)
    unreadable: int = 0
    """Frames that could not be decoded, or whose pictures are broken."""
    _sum: float = 0.0

    def watch(self, arrivals: Sequence[Arrival]) -> float:
        """Look at all that came; returns the mean likeness."""
        decoder = Decoder(self.codec)
        instants = iter(self.instants)
        instant = next(instants, None)
        picture: Luma | None = None
        for arrival in arrivals:
            while instant is not None and self.clock.shown_at(instant) < arrival.at:
                self._compare(instant, picture)
                instant = next(instants, None)
            decoded = decoder.decode(arrival.data)
            self._note(arrival, decoded)
            picture = picture if decoded is None else decoded
        while instant is not None:
            self._compare(instant, picture)
            instant = next(instants, None)
        return self._sum / max(1, len(self.instants))

    def _note(self, arrival: Arrival, picture: Luma | None) -> None:
        read = None if picture is None else read_number(picture)
        if read is None:
            self.unreadable += 1
            return
        number = self.clock.counted(read, arrival.taken_at)
        age = arrival.at - self.clock.shown_at(number)
        self.seen.append(Seen(arrival.at, number, age, arrival.layer, arrival.size))

    def _compare(self, instant: int, picture: Luma | None) -> None:
        if picture is not None:
            original = look_at(picture_below(self.scene.luma(instant)))
            self._sum += ssim(original, look_at(picture_below(stretched(picture))))
