"""Reads the header of a JPEG picture (ITU T.81, annex B) without decoding the picture.

All pictures come from strangers: whatever the bytes are, these functions do a bounded amount of
work, return what they found or nothing, and raise nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Size: TypeAlias = tuple[int, int]
"""Width and height, in pixels."""

MAX_SIDE = 4096
"""Pixels of the width or height of a picture that is decoded."""
MAX_PIXELS = 16_000_000
MAX_EXAMINED_BYTES = 64 << 10
"""Bytes from the beginning that are examined: two segments of the largest size do not fit."""
MAX_SEGMENTS = 100

_START = b"\xff\xd8"
_FILL = re.compile(rb"\xff+")
"""Fill bytes and the first byte of a marker. A loop in Python over 64 KiB of them takes 10 ms."""
_FRAME_HEADERS = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive, with Huffman coding."""
_OTHER_FRAME_HEADERS = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Lossless, hierarchical and arithmetic ones; 0xC4, 0xC8 and 0xCC are no frame headers."""
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_EXIF = b"Exif\0\0"
_BYTE_ORDERS: Mapping[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_ORIENTATION_TAG = 0x0112


def read_size(data: Buffer) -> Size | None:
    """The size of a picture that the usual decoders read; None for anything else.

    That is: Huffman-coded baseline, extended or progressive, 8 bits a sample, grey or three
    components, and a height in the frame header.
    """
    view = memoryview(data)
    for marker, body in _segments(view):
        if marker in _FRAME_HEADERS:
            return _frame_size(body)
    return None


def read_renderable_size(data: Buffer) -> Size | None:
    """The same for pictures that are small enough to be decoded; None for larger ones, too."""
    size = read_size(data)
    if size is None or max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        return None
    return size


def read_orientation(data: Buffer) -> int:
    """How the picture is to be turned to be shown, from 1 (not at all) to 8: Exif's orientation."""
    for marker, body in _segments(memoryview(data)):
        if marker == _APP1 and body[: len(_EXIF)] == _EXIF:
            return _exif_orientation(body[len(_EXIF) :])
    return 1


def with_orientation(picture: bytes, orientation: int) -> bytes:
    """The picture with that orientation noted; itself if it is 1."""
    if orientation == 1:
        return picture
    entry = b"".join(
        number.to_bytes(size, "big")
        for number, size in ((_ORIENTATION_TAG, 2), (3, 2), (1, 4), (orientation, 2), (0, 2))
    )
    directory = b"\0\x01" + entry + bytes(4)
    body = _EXIF + b"MM\0*" + (8).to_bytes(4, "big") + directory
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    return picture[:2] + segment + picture[2:]


def _segments(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The marker and the content of each segment up to the first scan, while they are well-formed.

    It ends with a frame header: of a second one, decoders make different things.
    """
    if view[:2] != _START:
        return
    view = view[:MAX_EXAMINED_BYTES]
    at = 2
    for _ in range(MAX_SEGMENTS):
        filled = _FILL.match(view, at)
        if filled is None:
            return
        at = filled.end() - 1
        if at + 4 > len(view):
            return
        marker = view[at + 1]
        end = at + 2 + int.from_bytes(view[at + 2 : at + 4], "big")
        if not _has_length(marker) or end < at + 4 or end > len(view):
            return
        yield marker, view[at + 4 : end]
        if marker in _FRAME_HEADERS:
            return
        at = end


def _has_length(marker: int) -> bool:
    """Whether a segment with this marker may stand before the frame header, with a length."""
    return 0xC0 <= marker < 0xFF and not (
        0xD0 <= marker <= _END or marker == _SCAN or marker in _OTHER_FRAME_HEADERS
    )


def _frame_size(body: memoryview) -> Size | None:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        return None
    precision, components = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if precision != 8 or components not in (1, 3) or not (width and height):
        return None
    return width, height


def _exif_orientation(tiff: memoryview) -> int:
    """The orientation in the first directory of a TIFF header, which Exif is."""
    if (order := _BYTE_ORDERS.get(bytes(tiff[:4]))) is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    for entry in range(min(number(first, 2), MAX_SEGMENTS)):
        at = first + 2 + 12 * entry
        if number(at, 2) == _ORIENTATION_TAG:
            found = number(at + 8, 2)
            return found if number(at + 2, 2) == 3 and 1 <= found <= 8 else 1
    return 1
