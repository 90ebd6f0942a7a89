"""A film for a camera, whose pictures say their numbers, and when the camera showed each of them.

A browser whose camera shows a film takes pictures by a clock of its own, and codecs change them. So
each picture of film.py carries its number, as black and white blocks that survive coding and
scaling: in a strip at the top, which is not compared. Needs numpy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
from attrs import define, field
from film import FPS, HEIGHT, PICTURES, WIDTH, Luma, Scene

BLOCK_PIXELS = 32
"""A side of a block, in a picture of the full size; a quarter of it in one of 320 pixels."""
BITS = 9
"""In a Gray code: from one picture to the next a single block changes, which costs few bits."""
BLACK, WHITE = 16, 235
UNSURE = range(96, 156)
"""Means of a block that are neither black nor white: the picture is broken, or of two pictures."""
MAX_JUMP_SECONDS = 1.0
"""By which the camera's number may differ from what passed on its clock, since the picture before;
if it differs by more, the number was misread."""


def write_film(path: Path, scene: Scene, numbers: Iterable[int] = range(PICTURES)) -> None:
    """Write pictures as YUV4MPEG2, which browsers take for a camera, with their numbers."""
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{FPS:.0f}:1 Ip A1:1 C420\n".encode())
        for number in numbers:
            luma = scene.luma(number)
            draw_number(luma, number)
            planes = luma, *scene.chroma(number)
            file.write(b"FRAME\n" + b"".join(plane.tobytes() for plane in planes))


def draw_number(luma: Luma, number: int) -> None:
    """Draw the number of a picture of the full size on it."""
    number %= PICTURES
    gray = number ^ (number >> 1)
    for bit in range(BITS):
        left = bit * BLOCK_PIXELS
        block = luma[:BLOCK_PIXELS, left : left + BLOCK_PIXELS]
        block[:] = WHITE if gray >> bit & 1 else BLACK


def read_number(luma: Luma) -> int | None:
    """The number on a picture of any size, from 0 to `PICTURES`; None if it cannot be read."""
    side = BLOCK_PIXELS * luma.shape[1] / WIDTH
    gray = 0
    for bit in range(BITS):
        # The edges of a block are blurred.
        left, right = round((bit + 0.25) * side), round((bit + 0.75) * side)
        mean = round(float(luma[round(0.25 * side) : round(0.75 * side), left:right].mean()))
        if mean in UNSURE:
            return None
        gray |= (mean >= UNSURE.stop) << bit
    number = gray
    while gray := gray >> 1:
        number ^= gray
    return number if number < PICTURES else None


def picture_below(luma: Luma) -> Luma:
    """What is compared of a picture of the full size."""
    return luma[BLOCK_PIXELS:]


@define(eq=False)
class CameraClock:
    """When a camera showed each picture of the film, which it plays again and again.

    It is told what a page saw of it, and when: at some time after the camera showed that picture. A
    camera that is late goes on from there, and is never early. So the time by which picture 0 would
    have been shown only grows, and for a picture it is no later than what all later ones say.
    """

    _seen: list[tuple[int, float]] = field(factory=list)
    """Numbers, counted on through all rounds of the film, and when each was seen; in seconds."""
    _origins: list[float] | None = None

    def add(self, number: int, at: float) -> None:
        """Note the number that was on a picture, as it was read, and when it was taken; in order.
        What cannot be is ignored."""
        if not self._seen:
            self._seen.append((number, at))
            return
        last, last_at = self._seen[-1]
        counted = last + (number - last) % PICTURES
        if abs((counted - last) / FPS - (at - last_at)) <= MAX_JUMP_SECONDS:
            self._seen.append((counted, at))
            self._origins = None

    @property
    def is_known(self) -> bool:
        """Whether it was told anything."""
        return bool(self._seen)

    def numbers(self, start: float, end: float) -> Sequence[int]:
        """The pictures that were shown in this time."""
        first, last = self.number_at(start), self.number_at(end)
        times = ((number, self.shown_at(number)) for number in range(first - 1, last + 2))
        return [number for number, at in times if start <= at < end]

    def number_at(self, when: float) -> int:
        """About the picture that was shown then."""
        return round((when - self._origin_at(when)) * FPS)

    def counted(self, number: int, at: float) -> int:
        """The number of a picture that was taken then, counted on, by what was read on it."""
        expected = self.number_at(at)
        return number + PICTURES * round((expected - number) / PICTURES)

    def shown_at(self, number: int) -> float:
        """When a picture was shown; its number is counted on."""
        return self._origin_of(number) + number / FPS

    def _origin_of(self, number: int) -> float:
        return self._origin(bisect_left(self._seen, number, key=itemgetter(0)))

    def _origin_at(self, when: float) -> float:
        return self._origin(bisect_left(self._seen, when, key=itemgetter(1)))

    def _origin(self, index: int) -> float:
        origins = self._all_origins()
        return origins[min(index, len(origins) - 1)]

    def _all_origins(self) -> list[float]:
        if self._origins is None:
            told = [at - number / FPS for number, at in reversed(self._seen)]
            self._origins = [float(each) for each in np.minimum.accumulate(told)][::-1]
        return self._origins
