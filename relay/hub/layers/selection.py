"""Which frames of a stream with layers one subscription gets: at most one of each picture."""

from __future__ import annotations

from attrs import define, field

from relay.hub.layers.choice import LayerChoice
from relay.hub.layers.layer_set import LayerSet


@define(eq=False)
class LayerSelection:
    """The choice of one subscription, and how far it has come."""

    layers: LayerSet
    choice: LayerChoice
    seq: int = 0
    """Of the last picture that was begun."""
    awaited: int | None = None
    """The layer of a picture whose frame is still to come."""
    awaited_seq: int = 0
    """Of that picture."""
    sent: int | None = None
    """The layer of the last frame that went out: deltas build on it."""
    _needs: frozenset[int] = field(default=frozenset(), init=False)
    """The layers that are asked for."""

    @property
    def restricted(self) -> bool:
        """Whether the subscriber asked for other layers than the largest that its link carries."""
        return self.choice.layer is not None or self.choice.max_width is not None

    @property
    def takes_largest(self) -> bool:
        """Whether all frames of the largest layer can be offered without asking."""
        return not (
            self.layers.from_producer or self.restricted or self.choice.target < self.layers.top
        )

    def update_needs(self) -> None:
        """Ask for the layers that are needed now, and for no others."""
        wanted = {self.choice.target, 0} if self.choice.careful else {self.choice.target}
        self._need(frozenset(wanted))

    def leave(self) -> None:
        """Ask for no layer any more."""
        self._need(frozenset())

    def await_frame(self, index: int, seq: int) -> None:
        """Wait for a frame of this picture."""
        self.awaited, self.awaited_seq = index, seq

    def _need(self, wanted: frozenset[int]) -> None:
        before, self._needs = self._needs, wanted
        for index in wanted - before:
            self.layers.need(index, 1)
        for index in before - wanted:
            self.layers.need(index, -1)
