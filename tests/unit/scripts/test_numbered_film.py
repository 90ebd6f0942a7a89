"""The film of scripts/numbered_film.py: numbers that survive, and the clock of a camera."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "scripts"
PERIOD = 0.04
ROUND = 260
"""Pictures of the film."""


@pytest.fixture(scope="module")
def film() -> Iterator[ModuleType]:
    pytest.importorskip("simplejpeg", reason="there is no wheel for musl")
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("numbered_film")
    sys.path.remove(str(FOLDER))
    for name in ("numbered_film", "film"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def scene(film: ModuleType) -> Any:
    return film.Scene()


def numbered(film: ModuleType, scene: Any, number: int) -> Any:
    luma = scene.luma(number)
    film.draw_number(luma, number)
    return luma


def smaller(luma: Any, by: int) -> Any:
    height, width = luma.shape
    return luma.reshape(height // by, by, width // by, by).mean(axis=(1, 3)).astype("uint8")


@pytest.mark.parametrize("by", [1, 2, 4])
@pytest.mark.parametrize("number", [0, 1, 127, 128, 259, 260])
def test_the_number_is_read_on_pictures_of_all_sizes(
    film: ModuleType, scene: Any, number: int, by: int
) -> None:
    picture = smaller(numbered(film, scene, number), by)
    assert film.read_number(picture) == number % ROUND


def test_all_numbers_differ_and_neighbours_by_one_block(film: ModuleType, scene: Any) -> None:
    background = scene.luma(0)
    strips = []
    for number in range(ROUND):
        film.draw_number(background, number)
        assert film.read_number(background) == number
        strips.append(background[16, 16 : 9 * 32 : 32] > 128)
    for one, next_one in pairwise(strips):
        assert (one != next_one).sum() == 1


def test_a_picture_that_is_neither_has_no_number(film: ModuleType, scene: Any) -> None:
    one, other = (numbered(film, scene, number).astype(int) for number in (3, 4))
    assert film.read_number(((one + other) // 2).astype("uint8")) is None
    assert film.read_number(scene.luma(0) * 0 + 126) is None


def test_what_is_compared_is_without_the_number(film: ModuleType, scene: Any) -> None:
    plain = scene.luma(5)
    compared = film.picture_below(numbered(film, scene, 5))
    assert (compared == film.picture_below(plain)).all()


def test_a_film_is_written_as_cameras_take_it(film: ModuleType, scene: Any, tmp_path: Path) -> None:
    path = tmp_path / "film.y4m"
    film.write_film(path, scene, [7, 8])
    head, rest = path.read_bytes().split(b"\n", 1)
    assert head == b"YUV4MPEG2 W1280 H720 F25:1 Ip A1:1 C420"
    size = 1280 * 720 * 3 // 2
    assert len(rest) == 2 * (len(b"FRAME\n") + size)
    luma = film.np.frombuffer(rest, "uint8", 1280 * 720, len(b"FRAME\n")).reshape(720, 1280)
    assert film.read_number(luma) == 7


def test_the_clock_is_that_of_the_pictures_that_were_seen_the_soonest(film: ModuleType) -> None:
    clock = film.CameraClock()
    for number in range(1000):
        clock.add(number % ROUND, 50 + number * PERIOD + number * 7 % 30 / 1000)
    for number in (10, 500, 900):
        assert clock.shown_at(number) == pytest.approx(50 + number * PERIOD)
    assert clock.number_at(50 + 600 * PERIOD) == 600
    assert clock.numbers(50 + 99.5 * PERIOD, 50 + 102.5 * PERIOD) == [100, 101, 102]


def test_pictures_that_nobody_saw_were_shown_all_the_same(film: ModuleType) -> None:
    clock = film.CameraClock()
    for number in range(0, 600, 3):
        clock.add(number % ROUND, 50 + number * PERIOD)
    assert clock.shown_at(301) == pytest.approx(50 + 301 * PERIOD)


def test_a_camera_that_was_late_goes_on_from_there(film: ModuleType) -> None:
    clock = film.CameraClock()
    for number in range(200):
        late = 0.3 if number >= 100 else 0.0
        clock.add(number, 50 + number * PERIOD + late + number % 3 / 1000)
    assert clock.shown_at(90) == pytest.approx(50 + 90 * PERIOD)
    assert clock.shown_at(150) == pytest.approx(50 + 150 * PERIOD + 0.3)
    assert clock.number_at(50 + 150 * PERIOD + 0.3) == 150


def test_a_number_that_was_misread_does_not_move_the_clock(film: ModuleType) -> None:
    clock = film.CameraClock()
    for number in range(200):
        clock.add(180 if number == 50 else number, 50 + number * PERIOD)
    assert clock.shown_at(40) == pytest.approx(50 + 40 * PERIOD)
    assert clock.shown_at(199) == pytest.approx(50 + 199 * PERIOD)


def test_the_same_picture_in_another_round_of_the_film_is_another_one(film: ModuleType) -> None:
    clock = film.CameraClock()
    for number in range(1000):
        clock.add(number % ROUND, 50 + number * PERIOD)
    for number in (3, 300, 779, 781):
        assert clock.counted(number % ROUND, 50 + number * PERIOD + 0.03) == number
