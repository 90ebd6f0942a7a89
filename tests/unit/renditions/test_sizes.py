from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.renditions.sizes import plan_sizes


@pytest.mark.parametrize(
    ("source", "widths", "sizes"),
    [
        ((1280, 720), [640, 320], [(640, 360), (320, 180)]),
        ((1280, 720), [320], [(320, 180)]),
        ((1920, 1080), [640, 320], [(720, 405), (360, 203)]),
        ((1080, 1920), [640, 320], [(675, 1200), (338, 600)]),
        ((640, 480), [], []),
        ((2, 2), [1], [(1, 1)]),
    ],
)
def test_the_sizes_are_eighths_of_the_picture_before(
    source: tuple[int, int], widths: list[int], sizes: list[tuple[int, int]]
) -> None:
    assert plan_sizes(source, widths) == sizes


@given(st.integers(16, 4096), st.integers(1, 4096), st.data())
def test_the_width_is_near_the_wanted_one_down_to_an_eighth(
    width: int, height: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.integers(max(width // 8, 8), width))
    ((found, found_height),) = plan_sizes((width, height), [wanted])
    assert 1 / 1.5 <= found / wanted <= 1.5
    assert abs(found_height - height * found / width) <= 1 + height / width
