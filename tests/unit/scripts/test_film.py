"""The film of scripts/film.py, and how like each other it finds pictures."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture(scope="module")
def film() -> Iterator[ModuleType]:
    pytest.importorskip("simplejpeg", reason="there is no wheel for musl")
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("film")
    sys.path.remove(str(FOLDER))
    del sys.modules["film"]


@pytest.fixture(scope="module")
def beginning(film: ModuleType) -> Any:
    """The first pictures of the film."""
    return film.make_film(range(12))


@pytest.mark.parametrize(("layer", "size"), [("l", 8500), ("m", 27_000), ("h", 67_000)])
def test_pictures_are_as_large_as_those_that_layers_were_made_for(
    beginning: Any, layer: str, size: int
) -> None:
    for picture in beginning.pictures[layer]:
        assert len(picture) == pytest.approx(size, rel=0.05)


def test_the_film_is_the_same_each_time(film: ModuleType, beginning: Any) -> None:
    assert film.make_film(range(2)).pictures["m"] == beginning.pictures["m"][:2]


def test_a_picture_is_like_itself_and_like_nothing_without_content(
    film: ModuleType, beginning: Any
) -> None:
    picture = beginning.scene.luma(3)
    shown = film.look_at(picture)
    assert film.ssim(shown, shown) == pytest.approx(1, abs=1e-5)
    assert film.ssim(shown, film.look_at(0 * picture)) < 0.1


def test_a_window_is_compared_as_the_formula_says(film: ModuleType) -> None:
    one = film.np.arange(64, dtype=film.np.uint8).reshape(8, 8)
    other = one[::-1].copy()
    x, y = one.astype(float), other.astype(float)
    means, c1, c2 = (x.mean(), y.mean()), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variances = x.var(ddof=1) + y.var(ddof=1)
    both = ((x - means[0]) * (y - means[1])).sum() / 63
    expected = (2 * means[0] * means[1] + c1) * (2 * both + c2)
    expected /= (means[0] ** 2 + means[1] ** 2 + c1) * (variances + c2)
    assert film.ssim(film.look_at(one), film.look_at(other)) == pytest.approx(expected, rel=1e-3)


def test_smaller_and_older_pictures_are_less_like_the_one_of_the_instant(
    film: ModuleType, beginning: Any
) -> None:
    now = film.look_at(beginning.scene.luma(11))
    shown = [
        *(film.decode(beginning.pictures[layer][11]) for layer in "hml"),
        *(film.decode(beginning.pictures["h"][number]) for number in (10, 8, 0)),
    ]
    like = [film.ssim(now, each) for each in shown]
    assert like[:3] == sorted(like[:3], reverse=True)
    assert [like[0], *like[3:]] == sorted([like[0], *like[3:]], reverse=True)
