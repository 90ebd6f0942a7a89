"""The sizes that a JPEG decoder makes by itself.

A decoder that leaves out the high frequencies of each block of 8 by 8 pixels makes a picture of
N/8 of the size, for less than a full decode and a resizing afterwards would cost.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.renditions.jpeg_header import Size

BLOCK = 8


def plan_sizes(source: Size, widths: Iterable[int]) -> list[Size]:
    """The size made for each width, largest first; each picture is made from the one before.

    Of N/8 of the width, N from 1 to 7, it is the one whose ratio to the wanted width is closest
    to 1. Fractions of a pixel count as a whole one.
    """
    sizes: list[Size] = []
    for width in widths:
        source = _nearest(source, width)
        sizes.append(source)
    return sizes


def max_bytes(size: Size) -> int:
    """The largest plausible JPEG of this size; noise at quality 52 takes less than a quarter."""
    return 2 * size[0] * size[1] + 4096


def _nearest(source: Size, width: int) -> Size:
    scaled = [(_scale(source[0], n), _scale(source[1], n)) for n in range(1, BLOCK)]
    return min(reversed(scaled), key=lambda size: max(size[0] / width, width / size[0]))


def _scale(side: int, eighths: int) -> int:
    return -(-side * eighths // BLOCK)
