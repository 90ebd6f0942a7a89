"""The histogram of Gil Tene's HdrHistogram: every value to two significant digits. Floor 6, no I/O.

Its layout and its written form are those of the HdrHistogram libraries, so that they can read what
a run wrote. Only buckets that hold something take room.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator

from attrs import define, field

HIGHEST = 3_600_000_000
DIGITS = 2
_HALF_BITS = 7
_HALF = 1 << _HALF_BITS
"""Half of the 256 values that a bucket tells apart, of which the lower half is the bucket below."""
_BITS = _HALF_BITS + 1

_HEADER = struct.Struct(">iiiiqqd")
_OUTER = struct.Struct(">ii")
_COOKIE, _COMPRESSED_COOKIE = 0x1C849313, 0x1C849314
"""Of the second version of the written form."""


@define(eq=False)
class HdrHistogram:
    """Whole numbers from 0 to `HIGHEST`, and how often each came."""

    counts: dict[int, int] = field(factory=dict)
    """By the index of the HdrHistogram libraries."""
    total: int = 0

    def record(self, value: int) -> None:
        """Count a value; what is above `HIGHEST` counts as that."""
        value = min(value, HIGHEST)
        bucket = value.bit_length() - _BITS
        index = value if bucket <= 0 else (bucket << _HALF_BITS) + (value >> bucket)
        counts = self.counts
        counts[index] = counts.get(index, 0) + 1
        self.total += 1

    def add(self, other: HdrHistogram) -> None:
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.total += other.total

    def value_at(self, percent: float) -> int:
        """The highest value that counts as the one below which `percent` of all values lie."""
        wanted = max(1, math.ceil(self.total * percent / 100))
        for index in sorted(self.counts):
            wanted -= self.counts[index]
            if wanted <= 0:
                return _range(index)[1]
        return 0

    def lowest(self) -> int:
        return _range(min(self.counts))[0] if self.counts else 0

    def mean(self) -> float:
        middle = sum(sum(_range(index)) / 2 * count for index, count in self.counts.items())
        return middle / self.total if self.total else 0.0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The highest value of each bucket that holds something, and its count."""
        return ((_range(index)[1], self.counts[index]) for index in sorted(self.counts))

    def encode(self) -> str:
        payload = bytearray()
        at = 0
        for index in sorted(self.counts):
            if index > at:
                _put(payload, at - index)
            _put(payload, self.counts[index])
            at = index + 1
        header = _HEADER.pack(_COOKIE, len(payload), 0, DIGITS, 1, HIGHEST, 1.0)
        packed = zlib.compress(header + payload, 1)
        return base64.b64encode(_OUTER.pack(_COMPRESSED_COOKIE, len(packed)) + packed).decode()

    @classmethod
    def decode(cls, encoded: str) -> HdrHistogram:
        """Read what `encode` wrote; `ValueError` for anything else."""
        try:
            data = base64.b64decode(encoded, validate=True)
            cookie, length = _OUTER.unpack_from(data)
            packed = zlib.decompress(data[_OUTER.size : _OUTER.size + length])
            inner, size, _, digits, lowest, _, _ = _HEADER.unpack_from(packed)
        except (struct.error, zlib.error) as problem:
            raise ValueError(f"no histogram: {problem}") from None
        if (cookie, inner, digits, lowest) != (_COMPRESSED_COOKIE, _COOKIE, DIGITS, 1):
            raise ValueError("no histogram of this kind")
        made = cls()
        at = 0
        for number in _numbers(packed[_HEADER.size : _HEADER.size + size]):
            if number < 0:
                at -= number
                continue
            if number:
                made.counts[at] = number
                made.total += number
            at += 1
        return made


def _range(index: int) -> tuple[int, int]:
    """The lowest and the highest value that this index stands for."""
    bucket = max(0, (index >> _HALF_BITS) - 1)
    lowest = (index - (bucket << _HALF_BITS)) << bucket
    return lowest, lowest + (1 << bucket) - 1


def _put(payload: bytearray, number: int) -> None:
    """A number as ZigZag and LEB128 have it: small ones, also negative, take few bytes."""
    rest = (number << 1) ^ (number >> 63)
    while rest > 0x7F:
        payload.append(rest & 0x7F | 0x80)
        rest >>= 7
    payload.append(rest)


def _numbers(payload: bytes) -> Iterator[int]:
    rest = shift = 0
    for byte in payload:
        rest |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield (rest >> 1) ^ -(rest & 1)
            rest = shift = 0
