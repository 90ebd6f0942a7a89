"""Which frames a phone sends of each picture: the layers that are needed, and keyframes or deltas.
No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import define, field, frozen


@frozen
class PlannedFrame:
    """One frame of a picture."""

    index: int
    """Of its layer, the smallest being 0; 0 where there are no layers."""
    layer: str | None
    """The id of the layer that it is sent as; None if it is sent without one."""
    base: int | None
    """Number of the picture whose frame in the same layer it builds on; None for a keyframe."""


@define(eq=False)
class FramePlan:
    """The pictures of one connection of a phone.

    All frames of a picture are keyframes, or none is. A layer begins with a keyframe, so all of
    them do when one is needed that was not.
    """

    layers: Sequence[str] = ()
    """Those that the phone has, by their ids, the smallest first."""
    keyframe_every: int | None = None
    """Pictures from one keyframe to the next; None if there are no deltas."""
    _needed: Sequence[int] = field(init=False)
    _untold: bool = field(init=False)
    """Whether frames say no layer."""
    _after_keyframe: int = 0
    """Pictures since the last keyframe, which is counted."""
    _before: Mapping[int, int] = field(factory=dict)
    """The number of the picture before, by the layers in which it was sent."""

    def __attrs_post_init__(self) -> None:
        self._needed = () if self.layers else (0,)
        self._untold = not self.layers

    def need(self, layers: Sequence[str]) -> None:
        """Send these layers from now on; those that the phone does not have are ignored."""
        if not self._untold:
            self._needed = [n for n, each in enumerate(self.layers) if each in layers]

    def send_keyframe_next(self) -> None:
        """Let the next picture be a keyframe."""
        self._before = {}

    def send_largest_alone(self) -> None:
        """Send the largest layer without its id, to a relay that knows no layers."""
        self._needed, self._untold = (max(0, len(self.layers) - 1),), True

    def frames(self, number: int) -> list[PlannedFrame]:
        """The frames of the next picture, which has this number; none if no layer is needed."""
        if not self._needed:
            return []
        is_keyframe = (
            self.keyframe_every is None
            or self._after_keyframe >= self.keyframe_every
            or any(index not in self._before for index in self._needed)
        )
        self._after_keyframe = 1 if is_keyframe else self._after_keyframe + 1
        before, self._before = self._before, dict.fromkeys(self._needed, number)
        return [
            PlannedFrame(
                index,
                None if self._untold else self.layers[index],
                None if is_keyframe else before[index],
            )
            for index in self._needed
        ]
