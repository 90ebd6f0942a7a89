"""Gil Tene's HdrHistogram: every value to two significant digits. No I/O.

Layout and encoding are those of the HdrHistogram libraries, so that they can read the results of a
run. Empty buckets take no memory.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator

from attrs import define, field

MAX_VALUE = 3_600_000_000
DIGITS = 2
_HALF_BITS = 7
_HALF = 1 << _HALF_BITS
"""Half of the 256 values of a bucket; the lower half of a bucket is the bucket below."""
_BITS = _HALF_BITS + 1

MAX_INDEX = ((MAX_VALUE.bit_length() - _BITS) << _HALF_BITS) + (1 << _BITS) - 1
MAX_UNPACKED = 1 << 20
"""Bytes of an encoded histogram before compression; it has few thousand counts."""

_NUMBER_BITS = 63
"""Of the largest number in the encoding."""

_HEADER = struct.Struct(">iiiiqqd")
_OUTER = struct.Struct(">ii")
_COOKIE, _COMPRESSED_COOKIE = 0x1C849313, 0x1C849314
"""Of version 2 of the encoding."""


@define(eq=False)
class HdrHistogram:
    """Counts of whole numbers from 0 to `MAX_VALUE`."""

    counts: dict[int, int] = field(factory=dict)
    """By the index of the HdrHistogram libraries."""
    total: int = 0

    def record(self, value: int) -> None:
        """Count a value; one above `MAX_VALUE` counts as `MAX_VALUE`."""
        value = min(value, MAX_VALUE)
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
        """The value at a percentile; the highest of its bucket."""
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
        """The highest value and the count of each bucket that is not empty."""
        return ((_range(index)[1], self.counts[index]) for index in sorted(self.counts))

    def encode(self) -> str:
        payload = bytearray()
        at = 0
        for index in sorted(self.counts):
            if index > at:
                _put(payload, at - index)
            _put(payload, self.counts[index])
            at = index + 1
        header = _HEADER.pack(_COOKIE, len(payload), 0, DIGITS, 1, MAX_VALUE, 1.0)
        packed = zlib.compress(header + payload, 1)
        return base64.b64encode(_OUTER.pack(_COMPRESSED_COOKIE, len(packed)) + packed).decode()

    @classmethod
    def decode(cls, encoded: str) -> HdrHistogram:
        """Read the result of `encode`; `ValueError` for anything else."""
        try:
            data = base64.b64decode(encoded, validate=True)
            cookie, length = _OUTER.unpack_from(data)
            unpacking = zlib.decompressobj()
            packed = unpacking.decompress(data[_OUTER.size : _OUTER.size + length], MAX_UNPACKED)
            inner, size, _, digits, lowest, _, _ = _HEADER.unpack_from(packed)
            if not unpacking.eof:
                raise ValueError("not a histogram: it is too long")
        except (struct.error, zlib.error) as problem:
            raise ValueError(f"not a histogram: {problem}") from None
        if (cookie, inner, digits, lowest) != (_COMPRESSED_COOKIE, _COOKIE, DIGITS, 1):
            raise ValueError("not a histogram of this kind")
        made = cls()
        at = 0
        for number in _numbers(packed[_HEADER.size : _HEADER.size + size]):
            if number < 0:
                at -= number
                continue
            if at > MAX_INDEX:
                raise ValueError("not a histogram: it has a value that is too large")
            if number:
                made.counts[at] = number
                made.total += number
            at += 1
        return made


def _range(index: int) -> tuple[int, int]:
    """The lowest and the highest value of this index."""
    bucket = max(0, (index >> _HALF_BITS) - 1)
    lowest = (index - (bucket << _HALF_BITS)) << bucket
    return lowest, lowest + (1 << bucket) - 1


def _put(payload: bytearray, number: int) -> None:
    """Append a number in ZigZag LEB128: small numbers, also negative ones, take few bytes."""
    rest = (number << 1) ^ (number >> 63)
    while rest > 0x7F:
        payload.append(rest & 0x7F | 0x80)
        rest >>= 7
    payload.append(rest)


def _numbers(payload: bytes) -> Iterator[int]:
    rest = shift = 0
    for byte in payload:
        if shift >= _NUMBER_BITS:  # it would take ever longer to add to it
            raise ValueError("not a histogram: it has a number that is too large")
        rest |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield (rest >> 1) ^ -(rest & 1)
            rest = shift = 0
