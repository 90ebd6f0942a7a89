"""Chooses how large the next picture may be, so that pictures keep coming at the wanted rate.

A ladder of steps leads from the wanted width at high quality, by quality and then by width, to a
small picture of low quality. The bytes of a picture are foretold from those that were sent before:
they grow with `cost`, times a factor that depends on what the camera sees.
"""

from __future__ import annotations

from functools import cache

from attrs import define, frozen

WIDTHS = (1920, 1280, 960, 640, 480, 320)
"""Pixels, below the wanted width."""
QUALITY_COSTS = {
    0.8: 1.0,
    0.77: 0.9,
    0.73: 0.79,
    0.69: 0.71,
    0.64: 0.63,
    0.58: 0.55,
    0.52: 0.49,
    0.46: 0.43,
    0.4: 0.38,
    0.35: 0.33,
    0.3: 0.28,
}
"""The bytes of a JPEG picture by its quality, as a part of those at the highest one; as Chromium
encodes a picture with detail of all sizes, 640 pixels wide."""
AREA_EXPONENT = 0.85
"""Bytes grow a little slower than the area, since more of a larger picture is smooth."""

PERIODS, MIN_SECONDS, MAX_SECONDS = 0.95, 0.03, 0.08
"""The time that a picture may take on the link with all its layers, in periods of the wanted rate,
and its bounds: the link has to be free again when the camera has the next one."""
SPARE, UP_INTERVAL, MAX_RISE = 1.2, 0.2, 1.5
"""A larger picture must leave a fifth of the time; seconds between two steps up, and by how much
the bytes of a picture may grow with one."""
NEWEST_SHARE = 0.3
"""Of the last picture in what is known of the bytes."""
USUAL_QUALITY = 0.69
"""Of all layers of a picture but the largest."""


@frozen
class PlannedPicture:
    """The next picture as one layer."""

    layer: str | None
    """The id of the layer; None for a stream without layers."""
    width: int
    """Pixels."""
    quality: float
    """Of the JPEG encoder, from 0 to 1."""


@frozen
class PicturePlan:
    """The picture to take and send next."""

    pictures: tuple[PlannedPicture, ...]
    """One for each layer to send, the smallest first: send them in this order."""
    timestamp: int
    """ms since the Unix epoch: for `send_frame`, if the picture is taken now."""

    @property
    def width(self) -> int:
        """Pixels, of the largest layer."""
        return self.pictures[-1].width

    @property
    def quality(self) -> float:
        """Of the largest layer."""
        return self.pictures[-1].quality


@frozen
class PictureSize:
    """A size that pictures may have."""

    width: int
    quality: float
    cost: float
    """Its bytes, as a part of those of a picture of 1280 pixels of the highest quality."""


@cache
def ladder(width: int) -> tuple[PictureSize, ...]:
    """The steps for a wanted width, the largest first; each takes fewer bytes than the last."""
    widths = [width, *(each for each in WIDTHS if each < width)]
    steps: list[PictureSize] = []
    for each in widths:
        area_cost = (each / 1280) ** (2 * AREA_EXPONENT)
        for quality, quality_cost in QUALITY_COSTS.items():
            cost = area_cost * quality_cost
            if not steps or cost < 0.95 * steps[-1].cost:
                steps.append(PictureSize(each, quality, cost))
    return tuple(steps)


def picture_budget(bandwidth: float, fps: float) -> float:
    """The bytes of one picture with all its layers, on a link of so many bytes a second."""
    return bandwidth * min(max(PERIODS / fps, MIN_SECONDS), MAX_SECONDS)


@cache
def usual_step(width: int) -> PictureSize:
    """The step of this width with the usual quality."""
    return next(step for step in ladder(width) if step.quality == USUAL_QUALITY)


@define(eq=False)
class PicturePlanner:
    """Plans the pictures of one stream, or of one layer of it."""

    bytes_per_cost: float | None = None
    """As far as is known. Before the first picture, of other layers."""
    _step: PictureSize | None = None
    """That of the last plan."""
    _sent_step: PictureSize | None = None
    """That of the last picture."""
    _stepped_up_at: float = float("-inf")

    def plan(self, width: int, budget: float | None, now: float) -> PictureSize:
        """Choose a step for a picture that is taken now, of at most this width.

        `budget` are the bytes that it may take, None while that is not known; `now` is of any
        clock.
        """
        steps = ladder(width)
        at = self._index(steps)
        if budget is not None and self.bytes_per_cost is not None:
            affordable = budget / self.bytes_per_cost
            fits = (n for n, step in enumerate(steps) if step.cost <= affordable)
            largest = next(fits, len(steps) - 1)
            may_rise = now >= self._stepped_up_at + UP_INTERVAL
            if largest > at:
                at = largest
                self._stepped_up_at = now
            elif may_rise:
                most = min(affordable / SPARE, MAX_RISE * steps[at].cost)
                higher = next(n for n in range(at + 1) if n == at or steps[n].cost <= most)
                if higher < at:
                    at = higher
                    self._stepped_up_at = now
        self._step = steps[at]
        return self._step

    def plan_usual(self, width: int) -> PictureSize:
        """Choose the step of a layer that is not the largest of its picture."""
        self._step = usual_step(width)
        return self._step

    def bytes_of(self, step: PictureSize) -> float:
        """What a picture is expected to take; 0 while nothing is known."""
        return step.cost * (self.bytes_per_cost or 0.0)

    @property
    def has_sent(self) -> bool:
        return self._sent_step is not None

    def picture_sent(self, size: int) -> float:
        """Note the bytes of the picture that was planned last.

        Returns by what factor pictures of the scene have become larger, if that shows.
        """
        if self._step is None or not size:
            return 1.0
        new, known = size / self._step.cost, self.bytes_per_cost
        is_same, is_first = self._step == self._sent_step, not self.has_sent
        self._sent_step = self._step
        if known is None or is_first:
            self.bytes_per_cost = new
            return 1.0
        self.bytes_per_cost = known + NEWEST_SHARE * (new - known)
        return self.bytes_per_cost / known if is_same else 1.0

    def _index(self, steps: tuple[PictureSize, ...]) -> int:
        """Of the step as it was; of one in the middle at first."""
        last = self._step
        if last is None:
            return len(steps) // 2
        return next((n for n, step in enumerate(steps) if step.cost <= last.cost), len(steps) - 1)
