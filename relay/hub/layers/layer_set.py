"""The layers of one stream: their widths and usual sizes, which of them flow, and who needs which.

The producer sends them, or the relay makes the smaller ones; that is no difference here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import trio
from attrs import define, field, frozen

from relay.hub.layers.choice import LayerOption

SIZE_WEIGHT, KEYFRAME_WEIGHT = 0.1, 0.02
"""Of the newest frame in the usual size of a layer: of one that others build on and that is several
times as large, but rare, less."""
KEYFRAME_RATIO = 4.0
"""How many times as large the first one is supposed to be as those that follow."""
PERIOD_WEIGHT, MAX_PERIOD_SECONDS = 0.1, 1.0
"""The same of the newest time between two pictures, and the longest that counts."""
USUAL_GAP_RATIO, USUAL_GAP_SECONDS = 4.0, 0.25
"""No more of it counts at once than so many times the usual one, or this: a phone that was gone for
a while sends no fewer pictures. Several may come together, and then none for so long."""
SIZE_EXPONENT = 1.5
"""Bytes grow with the width to this power, which is a guess for a layer without frames."""
FLOW_PICTURES, FLOW_SECONDS = 3, 0.5
"""A layer flows if it came with one of the last pictures, or within this time."""
LINGER_SECONDS = 2.0
"""Seconds for which a layer is still asked for when nobody needs it any more."""


@frozen
class PictureLayer:
    """Which layer of its picture a frame is."""

    index: int
    id: str | None
    """As consumers are told; None for what came from a producer without layers."""
    awaits: frozenset[int] | None = None
    """The other layers of this picture that are still to come; None if any may."""

    def may_be_followed_by(self, index: int) -> bool:
        """Whether a frame of another layer may come for the same picture."""
        return self.awaits is None or index in self.awaits


@define(eq=False)
class StreamLayer:
    """One layer of a stream."""

    id: str
    width: int | None
    """Pixels."""
    size: float = 0.0
    """Usual bytes of a frame; 0 before the first."""
    last_seq: int = 0
    """Of the last picture that it came with."""
    last_at: float = -math.inf
    needed_by: int = 0
    """Subscriptions."""
    needed_until: float = -math.inf
    """When the last one left."""


@define(eq=False)
class LayerSet:
    """The layers of one stream, the cheapest first, at least one."""

    layers: Sequence[StreamLayer]
    from_producer: bool
    """Whether the producer sends them all, as far as they are needed."""
    on_need: Callable[[], object] = lambda: None
    """Called when a layer is needed that was not, and when one is not needed any more."""
    period: float = 0.0
    """Usual seconds between two pictures; 0 before the second."""
    has_deltas: bool = False
    """Whether frames build on one another."""
    since: int = 0
    """The `seq` of the last picture before the first that comes in these layers."""
    _seq: int = 0
    """Of the last picture."""
    _began_at: float = -math.inf
    _options: tuple[LayerOption, ...] | None = field(default=None, init=False)

    @property
    def top(self) -> int:
        """The index of the largest layer."""
        return len(self.layers) - 1

    def index_of(self, layer_id: str) -> int | None:
        """Where a layer is; None if there is none with this id."""
        found = (index for index, each in enumerate(self.layers) if each.id == layer_id)
        return next(found, None)

    def begin_picture(self, seq: int) -> None:
        """Note that a new picture begins."""
        now = trio.current_time()
        passed = min(now - self._began_at, MAX_PERIOD_SECONDS)
        if self.period:
            passed = min(passed, max(USUAL_GAP_RATIO * self.period, USUAL_GAP_SECONDS))
        if self._began_at > -math.inf:
            self.period += (passed - self.period) * (PERIOD_WEIGHT if self.period else 1.0)
        self._seq, self._began_at, self._options = seq, now, None

    def note(self, index: int, size: int, *, keyframe: bool | None = None) -> None:
        """Note a frame, of so many bytes, of the picture that began last or of one before.

        keyframe: whether others build on this one alone, where frames build on one another; None
        where each stands for itself.
        """
        layer = self.layers[index]
        self.has_deltas = keyframe is not None
        if not layer.size:
            layer.size = size / KEYFRAME_RATIO if keyframe else size
        else:
            layer.size += (size - layer.size) * (KEYFRAME_WEIGHT if keyframe else SIZE_WEIGHT)
        layer.last_seq, layer.last_at = self._seq, trio.current_time()
        self._options = None

    def options(self) -> tuple[LayerOption, ...]:
        """What a choice may know of them, for the picture that begins now."""
        if self._options is None:
            now = trio.current_time()
            period = self.period if self.has_deltas and self.period else None
            self._options = tuple(
                LayerOption(each.width, self._size(index), self._flows(each, now), period)
                for index, each in enumerate(self.layers)
            )
        return self._options

    def need(self, index: int, change: int) -> None:
        """One more subscription needs a layer, or one less."""
        layer, before = self.layers[index], self.layers[index].needed_by
        layer.needed_by += change
        if not layer.needed_by:
            layer.needed_until = trio.current_time()
        if not before or not layer.needed_by:
            self.on_need()

    def needed(self) -> list[int]:
        """The layers that somebody needs, or needed a moment ago, by their indexes."""
        now = trio.current_time()
        return [
            index
            for index, each in enumerate(self.layers)
            if each.needed_by or now < each.needed_until + LINGER_SECONDS
        ]

    @property
    def is_lingering(self) -> bool:
        """Whether a layer is asked for that nobody needs any more."""
        return any(not self.layers[index].needed_by for index in self.needed())

    def _flows(self, layer: StreamLayer, now: float) -> bool:
        recently = now - layer.last_at <= FLOW_SECONDS
        return recently or 0 < self._seq - FLOW_PICTURES <= layer.last_seq

    def _size(self, index: int) -> float:
        """The usual bytes of a frame, guessed from those of another layer if there was none."""
        size = self.layers[index].size
        if size:
            return size
        known = [other for other, each in enumerate(self.layers) if each.size]
        if not known:
            return 1.0
        other = min(known, key=lambda each: abs(each - index))
        width, known_width = self.layers[index].width, self.layers[other].width
        ratio = width / known_width if width and known_width else 2.0 ** (index - other)
        return float(self.layers[other].size * ratio**SIZE_EXPONENT)
