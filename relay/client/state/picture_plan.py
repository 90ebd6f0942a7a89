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
"""The time that a picture may take on the link, in periods of the wanted rate, and its bounds: the
link has to be free again when the camera has the next one."""
SPARE, UP_INTERVAL, MAX_RISE = 1.2, 0.2, 1.5
"""A larger picture must leave a fifth of the time; seconds between two steps up, and by how much
the bytes of a picture may grow with one."""
NEWEST_SHARE = 0.3
"""Of the last picture in what is known of the bytes."""


@frozen
class PicturePlan:
    """The picture to take and send next."""

    width: int
    """Pixels."""
    quality: float
    """Of the JPEG encoder, from 0 to 1."""
    timestamp: int
    """ms since the Unix epoch: for `send_frame`, if the picture is taken now."""


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


@define(eq=False)
class PicturePlanner:
    """Plans the pictures of one stream."""

    _step: PictureSize | None = None
    """That of the last plan."""
    _bytes_per_cost: float | None = None
    _stepped_up_at: float = float("-inf")

    def plan(self, fps: float, width: int, bandwidth: float | None, now: float) -> PictureSize:
        """Choose a step for a picture that is taken now, of at most this width.

        `bandwidth` is in bytes a second, None while it is not known; `now` is of any clock.
        """
        steps = ladder(width)
        at = self._index(steps)
        if bandwidth is not None and self._bytes_per_cost is not None:
            seconds = min(max(PERIODS / fps, MIN_SECONDS), MAX_SECONDS)
            affordable = bandwidth * seconds / self._bytes_per_cost
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

    def picture_sent(self, size: int) -> None:
        """Note the bytes of the picture that was planned last."""
        if self._step is not None and size:
            new, known = size / self._step.cost, self._bytes_per_cost
            self._bytes_per_cost = new if known is None else known + NEWEST_SHARE * (new - known)

    def _index(self, steps: tuple[PictureSize, ...]) -> int:
        """Of the step as it was; of one in the middle at first."""
        last = self._step
        if last is None:
            return len(steps) // 2
        return next((n for n, step in enumerate(steps) if step.cost <= last.cost), len(steps) - 1)
