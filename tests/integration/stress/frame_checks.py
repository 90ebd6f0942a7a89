"""What a viewer must see: every frame whole, of its stream, in order, and as often as it asked.

A frame carries the numbers of its stream, of its phone and of itself, and a checksum of all that.
So each viewer can judge alone, and all together whether they saw the same.
"""

from __future__ import annotations

import struct
import zlib
from random import Random
from typing import Any

from attrs import define, field, frozen

_NUMBERS = struct.Struct("!III")
_CHECKSUM = struct.Struct("!I")

_NOISE = Random(1).randbytes(1 << 20)


class Failed(Exception):
    """What must not happen did."""


@frozen
class Content:
    """What the data of a frame says."""

    stream: int
    phone: int
    """Counts the connections that produced the stream, one after the other."""
    number: int
    """Counts the frames of that phone."""

    def pack(self, noise: int) -> bytes:
        """The data, with so many bytes of noise that differ from frame to frame."""
        begin = (self.number * 4099) % max(1, len(_NOISE) - noise)
        whole = _NUMBERS.pack(self.stream, self.phone, self.number) + _NOISE[begin : begin + noise]
        return whole + _CHECKSUM.pack(zlib.crc32(whole))

    @classmethod
    def unpack(cls, data: bytes) -> Content:
        whole, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
        if len(whole) < _NUMBERS.size or _CHECKSUM.pack(zlib.crc32(whole)) != checksum:
            raise Failed(f"a damaged frame of {len(data)} bytes")
        return cls(*_NUMBERS.unpack_from(whole))


@define(eq=False)
class Record:
    """What all viewers of a round saw, which must be the same."""

    frames: int = 0
    _seqs: dict[tuple[int, int], int] = field(factory=dict)
    """By stream and phone: how far `seq` is ahead of the phone's own number."""

    def see(self, content: Content, seq: int) -> None:
        self.frames += 1
        ahead = seq - content.number
        if self._seqs.setdefault((content.stream, content.phone), ahead) != ahead:
            raise Failed(f"{content} has seq {seq} here and another one there")


@define(eq=False)
class Sight:
    """One subscription, as its viewer sees it."""

    stream: int
    record: Record
    lossless: bool = False
    window: int | None = None
    unacknowledged: list[int] = field(factory=list)
    """The `seq` of frames that the viewer has and the relay does not know of."""
    _seq: int | None = None
    _phone: int = 0

    def see(self, frame: dict[str, Any], data: bytes) -> None:
        """Look at the next frame; `Failed` when it may not be."""
        content, seq, kind = Content.unpack(data), frame["seq"], frame.get("keyframe")
        if content.stream != self.stream:
            raise Failed(f"{content} came as a frame of stream {self.stream}")
        gap = self._seq is None or seq != self._seq + 1
        if self._seq is not None and (seq <= self._seq or content.phone < self._phone):
            raise Failed(f"{content} with seq {seq} came after seq {self._seq}")
        if gap and kind is False:
            raise Failed(f"a delta with seq {seq} came without its base, after {self._seq}")
        if gap and self.lossless and self._seq is not None and kind is None:
            raise Failed(f"seq {seq} came after {self._seq}, and nothing may be missing")
        self.record.see(content, seq)
        self._seq, self._phone = seq, content.phone
        if self.window is not None:
            self.unacknowledged.append(seq)
            if len(self.unacknowledged) > self.window:
                raise Failed(f"{self.unacknowledged} are more than a window of {self.window}")
