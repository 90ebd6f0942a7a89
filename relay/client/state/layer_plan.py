"""Divides what a picture may take on the link among the layers that somebody needs.

All layers but the largest have the usual quality, and the largest takes the rest, by quality and
then by width. If that would not make it `MIN_WIDTH_RATIO` times as wide as the layer below, it is
left out: viewers see no difference, and the layer below takes the rest. A stream without layers has
a single one, whose id is None.

What a layer takes that is left out follows from those that are sent: their bytes grow and shrink
with the same scene. One that does not last is followed by a pause: viewers see each change, and
only pictures find out what a link carries. A layer that is sent goes on whatever pause it had: it
came as the only one that was needed, or below another.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from relay.client.state.picture_plan import SPARE, PicturePlanner, PictureSize, usual_step

MIN_WIDTH_RATIO = 1.5
BRIEF_STAY, LASTING_STAY = 10.0, 60.0
"""Seconds for which a layer was sent: one that did not last doubles the pause, one that did ends
it."""
MIN_RETURN_PAUSE, MAX_RETURN_PAUSE = 3.0, 60.0
"""Seconds until a layer that was left out may be sent again, if there is to be a pause."""


@define(eq=False)
class LayerStay:
    """Since when a layer is sent, or from when on it may be."""

    since: float | None = None
    """None while it is left out."""
    pause: float = 0.0
    """Seconds, the last time that it was left out."""
    next: float = 0.0

    def may_come(self, now: float) -> bool:
        """Whether the layer is sent already, or may be again."""
        return self.since is not None or now >= self.next

    def begin(self, now: float) -> None:
        """Note that the layer is sent."""
        if self.since is None:
            self.since = now

    def end(self, now: float, *, is_needed: bool) -> None:
        """Note that the layer is not sent: it is left out, unless nobody needs it."""
        if self.since is None:
            return
        stayed, self.since = now - self.since, None
        if stayed >= LASTING_STAY:
            self.pause = 0.0
        if is_needed:
            if stayed < BRIEF_STAY:
                self.pause = min(max(2 * self.pause, MIN_RETURN_PAUSE), MAX_RETURN_PAUSE)
            self.next = now + self.pause


@define(eq=False)
class LayerPlanner:
    """Plans the layers of each picture of one stream."""

    _planners: dict[str | None, PicturePlanner] = field(factory=dict)
    """By id."""
    _plan: dict[str | None, PictureSize] = field(factory=dict)
    """Of the last picture, the smallest layer first."""
    _stays: dict[str | None, LayerStay] = field(factory=dict)
    """By id."""

    def plan(
        self, widths: Mapping[str | None, int], budget: float | None, now: float
    ) -> Mapping[str | None, PictureSize]:
        """Choose which layers of a picture to send, and the step of each, the smallest first.

        `widths` are the pixels of the layers that are needed, by id, the smallest first and at
        least one; `budget` the bytes of all together, None while that is not known.
        """
        for each in widths:
            self._planners.setdefault(each, PicturePlanner())
            self._stays.setdefault(each, LayerStay())
        self._estimate()
        self._plan = self._divide(widths, budget, now)
        for each, stay in self._stays.items():
            if each in self._plan:
                stay.begin(now)
            else:
                stay.end(now, is_needed=each in widths)
        return self._plan

    def picture_sent(self, layer: str | None, size: int) -> None:
        """Note the bytes of a layer of the picture that was planned last."""
        if layer not in self._plan:
            return
        change = self._planners[layer].picture_sent(size)
        if layer == list(self._plan)[-1]:
            for other, planner in self._planners.items():
                if other not in self._plan and planner.bytes_per_cost is not None:
                    planner.bytes_per_cost *= change

    def _divide(
        self, widths: Mapping[str | None, int], budget: float | None, now: float
    ) -> dict[str | None, PictureSize]:
        ids = list(widths)
        for count in range(len(ids), 1, -1):
            *below, top = ids[:count]
            rest = None if budget is None else budget - sum(self._usual(widths, below))
            step = self._planners[top].plan(widths[top], rest, now)
            is_worth_it = self._is_worth_sending(top, step, rest, widths[below[-1]])
            if is_worth_it and self._stays[top].may_come(now):
                usual = {each: self._planners[each].plan_usual(widths[each]) for each in below}
                return {**usual, top: step}
        smallest = ids[0]
        return {smallest: self._planners[smallest].plan(widths[smallest], budget, now)}

    def _usual(self, widths: Mapping[str | None, int], below: list[str | None]) -> list[float]:
        """The bytes of these layers where they are not the largest."""
        return [self._planners[each].bytes_of(usual_step(widths[each])) for each in below]

    def _is_worth_sending(
        self, top: str | None, step: PictureSize, rest: float | None, width_below: int
    ) -> bool:
        spare = 1.0 if top in self._plan else SPARE
        fits = rest is None or self._planners[top].bytes_of(step) * spare <= rest
        return fits and step.width >= MIN_WIDTH_RATIO * width_below

    def _estimate(self) -> None:
        """Expect of layers of which nothing was sent what others take."""
        known = [each.bytes_per_cost for each in self._planners.values() if each.has_sent]
        for planner in self._planners.values():
            if known and not planner.has_sent:
                planner.bytes_per_cost = known[0]
