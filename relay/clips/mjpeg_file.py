"""A clip as a file: the body of a `multipart/x-mixed-replace` response.

FFmpeg, VLC and browsers read it, and each part says when its picture came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from relay.clips.capture import PendingClip
from relay.hub.frames.jpeg_parts import JpegParts

FIRST_LINE_BYTES = 40
_FIRST_LINE = re.compile(rb"--(relay-[0-9a-f]{24})\r\n")


async def clip_file(clip: PendingClip) -> list[bytes]:
    """The pieces of the file; empty if there is no picture. What is encoded is let go of."""
    parts = JpegParts()
    pieces = [parts.first_boundary]
    for picture in clip.take_all():
        part = parts.enclose(await picture.content(), picture.seq, picture.received_at)
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


def size_of(pieces: Sequence[bytes]) -> int:
    return sum(map(len, pieces))
