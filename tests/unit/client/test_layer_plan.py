"""A phone with layers behind a thin uplink: the needed ones within what the link carries."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest

from relay.client.state.layer_plan import LayerPlanner
from tests.unit.client.phone_model import FULL_BYTES, MBIT, Phone, Picture, age, between
from tests.unit.transport.link_model import LinkModel

WIDTHS: dict[str | None, int] = {"l": 320, "m": 640, "h": 1280}
ALL = ("l", "m", "h")


def layers_of(pictures: list[Picture]) -> list[tuple[str | None, ...]]:
    """Of each picture, in the order in which they were sent."""
    by_picture = groupby(pictures, lambda each: each.taken)
    return [tuple(each.layer for each in frames) for _, frames in by_picture]


@pytest.mark.parametrize("delay", [0.01, 0.05])
@pytest.mark.parametrize(
    ("rate", "layers"), [(0.5, ("l",)), (1, ("l",)), (2, ("l",)), (6, ("l", "m")), (25, ALL)]
)
def test_a_picture_has_the_layers_that_the_link_carries_and_is_fresh(
    rate: float, layers: tuple[str, ...], delay: float
) -> None:
    phone = Phone(LinkModel([(0.0, rate * MBIT)], delay), fps=15, widths=WIDTHS)
    frames = between(phone.run(30), 10, 29)
    sent = layers_of(frames)
    assert sent.count(layers) > 0.95 * len(sent)
    assert len(sent) >= (0.45 if rate < 1 else 0.9) * 15 * 19
    assert age([each for each in frames if each.layer == layers[-1]]) < 0.11 + delay
    carried = sum(FULL_BYTES * each.step.cost for each in frames) / 19
    assert rate == 25 or carried > 0.45 * rate * MBIT


@pytest.mark.parametrize("rate", [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20])
def test_layers_do_not_come_and_go_on_a_link_that_does_not_change(rate: float) -> None:
    phone = Phone(LinkModel([(0.0, rate * MBIT)], 0.02), fps=15, widths=WIDTHS)
    sent = layers_of(between(phone.run(40), 8, 39))
    changes = sum(before != after for before, after in pairwise(sent))
    assert changes <= 4, set(sent)


def test_the_large_layer_goes_on_a_link_that_becomes_slow_and_comes_back_with_it() -> None:
    link = LinkModel([(0.0, 30 * MBIT), (10.0, 0.7 * MBIT), (20.0, 30 * MBIT)])
    frames = Phone(link, fps=15, widths=WIDTHS).run(30)
    assert set(layers_of(between(frames, 6, 10))) == {ALL}
    slow = between(frames, 12.5, 20)
    assert set(layers_of(slow)) == {("l",)}
    assert age(slow) < 0.15
    assert set(layers_of(between(frames, 25, 29))) == {ALL}


def test_a_layer_that_is_needed_alone_takes_all_that_the_link_carries() -> None:
    frames = between(Phone(LinkModel([(0.0, 3 * MBIT)]), fps=15, widths={"h": 1280}).run(20), 5, 19)
    assert {each.layer for each in frames} == {"h"}
    assert max(each.step.width for each in frames) < 1280
    assert len(frames) >= 0.9 * 15 * 14


def test_the_other_layers_have_their_width_and_the_usual_quality() -> None:
    phone = Phone(LinkModel([(0.0, 100 * MBIT)]), fps=15, widths=WIDTHS)
    last = between(phone.run(20), 15, 19)[-30:]
    steps = {each.layer: (each.step.width, each.step.quality) for each in last}
    assert steps == {"l": (320, 0.69), "m": (640, 0.69), "h": (1280, 0.8)}


def test_a_layer_hardly_wider_than_the_one_below_is_left_out() -> None:
    phone = Phone(LinkModel([(0.0, 100 * MBIT)]), fps=15, widths={"m": 640, "h": 900})
    assert set(layers_of(phone.run(10))) == {("m",)}


def send(
    planner: LayerPlanner, widths: dict[str | None, int], budget: float, now: float
) -> tuple[str | None, ...]:
    """Send a picture of a usual scene; returns its layers."""
    plan = planner.plan(widths, budget, now)
    for layer, step in plan.items():
        planner.picture_sent(layer, round(FULL_BYTES * step.cost))
    return tuple(plan)


def test_a_layer_that_is_not_sent_is_expected_to_grow_with_the_scene() -> None:
    planner = LayerPlanner()
    for number in range(40):
        send(planner, WIDTHS, 1e6, number / 10)
    for number in range(40, 80):  # four times the bytes, seen in the layers below alone
        for layer, step in planner.plan({"l": 320, "m": 640}, 1e6, number / 10).items():
            planner.picture_sent(layer, round(4 * FULL_BYTES * step.cost))
    enough_before = 2.5 * FULL_BYTES
    assert "h" not in planner.plan(WIDTHS, enough_before, 8.0)


def test_a_layer_that_was_never_sent_is_expected_to_take_what_others_do() -> None:
    planner = LayerPlanner()
    for number in range(10):
        send(planner, {"l": 320}, 0.1 * FULL_BYTES, number / 10)
    assert list(planner.plan(WIDTHS, 0.1 * FULL_BYTES, 1.0)) == ["l"]


def test_a_layer_that_was_left_out_comes_back_with_room_to_spare() -> None:
    planner = LayerPlanner()
    widths: dict[str | None, int] = {"tiny": 100, "large": 1280}
    send(planner, widths, 1e6, 0.0)
    budget = 1e6
    while "large" in planner.plan(widths, budget, 0.0):
        budget *= 0.99
    left_out_at = budget
    while "large" not in planner.plan(widths, budget, 60.0):
        budget *= 1.01
    assert budget > 1.1 * left_out_at


def test_a_layer_that_does_not_last_is_left_out_for_longer_and_longer() -> None:
    planner, sent = LayerPlanner(), []
    for picture in range(120 * 15):
        now = picture / 15
        budget = FULL_BYTES * (4 if now % 5 < 4 else 0.3)
        plan = planner.plan(WIDTHS, budget, now)
        sent.append("h" in plan)
        for layer, step in plan.items():
            planner.picture_sent(layer, round(FULL_BYTES * step.cost))
    rises = enumerate(pairwise(sent))
    begins = [number / 15 for number, (before, after) in rises if after > before]
    pauses = [after - before for before, after in pairwise(begins)]
    assert pauses == sorted(pauses)
    assert len(pauses) <= 6
    assert pauses[-1] > 40


FULL, TWO_FIT, ONE_FITS = 4 * FULL_BYTES, 0.4 * FULL_BYTES, 0.1 * FULL_BYTES
"""What a picture may take: all layers, the smaller two, or the smallest alone."""


def film(
    planner: LayerPlanner, parts: list[tuple[float, float, tuple[str, ...]]]
) -> list[tuple[float, tuple[str | None, ...]]]:
    """Send 15 pictures a second. Of each part: until when it lasts, what a picture may take, and
    the layers that are needed. Returns when each picture was planned, and its layers."""
    sent: list[tuple[float, tuple[str | None, ...]]] = []
    for until, budget, needed in parts:
        while (now := len(sent) / 15) < until:
            widths: dict[str | None, int] = {
                each: width for each, width in WIDTHS.items() if each in needed
            }
            sent.append((now, send(planner, widths, budget, now)))
    return sent


def kinds(
    sent: list[tuple[float, tuple[str | None, ...]]], start: float, end: float
) -> set[tuple[str | None, ...]]:
    return {layers for at, layers in sent if start <= at < end}


def test_a_layer_goes_on_in_its_pause_when_the_one_above_is_left_out() -> None:
    sent = film(
        LayerPlanner(),
        [
            (1, FULL, ALL),
            (2, TWO_FIT, ALL),
            (3, ONE_FITS, ALL),
            (4.5, FULL, ALL),
            (6, TWO_FIT, ALL),
        ],
    )
    assert kinds(sent, 3, 4) == {("l",)}
    assert kinds(sent, 4.2, 4.5) == {ALL}  # the pause of m lasts until 5
    assert kinds(sent, 4.6, 6) == {("l", "m")}


def test_a_layer_goes_on_in_its_pause_when_others_are_needed_beside_it() -> None:
    sent = film(
        LayerPlanner(), [(1, FULL, ALL), (2, ONE_FITS, ALL), (3.5, FULL, ("h",)), (6, FULL, ALL)]
    )
    assert kinds(sent, 2, 3.5) == {("h",)}
    assert kinds(sent, 3.5, 6) == {ALL}


def test_a_layer_that_nobody_needs_does_not_last() -> None:
    sent = film(
        LayerPlanner(),
        [
            (1, FULL, ALL),
            (71, FULL, ("l",)),
            (72, FULL, ALL),
            (72.5, ONE_FITS, ALL),
            (80, FULL, ALL),
        ],
    )
    assert kinds(sent, 71, 72) == {ALL}
    assert kinds(sent, 72.1, 75) == {("l",)}
    assert kinds(sent, 76, 80) == {ALL}


def test_a_layer_has_lasted_also_when_nobody_needs_it_any_more() -> None:
    sent = film(
        LayerPlanner(),
        [
            (1, FULL, ALL),
            (2, ONE_FITS, ALL),
            (70, FULL, ALL),
            (71, FULL, ("l",)),
            (72, FULL, ALL),
            (72.5, ONE_FITS, ALL),
            (80, FULL, ALL),
        ],
    )
    assert kinds(sent, 2, 4) == {("l",)}
    assert kinds(sent, 72.1, 75) == {("l",)}
    assert kinds(sent, 76, 80) == {ALL}
