"""Gives a large audience other layers to choose from, while other tasks have a turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from attrs import define, field

from relay.concurrency.time_slice import TimeSlice
from relay.hub.layers.layer_set import LayerSet


class LayerUser(Protocol):
    """One who gets one of the layers of each picture."""

    def change_layers(self, layers: LayerSet | None, seq: int) -> None:
        """Get one of these of each picture behind `seq`, unless it has left, or does already."""


@define(eq=False)
class LayerRollout:
    """A change of layers that not all have made yet.

    Until it is over no frame may be offered: it would be of layers that some know nothing of.
    """

    layers: LayerSet | None
    seq: int
    _users: Iterator[LayerUser]
    _stopped: bool = field(default=False, init=False)

    def stop(self) -> None:
        """Leave the rest as it is: there are other layers."""
        self._stopped = True

    async def run(self) -> None:
        """Let the rest make the change. Several tasks may do this at the same time; each ends when
        all have made it, or it was stopped."""
        time_slice = TimeSlice()
        for user in self._users:
            if self._stopped:
                return
            user.change_layers(self.layers, self.seq)
            await time_slice.pause_if_over()
