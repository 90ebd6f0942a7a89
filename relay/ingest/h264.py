"""Makes frames of H.264 packets that any viewer can decode: Annex B, with the parameter sets in
each keyframe.

Cameras send the parameter sets in the stream or beside it, and files keep frames with their lengths
(ISO 14496-15) instead of start codes. All bytes come from strangers: whatever they are, these
functions do work in proportion to their number, and leave out what makes no sense.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from attrs import define, field, frozen

START_CODE = b"\0\0\0\1"
SLICES, IDR, SPS, PPS = frozenset(range(1, 6)), 5, 7, 8
"""Types of NAL units (ITU-T H.264, table 7-1)."""
MAX_PARAMETER_SETS = 32
MAX_PARAMETER_SET_BYTES = 4096
_START_PREFIX = re.compile(rb"\x00\x00\x01")


@frozen
class H264Frame:
    """A picture as a viewer's decoder takes it."""

    data: bytes = field(repr=False)
    keyframe: bool
    discardable: bool
    """Whether no other frame builds on it."""


@define(eq=False)
class H264Framer:
    """Turns the packets of one stream into frames."""

    _length_size: int | None = None
    """Bytes before each NAL unit that say its length; None where there are start codes."""
    _sets: dict[bytes, bytes] = field(factory=dict)
    """The parameter sets, by their type and what tells them apart."""

    def configure(self, extradata: bytes) -> None:
        """Take what the container says about all frames: `avcC`, or parameter sets in Annex B."""
        if extradata[:1] == b"\1":
            self._length_size = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
            units = list(_avcc_sets(extradata))
        else:
            units = list(split_annex_b(extradata))
        self._keep_sets(units)

    @property
    def codec(self) -> str | None:
        """The codec string of WebCodecs; None while it is not known."""
        for unit in self._sets.values():
            if _type(unit) == SPS and len(unit) > 3:
                return f"avc1.{unit[1:4].hex().upper()}"
        return None

    def frame(self, packet: bytes) -> H264Frame | None:
        """The frame of a packet; None if it has no picture."""
        if self._length_size is None:
            units = list(split_annex_b(packet))
        else:
            units = list(_split_lengths(packet, self._length_size))
        self._keep_sets(units)
        slices = [unit for unit in units if _type(unit) in SLICES]
        if not slices:
            return None
        keyframe = any(_type(unit) == IDR for unit in slices)
        if keyframe:
            # Decoders want them before the picture, and once is enough.
            sets = sorted(self._sets.values(), key=_type)  # each SPS before what builds on it
            units = [*sets, *(unit for unit in units if _type(unit) not in (SPS, PPS))]
        return H264Frame(
            b"".join(START_CODE + unit for unit in units),
            keyframe,
            discardable=not keyframe and all(unit[0] & 0x60 == 0 for unit in slices),
        )

    def _keep_sets(self, units: list[bytes]) -> None:
        """Keep the newest of each parameter set. An SPS with another beginning is of another
        stream, so what was known before ends with it."""
        for unit in units:
            kind = _type(unit)
            if kind not in (SPS, PPS) or not 2 <= len(unit) <= MAX_PARAMETER_SET_BYTES:
                continue
            if kind == SPS and self._sets.get(b"sps", unit) != unit:
                self._sets.clear()
            # One SPS is in use at a time. A PPS begins with its id, and of one id the last counts.
            key = b"sps" if kind == SPS else b"pps" + unit[1:2]
            self._sets.pop(key, None)
            self._sets[key] = unit
            if len(self._sets) > MAX_PARAMETER_SETS:
                self._sets.clear()


def split_annex_b(data: bytes) -> Iterator[bytes]:
    """The NAL units between start codes."""
    starts = [found.end() for found in _START_PREFIX.finditer(data)]
    for start, following in pairwise([*starts, len(data) + 3]):
        unit = data[start : following - 3].rstrip(b"\0")
        if unit:
            yield unit


def _split_lengths(data: bytes, size: int) -> Iterator[bytes]:
    at = 0
    while at + size <= len(data):
        length = int.from_bytes(data[at : at + size], "big")
        unit = data[at + size : at + size + length]
        at += size + length
        if unit and len(unit) == length:
            yield unit


def _avcc_sets(extradata: bytes) -> Iterator[bytes]:
    """The parameter sets in an `avcC` record."""
    at = 5
    for mask in (0x1F, 0xFF):
        if at >= len(extradata):
            return
        count, at = extradata[at] & mask, at + 1
        for _ in range(count):
            length = int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : at + 2 + length]
            at += 2 + length


def _type(unit: bytes) -> int:
    return unit[0] & 0x1F if unit else 0
