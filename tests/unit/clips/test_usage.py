"""How much of stills and clips may be kept."""

from __future__ import annotations

import pytest

from relay.clips.usage import PictureUsage


@pytest.mark.parametrize(
    ("of_ann", "of_bob", "has_room", "too_much"),
    [(0, 0, True, False), (1100, 0, True, True), (1200, 0, False, True), (0, 2450, False, True)],
)
def test_a_little_more_than_the_limit_is_let_pass(
    of_ann: int, of_bob: int, has_room: bool, too_much: bool
) -> None:
    usage = PictureUsage(1000, 2000)
    usage.read({"ann": of_ann, "bob": of_bob})
    assert usage.has_room("ann", 100) is has_room
    assert usage.too_much is too_much


def test_what_is_written_counts_before_it_is_read_again() -> None:
    usage = PictureUsage(1000, 2000)
    usage.add("ann", 1200)
    assert not usage.has_room("ann", 100)
    assert usage.has_room("bob", 100)
