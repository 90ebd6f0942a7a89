"""Chooses the layer of each picture for one subscription. No I/O, no tasks.

A stream may bring each picture in several sizes, its layers. A subscription gets one of them: the
largest that its connection carries often enough. How often that is depends on the width: a large
picture is worth its bytes only near the full rate, while a small one may come four times a second.

    takes(layer) = bytes of a frame, and of what else the connection carries till the next, by its
        bandwidth
    limit(layer) = 80 / width in seconds: 0.25 for 320 pixels, 0.0625 for 1280

Where frames build on one another none can be left out, so there a layer has to come as fast as the
stream does, too: its limit is at most the time between two pictures of the stream.

The rules, and why they are there:

- Down: when the target takes longer than its limit for a while, or far longer. To the largest layer
  that keeps well below its limit.
- Up: when a larger one would keep even further below its limit for a while; by two at once, too.
  Between going up and down is room, and layers differ in size by more than noise does, so there is
  no bandwidth at which a choice swings between two.
- A step up that did not last is followed by a pause before the next, twice as long each time.
  Nothing but real pictures finds out what a link carries, and a failed attempt can be seen.
- After an answer that was late by far the link is unknown: it had a gap, or is slower now. Until
  answers to small pictures tell which, the choice is careful: the smallest, and the target stays.
- A layer may not flow: the producer may not have heard yet that somebody needs it, may be out of
  time for it, or have stopped. Then the viewer gets the nearest smaller layer, and where there is
  none for a while, the nearest larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from attrs import define, field, frozen

LIMIT_WIDTH_SECONDS = 80.0
"""Pixels of width by seconds: what a picture may take on the link, at most, by its width."""
DOWN_TO, UP_TO = 0.8, 0.64
"""The parts of its limit that a layer may take for a step down to it, and up."""
DELTAS_DOWN_TO, DELTAS_UP_TO = 0.9, 0.88
"""The same where frames build on one another: how many bytes come is up to their encoder, which
keeps to its rate."""
FAR_TOO_LONG = 1.6
"""The part of its limit that is not endured for `DOWN_AFTER`."""
DOWN_AFTER, UP_AFTER = 0.25, 0.3
"""Seconds for which the target takes too long, or a larger layer would fit, before a step."""
UP_AFTER_FAILURE = 1.0
"""The same for a larger layer after a step up that did not last: small frames measure a link badly
where there is jitter, and what they say for a moment has been wrong once."""
FAR_DOWN_AFTER = 0.05
"""Seconds for which the target may take far too long. What is under way may be in a gap, and then
the choice becomes careful instead. Meanwhile the pacer holds frames back."""

MIN_RISE_PAUSE, MAX_RISE_PAUSE = 3.0, 60.0
"""Seconds between a step down and the next one up, if there is to be a pause."""
SHORT_STAY, LONG_STAY = 10.0, 60.0
"""Seconds after a step up: one that did not last doubles the pause, one that did ends it."""

CAREFUL_PICTURES = 3
"""Pictures after a doubt until the bandwidth is believed again."""
MAX_CAREFUL_WAIT = 0.25
"""Seconds for which to wait for the smallest layer to flow, while careful."""
MAX_WAIT_FOR_SMALLER = 1.0
"""Seconds without the target, or any smaller layer, before a viewer gets a larger one."""
MAX_WAIT_FOR_BANDWIDTH = 2.0
"""Seconds of a new viewer after which an unknown bandwidth is taken for enough."""

USUAL_WIDTH = 1280
"""Pixels, of the largest layer where the producer says no width."""


@frozen
class LayerOption:
    """What a choice knows of one layer."""

    width: int | None
    """Pixels; None if the producer did not say."""
    size: float
    """Usual bytes of a frame."""
    flows: bool
    """Whether frames of it came with the last pictures."""
    delta_period: float | None = None
    """Seconds between two frames, if they build on one another; None if each stands for itself."""

    @property
    def down_to(self) -> float:
        """The part of its limit that it may take for a step down to it."""
        return DOWN_TO if self.delta_period is None else DELTAS_DOWN_TO

    @property
    def up_to(self) -> float:
        """The same for a step up."""
        return UP_TO if self.delta_period is None else DELTAS_UP_TO


def supposed_width(layers: Sequence[LayerOption], index: int) -> float:
    """The width of a layer; where it is not said, by its place: each is half as wide as the next.

    It is measured from the nearest layer above whose width is said, else from the nearest below,
    else the largest is as wide as usual.
    """
    for above in range(index, len(layers)):
        width = layers[above].width
        if width is not None:
            return width / 2.0 ** (above - index)
    for below in range(index - 1, -1, -1):
        width = layers[below].width
        if width is not None:
            return width * 2.0 ** (index - below)
    return USUAL_WIDTH / 2.0 ** (len(layers) - 1 - index)


@define(eq=False)
class LayerChoice:
    """Chooses a layer for each picture of one subscription.

    Layers are given the cheapest first, at least one. They may be others at each call. All times
    are seconds of one clock.
    """

    begins_with_largest: bool = False
    """Whether a new viewer begins with the largest layer: its others are made only when needed."""
    max_width: int | None = None
    """Pixels: no layer that is wider, if there is one that is not."""
    layer: int | None = None
    """The only layer that the viewer wants, if it does not leave the choice to the relay."""
    target: int = field(default=0, init=False)
    """The layer that this subscription should get, which is to be asked of the producer."""
    careful: bool = field(default=False, init=False)
    """Whether the viewer gets the smallest layer for now, which is to be asked of the producer,
    too."""
    raised_at: float = field(default=-math.inf, init=False)
    """When the target was last raised."""
    _lowered_at: float = field(default=-math.inf, init=False)
    _pause: float = field(default=0.0, init=False)
    """Seconds from there to the next step up."""
    _failed: bool = field(default=False, init=False)
    """Whether the last step up did not last."""
    _too_long_since: float | None = field(default=None, init=False)
    _fits_since: float | None = field(default=None, init=False)
    _lacking_since: float | None = field(default=None, init=False)
    """Since when neither the target nor any smaller layer flows."""
    _careful_since: float = field(default=0.0, init=False)
    _sure_since: float = field(default=0.0, init=False)
    _sure_pictures: int = field(default=0, init=False)
    """How many there were since the last doubt."""
    _unknown_since: float | None = field(default=None, init=False)
    _bandwidth_known: bool = field(default=False, init=False)
    _count: int = field(default=0, init=False)
    """How many layers there were, and how wide the target was."""
    _width: int | None = field(default=None, init=False)

    def choose(
        self,
        now: float,
        layers: Sequence[LayerOption],
        *,
        bandwidth: float | None,
        late: bool,
        period: float,
        others: float = 0.0,
        round_trip: float = 0.0,
        may_rise: bool = True,
    ) -> int:
        """The layer for the picture that comes now. Call this once a picture, before its first
        frame.

        bandwidth: bytes a second of the connection; `math.inf` where it is known to be enough for
            anything. None while it is unknown: then a new viewer stays as it began for a while.
        late: whether the bandwidth is in doubt, since an answer was late by far, or is.
        period: the least seconds between two pictures of this subscription.
        others: bytes that the connection carries between two pictures, of other subscriptions.
        round_trip: seconds that an answer takes besides; what is sent after a doubt is answered no
            sooner.
        may_rise: whether a step up may be taken now. One that is due is taken when it may.

        The layer that is returned may not flow: then this picture is left out.
        """
        top = self.revise(layers)
        if self.layer is not None:
            self.careful = False
            return self._flowing(now, layers)
        if bandwidth is None:
            bandwidth = self._unknown_bandwidth(now)
        elif not self._bandwidth_known:
            self._bandwidth_known = True
            # The first frame alone took so long: another as large need not show it again. Twice,
            # since a difference of two times is not exact.
            self._too_long_since = now - 2 * FAR_DOWN_AFTER
        if late:
            self._doubt(now)
        if bandwidth is not None:
            share = partial(share_of_limit, layers, bandwidth, period, others)
            self._look_at_target(now, share(self.target))
            if self.careful and not late:
                seconds = layers[0].size / bandwidth if bandwidth else math.inf
                self._look_whether_sure(now, seconds, round_trip)
            if not self.careful:
                self._step_down(now, layers, share)
                self._step_up(now, layers[: top + 1], share, may_rise=may_rise)
                self._width = layers[self.target].width
        return self._flowing(now, layers)

    def go_on_from(self, before: LayerChoice) -> None:
        """Count from when neither the target nor any smaller layer flowed among others: layers may
        change all the time, and nothing else may ever come."""
        self._lacking_since = before._lacking_since

    def was_blind(
        self, layers: Sequence[LayerOption], bandwidth: float | None, period: float
    ) -> bool:
        """Whether the target was chosen while the bandwidth was unknown, and takes far too long now
        that it is known, so that a frame of it that waits is not to be sent."""
        if self._bandwidth_known or bandwidth is None or self.layer is not None or not self.target:
            return False
        return share_of_limit(layers, bandwidth, period, 0.0, self.target) > FAR_TOO_LONG

    def revise(self, layers: Sequence[LayerOption]) -> int:
        """Bring the target in line with the terms and with these layers; returns the largest that
        the viewer has a use for."""
        target, count = self.target, len(layers)
        if count != self._count or layers[target].width != self._width:
            target = self._same_in(layers)
            self._too_long_since = self._fits_since = self._lacking_since = None
        if self.layer is not None:
            top = target = max(0, min(self.layer, count - 1))
        else:
            top = self._largest_allowed(layers)
            target = min(target, top)
        self.target, self._count, self._width = target, count, layers[target].width
        return top

    def _same_in(self, layers: Sequence[LayerOption]) -> int:
        """What is most like the target among other layers than before."""
        last = len(layers) - 1
        if not self._count:
            return last if self.begins_with_largest else 0
        if self._width is None or layers[last].width is None:
            return max(0, last - (self._count - 1 - self.target))
        for index in range(last, 0, -1):
            if supposed_width(layers, index) <= self._width:
                return index
        return 0

    def _largest_allowed(self, layers: Sequence[LayerOption]) -> int:
        top = len(layers) - 1
        if self.max_width is not None:
            while top and supposed_width(layers, top) > self.max_width:
                top -= 1
        return top

    def _unknown_bandwidth(self, now: float) -> float | None:
        """What to take an unknown bandwidth for."""
        if self._bandwidth_known:
            return math.inf
        if self._unknown_since is None:
            self._unknown_since = now
        return math.inf if now - self._unknown_since >= MAX_WAIT_FOR_BANDWIDTH else None

    def _doubt(self, now: float) -> None:
        if not self.careful:
            self.careful, self._careful_since = True, now
        self._sure_pictures, self._sure_since = 0, now
        self._fits_since = None

    def _look_whether_sure(self, now: float, seconds: float, round_trip: float) -> None:
        """Believe the bandwidth again when there was time for a few answers to the smallest
        pictures, which take so long."""
        self._sure_pictures += 1
        answers = CAREFUL_PICTURES - 1  # the first one ended the doubt
        enough = self._sure_pictures > CAREFUL_PICTURES
        self.careful = not (enough and now - self._sure_since >= round_trip + answers * seconds)
        if not self.careful and self._too_long_since is not None:
            # Nothing was seen of the target meanwhile: a link that is far too slow shows at once.
            self._too_long_since = min(self._too_long_since, now - FAR_DOWN_AFTER)

    def _look_at_target(self, now: float, share: float) -> None:
        if not self.target or share <= 1:
            self._too_long_since = None
        elif self._too_long_since is None:
            self._too_long_since = now

    def _step_down(
        self, now: float, layers: Sequence[LayerOption], share: Callable[[int], float]
    ) -> None:
        since = self._too_long_since
        if since is None:
            return
        endured = now - since
        if endured < FAR_DOWN_AFTER or (
            endured < DOWN_AFTER and share(self.target) <= FAR_TOO_LONG
        ):
            return
        if self.raised_at >= self._lowered_at:
            self._set_pause(now - self.raised_at)
        below = range(self.target - 1, 0, -1)
        self.target = next((each for each in below if share(each) <= layers[each].down_to), 0)
        self._lowered_at = now
        self._too_long_since = self._fits_since = None

    def _set_pause(self, stayed: float) -> None:
        """Set the pause before the next step up, after a last one that went well for so long."""
        self._failed = stayed < SHORT_STAY
        if stayed >= LONG_STAY:
            self._pause = 0.0
        elif stayed >= SHORT_STAY:
            self._pause = max(MIN_RISE_PAUSE, self._pause)
        else:
            self._pause = min(MAX_RISE_PAUSE, max(MIN_RISE_PAUSE, 2 * self._pause))

    def _step_up(
        self,
        now: float,
        allowed: Sequence[LayerOption],
        share: Callable[[int], float],
        *,
        may_rise: bool,
    ) -> None:
        above = range(len(allowed) - 1, self.target, -1)
        target = next((each for each in above if share(each) <= allowed[each].up_to), None)
        if target is None:
            self._fits_since = None
        elif self._fits_since is None:
            self._fits_since = now
        elif (
            may_rise
            and now - self._fits_since >= (UP_AFTER_FAILURE if self._failed else UP_AFTER)
            and now - self._lowered_at >= self._pause
        ):
            self.target, self.raised_at = target, now
            self._too_long_since = self._fits_since = None

    def _flowing(self, now: float, layers: Sequence[LayerOption]) -> int:
        """The layer for a picture: what is wanted, or the nearest that flows."""
        target = self.target
        if self.careful:
            if layers[0].flows or now - self._careful_since < MAX_CAREFUL_WAIT:
                return 0
            nearest = next((each for each in range(target + 1) if layers[each].flows), None)
        elif layers[target].flows:
            nearest = target
        else:
            below = range(target - 1, -1, -1)
            nearest = next((each for each in below if layers[each].flows), None)
        if nearest is not None:
            self._lacking_since = None
            return nearest
        if self._lacking_since is None:
            self._lacking_since = now
        if now - self._lacking_since < MAX_WAIT_FOR_SMALLER:
            return target
        above = range(target + 1, len(layers))
        return next((each for each in above if layers[each].flows), target)


def share_of_limit(
    layers: Sequence[LayerOption], bandwidth: float, period: float, others: float, index: int
) -> float:
    """How long a frame in this layer takes, in parts of its limit."""
    option = layers[index]
    width = option.width or supposed_width(layers, index)
    limit = max(LIMIT_WIDTH_SECONDS / width, period)
    if option.delta_period is not None:
        limit = min(LIMIT_WIDTH_SECONDS / width, option.delta_period)
    carried = bandwidth * limit
    return (option.size + others) / carried if carried else math.inf
