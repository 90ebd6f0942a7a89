"""Which frames of a stream with layers one subscription gets: at most one of each picture."""

from __future__ import annotations

import math
from typing import Self

import trio
from attrs import define, field

from relay.hub.flow_control import FlowControlOptions
from relay.hub.layers.choice import LayerChoice
from relay.hub.layers.layer_set import LayerSet
from relay.transport.outlet import ByteRate, Outlet
from relay.transport.pacing import Pacer

RISE_INTERVAL = 1.0
"""Seconds between steps up to a larger layer, of subscriptions that share a connection."""

MAX_SMALL_SECONDS = 0.25
"""Until the next picture, where a viewer begins with a smaller one than its link may carry."""


@define(eq=False)
class LayerSelection:
    """The choice of one subscription, and how far it has come."""

    layers: LayerSet
    choice: LayerChoice
    seq: int
    """Of the last picture that was begun."""
    _period: float
    """The least seconds between two pictures."""
    _adapts: bool
    """Whether it goes by what the link carries."""
    awaited: int | None = None
    """The layer of a picture whose frame is still to come."""
    awaited_seq: int = 0
    """Of that picture."""
    sent: int | None = None
    """The layer of the last frame that went out: deltas build on it."""
    goes_on: bool = False
    """Whether deltas go on in that layer, though another was chosen, until a keyframe."""
    _blind_seq: int = field(default=0, init=False)
    """Of the last picture whose layer was chosen while nothing was known of the link."""
    _needs: frozenset[int] = field(default=frozenset(), init=False)
    """The layers that are asked for."""

    @classmethod
    def begin(
        cls, layers: LayerSet, seq: int, options: FlowControlOptions, *, adapts: bool
    ) -> Self:
        """Choose from these layers of each picture behind `seq`."""
        choice = LayerChoice(
            begins_with_largest=not (adapts and layers.from_producer),
            max_width=options.max_width,
            layer=None if options.layer is None else layers.index_of(options.layer),
        )
        choice.revise(layers.options())
        return cls(layers, choice, seq, options.period or 0.0, adapts)

    def choose(self, pacer: Pacer | None, outlet: Outlet, byte_rate: ByteRate) -> int:
        """The layer for the picture that begins now. Other subscriptions of the connection send
        what the outlet sends beyond this one's bytes a second at a time."""
        now, choice = trio.current_time(), self.choice
        others = max(0.0, outlet.paced_rate(now) - byte_rate.at(now))
        bandwidth = self._bandwidth(pacer, now)
        if bandwidth is None:
            self._blind_seq = self.seq
        alone = outlet.raised_at in {-math.inf, choice.raised_at}
        chosen = choice.choose(
            now,
            self.layers.options(),
            bandwidth=bandwidth,
            late=self._adapts and pacer is not None and pacer.is_in_doubt(now),
            period=self._period,
            others=others * self.layers.period,
            round_trip=0.0 if pacer is None else pacer.round_trip,
            may_rise=alone or now - outlet.raised_at > RISE_INTERVAL,
        )
        if pacer is not None:
            outlet.raised_at = max(outlet.raised_at, choice.raised_at)
        return chosen

    def may_begin_small(self, pacer: Pacer | None) -> bool:
        """Whether the first picture should be the smallest that there is, though the next one will
        be as large as the target: on a link of which nothing is known it is there the soonest."""
        if pacer is None or not self._adapts or self.restricted:
            return False
        is_soon_replaced = 0 < self.layers.period <= MAX_SMALL_SECONDS
        return is_soon_replaced and pacer.bandwidth(trio.current_time()) is None

    def was_blind(self, seq: int, index: int, pacer: Pacer | None) -> bool:
        """Whether a frame that waits, of this picture and layer, is far too large for the link, as
        is known only now."""
        if seq <= self._blind_seq and self.choice.layer is None and index > self.choice.target:
            return True  # the choice has changed meanwhile
        bandwidth = self._bandwidth(pacer, trio.current_time())
        return self.choice.was_blind(self.layers.options(), bandwidth, self._period)

    def _bandwidth(self, pacer: Pacer | None, now: float) -> float | None:
        """Bytes a second that the link carries: infinite where it need not be known, None while it
        may become known."""
        if pacer is None or not self._adapts or (pacer.calm and not pacer.answering):
            return math.inf
        return pacer.bandwidth(now)

    @property
    def restricted(self) -> bool:
        """Whether the subscriber asked for other layers than the largest that its link carries."""
        return self.choice.layer is not None or self.choice.max_width is not None

    @property
    def takes_largest(self) -> bool:
        """Whether all frames of the largest layer can be offered without asking."""
        choice = self.choice
        smaller = choice.careful or choice.target < self.layers.top
        return not (self.layers.from_producer or self.restricted or smaller)

    def update_needs(self) -> None:
        """Ask for the layers that are needed now, and for no others."""
        wanted = {self.choice.target}
        if self.choice.careful:
            wanted.add(0)
        if self.goes_on and self.sent is not None:
            wanted.add(self.sent)
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
