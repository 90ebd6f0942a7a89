"""The mark at the end of every frame, and the checks of received frames and alerts. No I/O.

The mark comes last because JPEG decoders ignore trailing bytes: the pictures of a load test can be
watched like any others. Smaller pictures that the relay makes of them have no such bytes, so frames
that are JPEG also carry their mark in their metadata, which stays.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

MAGIC = b"rlmk"
_MARK = struct.Struct("<4s8sIHIQBII")
"""Magic, run, stream, connection, number, due in microseconds, layer (from 1 on; 0 for none), base
(0 for none), length of the body."""
_SUM = struct.Struct("<I")
MARK_SIZE = _MARK.size + _SUM.size
MAX_GAPS = 4096
"""Missing numbers that are remembered, in case their frames arrive late."""
CONNECTION_MODULUS = 1 << 16
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
RENDITIONS = ("320", "640")
"""The layers that the relay makes of JPEG pictures where the phone sends none."""


@frozen
class FrameMark:
    """Identifies a frame."""

    run: bytes
    stream: int
    connection: int
    """Number of the phone's connection."""
    number: int
    """Number of the picture in its stream, over all connections, from 1 on."""
    due: float
    """Seconds after the start of the run."""
    layer: int | None = None
    """Which of its picture's layers it is, the smallest being 0; None without layers."""
    base: int | None = None
    """Number of the picture whose frame in the same layer it builds on; None if on none."""


def append_mark(body: bytes, mark: FrameMark) -> bytes:
    """Make a frame of a body and its mark."""
    about = _MARK.pack(
        MAGIC,
        mark.run,
        mark.stream,
        mark.connection % CONNECTION_MODULUS,
        mark.number,
        round(mark.due * 1_000_000),
        0 if mark.layer is None else mark.layer + 1,
        mark.base or 0,
        len(body),
    )
    return b"".join((body, about, _SUM.pack(zlib.crc32(about, zlib.crc32(body)))))


def read_mark(data: bytes | memoryview) -> FrameMark | None:
    """The mark of a frame; None if the frame is damaged."""
    size = len(data)
    if size < MARK_SIZE:
        return None
    magic, *about, layer, base, length = _MARK.unpack_from(data, size - MARK_SIZE)
    run, stream, connection, number, due = about
    (checksum,) = _SUM.unpack_from(data, size - _SUM.size)
    if magic != MAGIC or length != size - MARK_SIZE:
        return None
    if zlib.crc32(memoryview(data)[: size - _SUM.size]) != checksum:
        return None
    return FrameMark(
        run, stream, connection, number, due / 1_000_000, layer - 1 if layer else None, base or None
    )


def read_rendition(data: bytes | memoryview, sealed_mark: str | None) -> FrameMark | None:
    """The mark of the frame of which the relay made this picture, from its metadata; None if it is
    no whole JPEG picture, or the mark is damaged or not there."""
    if sealed_mark is None or data[:2] != JPEG_START or data[-2:] != JPEG_END:
        return None
    try:
        return read_mark(base64.b64decode(sealed_mark, validate=True))
    except ValueError:
        return None


def seal_mark(mark: FrameMark) -> str:
    """A mark as it stands in metadata."""
    return base64.b64encode(append_mark(b"", mark)).decode()


