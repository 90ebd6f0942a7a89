"""A viewer of a stream with layers, over a link in virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import define, field, frozen

from relay.hub.layers.choice import LayerChoice, LayerOption
from tests.unit.transport.link_model import LinkModel, Sender

WIDTHS = (320, 640, 1280)
SIZES = (8_500, 27_000, 67_000)
"""Bytes of a frame."""
FPS = 25.0
STARTS_AFTER, STOPS_AFTER = 0.17, 2.0
"""Seconds after which a layer flows that is needed on demand, and ends that is not any more."""
SMOOTHING = 0.1


@frozen
class Shown:
    """A picture that went to the viewer."""

    layer: int
    captured: float
    sent: float
    arrived: float


@define
class LayeredSender(Sender):
    """Sends each picture in the layer that a choice says."""

    choice: LayerChoice = field(factory=LayerChoice)
    widths: Sequence[int | None] = WIDTHS
    sizes: Sequence[float] = SIZES
    spread: float = 0.0
    """By what part of its size a frame may be larger or smaller than usual."""
    supposed: Sequence[float] | None = None
    """Sizes as they are supposed to be before a layer flows; None if they are known."""
    on_demand: bool = False
    """Whether layers flow only while they are needed."""
    period: float = 0.0
    shown: list[Shown] = field(factory=list)
    targets: list[tuple[float, int]] = field(factory=list)
    """When the target became which."""
    chosen: int = 0
    _usual: list[float] = field(factory=list)
    _needed_at: list[float] = field(factory=lambda: [math.inf] * 4)
    _needed_until: list[float] = field(factory=lambda: [-math.inf] * 4)

    def _flows(self, index: int, now: float) -> bool:
        if not self.on_demand:
            return True
        started = now >= self._needed_at[index] + STARTS_AFTER
        return started and now <= self._needed_until[index] + STOPS_AFTER

    def _need(self, index: int, now: float) -> None:
        if now > self._needed_until[index] + STOPS_AFTER:
            self._needed_at[index] = now
        self._needed_until[index] = now

    def _capture(self, now: float) -> None:
        factors = [1 + self.spread * (2 * self.random.random() - 1) for _ in self.sizes]
        sizes = [size * each for size, each in zip(self.sizes, factors, strict=True)]
        flowing = [self._flows(index, now) for index in range(len(sizes))]
        if not self._usual:
            self._usual = list(self.supposed or self.sizes)
        usual = self._usual
        for index, size in enumerate(sizes):
            if flowing[index]:
                usual[index] += SMOOTHING * (size - usual[index])
        options = [
            LayerOption(width, size, flows)
            for width, size, flows in zip(self.widths, usual, flowing, strict=True)
        ]
        layer = self._choose(now, options)
        if not self.targets or self.targets[-1][1] != self.choice.target:
            self.targets.append((now, self.choice.target))
        self._need(self.choice.target, now)
        if self.choice.careful:
            self._need(0, now)
        if flowing[layer]:
            self.chosen, self._size_waiting = layer, round(sizes[layer])
            self._waiting = now
        self._at(now + 1 / FPS, self._capture)
        self._look(now)

    _size_waiting: int = 0

    def _choose(self, now: float, options: Sequence[LayerOption]) -> int:
        pacer = self.pacer
        assert pacer is not None
        bandwidth = pacer.bandwidth(now)
        if not pacer.answering and pacer.calm:
            bandwidth = math.inf
        return self.choice.choose(
            now,
            options,
            bandwidth=bandwidth,
            late=pacer.is_in_doubt(now),
            period=self.period,
            round_trip=pacer.round_trip,
        )

    def _send(self, now: float, captured: float) -> None:
        self.frame_size = self._size_waiting
        Sender._send(self, now, captured)
        self.shown.append(Shown(self.chosen, captured, now, self.deliveries[-1].arrived))

    def _count_answered(self, now: float) -> None:
        """What is under way is not looked at here."""


def viewer(link: LinkModel, **options: object) -> LayeredSender:
    return LayeredSender(link, SIZES[0], FPS, **options)  # type: ignore[arg-type]
