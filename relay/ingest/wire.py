"""What the process that reads a source and the one that sends its pictures tell each other.

The first is told a `ReadRequest`, a line of JSON, and then a `TakeRequest` for each picture that is
to be taken. It answers with messages: `HEADER` (a `MessageKind`, flags, bytes that follow), then
those bytes. Neither imports PyAV for it.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Literal

from msgspec import Struct

HEADER = struct.Struct("<BBI")
KEYFRAME, DISCARDABLE = 1, 2
"""Flags of a frame."""
MAX_SOURCE_FRAME = 4 << 20
"""Larger pictures of a camera are left out."""

SourceCodec = Literal["mjpeg", "h264", "other"]


class MessageKind(IntEnum):
    """What a message of the reader says."""

    OPENED = 0
    """A `SourceInfo` in JSON."""
    PICTURE = 1
    """A JPEG that was asked for."""
    FRAME = 2
    """A frame as it came."""
    ENDED = 3
    """The source has no more."""
    FAILED = 4
    """Why it cannot be read, in UTF-8."""


class ReadRequest(Struct):
    """What to read, and how."""

    address: str
    demuxer: str
    options: dict[str, str]
    copies: bool
    """Whether frames are handed on as they come, instead of pictures that are asked for."""
    is_file: bool = False
    """Whether it may end, and is to be read no faster than its pictures are to be shown."""
    loops: bool = False


class WantedPicture(Struct):
    """A JPEG to be made of the next picture."""

    width: int
    """Pixels; never more than the source has."""
    quality: float
    """From 0 to 1."""
    may_copy: bool = False
    """Whether the JPEG of the source will do, if it is no wider."""


class TakeRequest(Struct):
    """The next picture in these sizes."""

    pictures: list[WantedPicture]


class SourceInfo(Struct):
    """What is known of a source that was opened."""

    codec: SourceCodec
    width: int
    height: int
    codec_string: str | None = None
    """As WebCodecs names it; of H.264 only."""
