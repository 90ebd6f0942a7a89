"""A film to measure with, in three sizes, and how like it is what a viewer sees of it.

The film is synthetic: nobody has to fetch or to license one, and it is the same everywhere. A
textured background pans slowly, things with edges and texture move in front of it at different
speeds, and there is a little noise, as of a camera. Its JPEG pictures are about as large as those
of a cartoon of that size. Needs numpy and simplejpeg.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import simplejpeg
from attrs import define, field, frozen
from numpy.typing import NDArray

WIDTH, HEIGHT = 1280, 720
FPS = 25.0
PICTURES = 260
"""Then it begins anew: a picture that is older than 10.4 s might look right by chance."""
LAYERS = (("l", 320, 67), ("m", 640, 70), ("h", 1280, 56))
"""Id, width, and the quality of the JPEG pictures, the smallest first."""
SEED = 19
PAN_PIXELS = 0.25
"""The way of the background from one picture to the next."""
SPRITES = 5
NOISE = 0.5
"""Its standard deviation, in steps of brightness."""
NOISE_FIELDS = 8

BLOCK = 4
"""Pixels from one window to the next; each has twice as many a side."""
_C1 = (0.01 * 255) ** 2 * 64
_C2 = (0.03 * 255) ** 2 * 64 * 63

Luma = NDArray[np.uint8]
Plane = NDArray[np.float32]


@frozen
class Sprite:
    """A thing that moves to and fro."""

    texture: Plane
    mask: NDArray[np.bool_]
    tint: tuple[int, int]
    """What it has of blue and red."""
    centre: tuple[float, float]
    swing: tuple[float, float]
    """Pixels to either side of there."""
    turns: tuple[int, int]
    """To and fro in all of the film, across and down."""
    phase: float

    def place(self, number: int) -> tuple[int, int]:
        """The left upper corner in a picture."""
        angle = 2 * math.pi * number / PICTURES
        across, down = self.turns
        height, width = self.mask.shape
        x = self.centre[0] + self.swing[0] * math.sin(across * angle + self.phase) - width / 2
        y = self.centre[1] + self.swing[1] * math.cos(down * angle + self.phase) - height / 2
        return round(x) // 2 * 2, round(y) // 2 * 2  # colours have half the resolution


@define(eq=False)
class Scene:
    """What the film shows."""

    _wide: Plane = field(init=False)
    _blue: Plane = field(init=False)
    _red: Plane = field(init=False)
    _sprites: list[Sprite] = field(init=False)
    _noise: list[Plane] = field(init=False)

    def __attrs_post_init__(self) -> None:
        random = np.random.default_rng(SEED)
        margin = math.ceil(PAN_PIXELS * PICTURES) + 2
        shape = HEIGHT, WIDTH + margin
        self._wide = 118 + 34 * _texture(random, shape, 1.44)
        self._blue = 128 + 10 * _texture(random, (HEIGHT // 2, WIDTH // 2), 2.2)
        self._red = 128 + 10 * _texture(random, (HEIGHT // 2, WIDTH // 2), 2.2)
        for _ in range(40):  # houses, poles: edges that stand still
            x, y = random.integers(0, shape[1] - 40), random.integers(0, HEIGHT - 40)
            width, height = random.integers(8, 120), random.integers(20, 200)
            self._wide[y : y + height, x : x + width] += random.integers(-45, 45)
        self._sprites = [_sprite(random) for _ in range(SPRITES)]
        size = HEIGHT + 32, WIDTH + 32
        self._noise = [
            NOISE * random.standard_normal(size, dtype=np.float32) for _ in range(NOISE_FIELDS)
        ]

    def luma(self, number: int) -> Luma:
        """The brightness of a picture, as a camera without losses has it."""
        offset = round(PAN_PIXELS * (number % PICTURES))
        picture = self._wide[:, offset : offset + WIDTH].copy()
        for sprite in self._sprites:
            x, y = sprite.place(number)
            height, width = sprite.mask.shape
            part = picture[y : y + height, x : x + width]
            np.copyto(part, sprite.texture, where=sprite.mask)
        shift = 7 * number % 32
        noise = self._noise[number % NOISE_FIELDS]
        picture += noise[shift : shift + HEIGHT, 31 - shift : 31 - shift + WIDTH]
        return np.clip(picture, 0, 255).astype(np.uint8)

    def chroma(self, number: int) -> tuple[Luma, Luma]:
        """The colours of a picture, of half its width."""
        blue, red = self._blue.copy(), self._red.copy()
        for sprite in self._sprites:
            x, y = (each // 2 for each in sprite.place(number))
            mask = sprite.mask[::2, ::2]
            height, width = mask.shape
            for plane, tint in zip((blue, red), sprite.tint, strict=True):
                np.copyto(plane[y : y + height, x : x + width], tint, where=mask)
        return np.clip(blue, 0, 255).astype(np.uint8), np.clip(red, 0, 255).astype(np.uint8)


class Film(NamedTuple):
    """The JPEG pictures of each layer, by its id."""

    scene: Scene
    pictures: dict[str, list[bytes]]


def make_film(numbers: Iterable[int] = range(PICTURES)) -> Film:
    """Make these pictures, from the first on."""
    film = Film(Scene(), {layer: [] for layer, _, _ in LAYERS})
    for number in numbers:
        planes: list[Luma] = [film.scene.luma(number), *film.scene.chroma(number)]
        for layer, width, quality in reversed(LAYERS):
            while planes[0].shape[1] > width:
                planes = [_half(plane) for plane in planes]
            jpeg: bytes = simplejpeg.encode_jpeg_yuv_planes(*planes, quality=quality)
            film.pictures[layer].append(jpeg)
    return film


class Shown(NamedTuple):
    """A picture that is compared: what is needed of it, whatever it is compared with."""

    pixels: Plane
    sums: Plane
    """Of the pixels of each window."""
    squares: Plane


def look_at(luma: Luma) -> Shown:
    """Get a picture of the full size ready to be compared."""
    pixels = luma.astype(np.float32)
    return Shown(pixels, _window_sums(pixels), _window_sums(pixels * pixels))


def decode(jpeg: bytes) -> Shown:
    """The picture as a viewer sees it: as large as the original."""
    return look_at(stretched(simplejpeg.decode_jpeg(jpeg, "GRAY", strict=False)[:, :, 0]))


def stretched(luma: Luma) -> Luma:
    """A picture, as large as the original."""
    if luma.shape == (HEIGHT, WIDTH):
        return luma
    pixels = _stretch(_stretch(luma.astype(np.float32), HEIGHT).T, WIDTH).T
    return np.ascontiguousarray(pixels + 0.5).astype(np.uint8)


def ssim(one: Shown, other: Shown) -> float:
    """How like each other two pictures are, up to 1: the structural similarity of their brightness,
    the mean of windows of 8 by 8 pixels that lie 4 apart, as x264 reckons it."""
    both = _window_sums(one.pixels * other.pixels)
    sums = one.sums * other.sums
    powers = one.sums * one.sums + other.sums * other.sums
    variances = 64 * (one.squares + other.squares) - powers
    windows = (2 * sums + _C1) * (2 * (64 * both - sums) + _C2)
    windows /= (powers + _C1) * (variances + _C2)
    return float(windows.mean())


def _texture(random: np.random.Generator, shape: tuple[int, int], slope: float) -> Plane:
    """Noise whose strength falls with the frequency to this power, as in pictures of nature; its
    standard deviation is 1."""
    height, width = shape
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(down, across), 1 / max(shape))
    spectrum = np.fft.rfft2(random.standard_normal(shape)) / frequency**slope
    found = np.fft.irfft2(spectrum, s=shape)
    found -= found.mean()
    texture: Plane = (found / found.std()).astype(np.float32)
    return texture


def _sprite(random: np.random.Generator) -> Sprite:
    height, width = (int(each) // 2 * 2 for each in random.integers((90, 80), (230, 260)))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = np.abs(x) ** 2.6 + np.abs(y) ** 2.6 < 1
    texture = random.integers(60, 200) + 30 * _texture(random, (height, width), 1.4)
    stripes = np.sin(x * random.integers(8, 25) + y * random.integers(0, 15)) > 0
    texture = (texture + random.integers(15, 40) * stripes).astype(np.float32)
    swing = random.uniform((40, 20), (260, 110))
    centre = random.uniform(
        (swing[0] + width / 2 + 4, swing[1] + height / 2 + 4),
        (WIDTH - swing[0] - width / 2 - 4, HEIGHT - swing[1] - height / 2 - 4),
    )
    across, down = (int(each) for each in random.integers(1, 4, 2))
    blue, red = (int(each) for each in random.integers(90, 170, 2))
    return Sprite(
        texture,
        mask,
        (blue, red),
        (float(centre[0]), float(centre[1])),
        (float(swing[0]), float(swing[1])),
        (across, down),
        float(random.uniform(0, 6)),
    )


def _half(plane: Luma) -> Luma:
    """Half as wide and high."""
    rows = plane[0::2].astype(np.uint16) + plane[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)


def _stretch(plane: Plane, height: int) -> Plane:
    """As many rows, between those that there are."""
    at = (np.arange(height) + 0.5) * plane.shape[0] / height - 0.5
    above = np.clip(np.floor(at).astype(int), 0, plane.shape[0] - 1)
    below = np.minimum(above + 1, plane.shape[0] - 1)
    part = np.clip(at - above, 0, 1).astype(np.float32)[:, None]
    stretched: Plane = plane[above] * (1 - part) + plane[below] * part
    return stretched


def _window_sums(plane: Plane) -> Plane:
    """The sums of the windows."""
    rows = plane[0::BLOCK] + plane[1::BLOCK] + plane[2::BLOCK] + plane[3::BLOCK]
    blocks = rows[:, 0::BLOCK] + rows[:, 1::BLOCK] + rows[:, 2::BLOCK] + rows[:, 3::BLOCK]
    pairs = blocks[:-1] + blocks[1:]
    sums: Plane = pairs[:, :-1] + pairs[:, 1:]
    return sums