@define(eq=False)
class FrameChecker:
    """Checks the frames that one viewer receives of one stream on one connection.

    A missing frame is `missed` if the relay admits it with a gap in `seq`, or else `lost`.
    """

    run: bytes
    stream: int
    counts: Counter[str]
    layers: Sequence[str] = ()
    """Those of the stream, by their ids, the smallest first."""
    missed: int = 0
    """Of this viewer alone: frames that were missing between those that came."""
    first: int | None = None
    last: FrameMark | None = None
    _seq: int = 0
    _epoch: int = 0
    """The one that the relay last told."""
    _epoch_begins: bool = False
    """Whether no frame of that has come yet, but frames of another."""
    _is_settled: bool = False
    """Whether two frames have come."""
    _decodable: bool = False
    """Whether a delta may build on the last frame."""
    _gaps: OrderedDict[int, str] = field(factory=OrderedDict)
    """Missing numbers, and whether they were counted as missed or lost."""

    def check(
        self,
        data: bytes | memoryview,
        seq: int,
        layer: str | None = None,
        sealed_mark: str | None = None,
    ) -> FrameMark | None:
        """Count a frame, which came as one of this layer, and with this mark in its metadata if it
        may be a rendition; returns its mark if it is undamaged, of this stream, and the first of
        its picture."""
        counts = self.counts
        counts["received"] += 1
        mark = read_mark(data)
        is_rendition = mark is None and self.may_be_rendition(layer)
        if is_rendition:
            mark = read_rendition(data, sealed_mark)
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
            self._count_late(mark)
            return None
        elif mark.layer is not None and seq == self._seq and mark.connection == last.connection:
            counts["doubled"] += 1  # two pictures as layers of one
            return None
        elif mark.number != last.number + 1:
            self._count_gap(last, mark, seq)
        if last is not None:
            self._check_seq(last, mark, seq)
        if not is_rendition and layer != self._layer_of(mark):
            counts["mislabeled"] += 1
        self._check_base(mark)
        self.last, self._seq = mark, seq
        return mark

    def note_epoch(self, epoch: int) -> None:
        """Note that the relay has told an epoch of the stream: `seq` begins anew in the next."""
        self.counts["misnumbered"] += epoch < self._epoch
        if epoch != self._epoch:
            self._epoch_begins, self._epoch = self.last is not None, epoch

    def _check_seq(self, last: FrameMark, mark: FrameMark, seq: int) -> None:
        """Count the numbers that are missing, and a frame whose number does not grow."""
        may_begin = self._epoch_begins or not self._epoch
        begins = may_begin and mark.connection != last.connection
        self._epoch_begins = False
        if begins:
            return
        if seq <= self._seq:
            self.counts["misnumbered"] += 1
        elif self._is_settled:  # the first picture that a viewer is shown may be an old one
            self.counts["skipped"] += seq - self._seq - 1
        self._is_settled = True

    def may_be_rendition(self, layer: str | None) -> bool:
        """Whether the relay may have made a frame of this layer."""
        return layer in RENDITIONS and not self.layers

    def _layer_of(self, mark: FrameMark) -> str | None:
        """The id of the layer in which a frame was sent."""
        if mark.layer is None:
            return None
        return self.layers[mark.layer] if mark.layer < len(self.layers) else "?"

    def _check_base(self, mark: FrameMark) -> None:
        """Count a delta that comes without the frame that it builds on."""
        last = self.last
        self._decodable = mark.base is None or (
            self._decodable
            and last is not None
            and (last.connection, last.layer, last.number)
            == (mark.connection, mark.layer, mark.base)
        )
        if not self._decodable:
            self.counts["undecodable"] += 1

    def _count_gap(self, last: FrameMark, mark: FrameMark, seq: int) -> None:
        missing = mark.number - last.number - 1
        admitted = missing if mark.connection != last.connection else seq - self._seq - 1
        lost = max(0, missing - max(0, admitted))
        self.missed += missing - lost
        self.counts["missed"] += missing - lost
        self.counts["lost"] += lost
        kind = "lost" if lost else "missed"
        for number in range(max(last.number + 1, mark.number - MAX_GAPS), mark.number):
            self._gaps[number] = kind
        while len(self._gaps) > MAX_GAPS:
            self._gaps.popitem(last=False)

    def _count_late(self, mark: FrameMark) -> None:
        """Count a frame that is older than the last one: it is late, or a duplicate."""
        kind = self._gaps.pop(mark.number, None)
        if kind is None:
            self.counts["doubled"] += 1
            return
        self.counts["disordered"] += 1
        self.counts[kind] -= 1
        self.missed -= kind == "missed"


@define(eq=False)
class AlertChecker:
    """Checks the alerts of one service about one stream that one client receives."""

    counts: Counter[str]
    ranges: list[tuple[int, int]] = field(factory=list)
    """Ranges of received numbers; both ends are included."""

    def check(self, number: int) -> bool:
        """Count an alert; returns False if it is a duplicate."""
        for first, last in reversed(self.ranges):
            if first <= number <= last:
                self.counts["alerts.doubled"] += 1
                return False
        self.counts["alerts.received"] += 1
        if self.ranges and number < self.ranges[-1][1]:
            self.counts["alerts.disordered"] += 1
            self.ranges.append((number, number))
            self.ranges.sort()
        elif self.ranges and number == self.ranges[-1][1] + 1:
            self.ranges[-1] = (self.ranges[-1][0], number)
        else:
            self.ranges.append((number, number))
        return True


def count_missing(ranges: Iterable[tuple[int, int]], first: int, last: int) -> int:
    """Count the numbers from `first` to `last` that are in none of the ranges."""
    found = sum(max(0, min(high, last) - max(low, first) + 1) for low, high in ranges)
    return max(0, last - first + 1) - found
