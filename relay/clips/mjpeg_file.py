"""A clip as a file: the body of a `multipart/x-mixed-replace` response.

FFmpeg, VLC and browsers read it, and each part says when its picture came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from relay.clips.capture import PendingClip
from relay.concurrency.time_slice import TimeSlice
from relay.hub.frames.jpeg_parts import JpegParts

FIRST_LINE_BYTES = 40
MAX_PART_HEAD_BYTES = 400
_PART = re.compile(
    rb"Content-Length: ([0-9]{1,10})\r\nX-Timestamp: ([0-9]{1,12}\.[0-9]{3})\r\n[^\r\n]*\r\n\r\n"
)
_FIRST_LINE = re.compile(rb"--(relay-[0-9a-f]{24})\r\n")


async def clip_file(clip: PendingClip) -> list[bytes]:
    """The pieces of the file; empty if there is no picture. What is encoded is let go of."""
    parts, time_slice = JpegParts(), TimeSlice()
    pieces = [parts.first_boundary]
    for picture in clip.take_all():
        content = await picture.content(time_slice)
        part = parts.enclose(content, picture.seq, picture.received_at)
        await time_slice.pause_if_over()
        if part is not None:
            pieces.append(part)
    if len(pieces) == 1:
        return []
    # The last boundary (RFC 2046, section 5.1.1), without a line end: FFmpeg would expect a part.
    pieces[-1] = pieces[-1][:-2] + b"--"
    return pieces


def content_type_of(beginning: bytes) -> str | None:
    """The content type of a file, by its first `FIRST_LINE_BYTES`; None if it is no clip."""
    found = _FIRST_LINE.match(beginning)
    return None if found is None else JpegParts(found[1].decode()).content_type


def pictures_in(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The pictures of a file, each with the time when it came, in ms since the Unix epoch."""
    at = 0
    while found := _PART.search(content, at, at + MAX_PART_HEAD_BYTES):
        at = found.end() + int(found[1])
        yield round(float(found[2]) * 1000), content[found.end() : at]


def size_of(pieces: Sequence[bytes]) -> int:
    return sum(map(len, pieces))
