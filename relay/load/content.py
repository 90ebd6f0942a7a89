"""What stands at the end of every frame, and the judge who looks at it. Floor 6, no I/O.

The mark comes last because whoever shows a JPEG passes over what follows it: a picture of a load
test can be watched like any other.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter, OrderedDict

from attrs import define, field, frozen

MAGIC = b"rlmk"
_MARK = struct.Struct("<4s8sIHIQI")
"""Magic, run, stream, life, number, due in microseconds, length of what stands before."""
_SUM = struct.Struct("<I")
MARK_SIZE = _MARK.size + _SUM.size
GAPS = 4096
"""So many missing numbers are remembered, in case that they still come."""
LIVES = 1 << 16


@frozen
class Mark:
    """What a frame says of itself."""

    run: bytes
    stream: int
    life: int
    """Counts the connections of the phone."""
    number: int
    """Counts the frames of the stream, over all lives."""
    due: float
    """Seconds after the start of the run."""


def seal(body: bytes, mark: Mark) -> bytes:
    """A frame: the body and its mark."""
    about = _MARK.pack(
        MAGIC,
        mark.run,
        mark.stream,
        mark.life % LIVES,
        mark.number,
        round(mark.due * 1_000_000),
        len(body),
    )
    return b"".join((body, about, _SUM.pack(zlib.crc32(about, zlib.crc32(body)))))


def open_seal(data: bytes | memoryview) -> Mark | None:
    """The mark of a frame; None if it is not whole."""
    size = len(data)
    if size < MARK_SIZE:
        return None
    magic, run, stream, life, number, due, length = _MARK.unpack_from(data, size - MARK_SIZE)
    (checksum,) = _SUM.unpack_from(data, size - _SUM.size)
    if magic != MAGIC or length != size - MARK_SIZE:
        return None
    if zlib.crc32(memoryview(data)[: size - _SUM.size]) != checksum:
        return None
    return Mark(run, stream, life, number, due / 1_000_000)


@define(eq=False)
class FrameJudge:
    """Looks at the frames that one viewer gets of one stream, in one go.

    A gap in `seq` is what the relay says that this viewer missed. What is missing without such a
    gap is lost.
    """

    run: bytes
    stream: int
    counts: Counter[str]
    first: int | None = None
    last: Mark | None = None
    _seq: int = 0
    _gaps: OrderedDict[int, str] = field(factory=OrderedDict)
    """Numbers that did not come, and as what they were counted."""

    def take(self, data: bytes | memoryview, seq: int) -> Mark | None:
        """Judge a frame; returns its mark if it is whole and of this stream and new."""
        counts = self.counts
        counts["received"] += 1
        mark = open_seal(data)
        if mark is None:
            counts["torn"] += 1
            return None
        if mark.run != self.run or mark.stream != self.stream:
            counts["foreign"] += 1
            return None
        last = self.last
        if last is None:
            self.first = mark.number
        elif mark.number <= last.number:
            self._look_back(mark)
            return None
        elif mark.number != last.number + 1:
            self._count_gap(last, mark, seq)
        self.last, self._seq = mark, seq
        return mark

    def _count_gap(self, last: Mark, mark: Mark, seq: int) -> None:
        missing = mark.number - last.number - 1
        admitted = missing if mark.life != last.life else seq - self._seq - 1
        lost = max(0, missing - max(0, admitted))
        self.counts["missed"] += missing - lost
        self.counts["lost"] += lost
        kind = "lost" if lost else "missed"
        for number in range(max(last.number + 1, mark.number - GAPS), mark.number):
            self._gaps[number] = kind
        while len(self._gaps) > GAPS:
            self._gaps.popitem(last=False)

    def _look_back(self, mark: Mark) -> None:
        """One with a number that is behind the last: late, or there already."""
        kind = self._gaps.pop(mark.number, None)
        if kind is None:
            self.counts["doubled"] += 1
            return
        self.counts["disordered"] += 1
        self.counts[kind] -= 1


@define(eq=False)
class AlertJudge:
    """Looks at the alerts of one service about one stream that one client gets, in one go."""

    counts: Counter[str]
    got: list[list[int]] = field(factory=list)
    """Ranges of numbers, both ends included."""

    def take(self, number: int) -> bool:
        """Count an alert; whether it is the first time that it comes."""
        for got in reversed(self.got):
            if got[0] <= number <= got[1]:
                self.counts["alerts.doubled"] += 1
                return False
        self.counts["alerts.received"] += 1
        if self.got and number < self.got[-1][1]:
            self.counts["alerts.disordered"] += 1
            self.got.append([number, number])
            self.got.sort()
        elif self.got and number == self.got[-1][1] + 1:
            self.got[-1][1] = number
        else:
            self.got.append([number, number])
        return True


def missing_of(got: list[list[int]], first: int, last: int) -> int:
    """How many of the numbers from `first` to `last` are in none of these ranges."""
    there = sum(max(0, min(high, last) - max(low, first) + 1) for low, high in got)
    return max(0, last - first + 1) - there
