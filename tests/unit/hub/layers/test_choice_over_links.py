"""The choice of layers with a pacer over links in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import median

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.hub.layers.choice import (
    DOWN_TO,
    UP_TO,
    LayerChoice,
    LayerOption,
    share_of_limit,
)
from tests.unit.hub.layers.viewer_model import FPS, SIZES, WIDTHS, LayeredSender, Shown, viewer
from tests.unit.transport.link_model import LinkModel

MBIT = 125_000
"""Bytes."""
LAYERS = [LayerOption(w, s, flows=True) for w, s in zip(WIDTHS, SIZES, strict=True)]
EDGE = 67_000 * 16 / MBIT
"""Mbit/s at which the largest layer takes just its limit."""


def right_layers(megabits: float) -> range:
    """The layers that are right on a link: from the largest that is well within its limit, up to
    the largest that is within its limit."""
    shares = [share_of_limit(LAYERS, megabits * MBIT, 0, 0, index) for index in range(3)]
    well, within = (
        max([index for index, share in enumerate(shares) if share <= most] or [0])
        for most in (0.9 * UP_TO, 1.02)
    )
    return range(well, within + 1)


def target_at(sender: LayeredSender, when: float) -> int:
    return [target for since, target in sender.targets if since <= when][-1]


def switches(sender: LayeredSender, start: float = 0.0) -> int:
    return sum(1 for since, _ in sender.targets[1:] if since > start)


def constant(
    megabits: float, round_trip: float, jitter: float, random: Random, *, largest: bool = False
) -> LayeredSender:
    return viewer(
        LinkModel([(0.0, megabits * MBIT)], round_trip / 2, jitter),
        random=random,
        spread=0.3,
        on_demand=True,
        choice=LayerChoice(begins_with_largest=largest),
    )


def median_age(shown: Sequence[Shown], start: float) -> float:
    """From when it was sent."""
    return median(each.arrived - each.sent for each in shown if each.sent > start)


seeds = st.integers(0, 1 << 16).map(Random)
megabits = st.floats(-0.7, 1.7).map(lambda exponent: 10.0**exponent)
"""0.2 to 50, with as many below 3 as above."""
round_trips = st.floats(0.01, 0.3)


@example(rate=10**1.1875, round_trip=0.203125, jitter=0.00390625, random=Random(3384))
@given(rate=megabits, round_trip=round_trips, jitter=st.floats(0, 0.01), random=seeds)
def test_the_right_layer_is_found_within_five_seconds_and_kept(
    rate: float, round_trip: float, jitter: float, random: Random
) -> None:
    sender = constant(rate, round_trip, jitter, random)
    sender.run(20)
    right = right_layers(rate)
    if jitter <= 0.002:  # else the first step up may be a false one, which costs a pause
        assert target_at(sender, 5) in right
    late = [each for each in sender.shown if each.sent > 10]
    assert sum(each.layer in right for each in late) >= 0.8 * len(late)
    assert switches(sender) <= 4
    shown = [each for each in sender.shown if each.sent > 5]
    takes = SIZES[sender.choice.target] / (rate * MBIT)
    # Once in five seconds the link is left to run empty.
    assert len(shown) >= 0.8 * 15 * min(FPS, 1 / takes) - 2
    if rate * MBIT * 2 > SIZES[0]:
        way = round_trip / 2 + jitter
        assert median_age(sender.shown, 5) <= 1.1 * (1.15 * takes + way)


@example(rate=10**0.0625, round_trip=0.03125, jitter=0.078125, random=Random(0))
@given(rate=megabits, round_trip=round_trips, jitter=st.floats(0.01, 0.08), random=seeds)
def test_no_layer_that_is_too_large_is_kept_in_spite_of_jitter(
    rate: float, round_trip: float, jitter: float, random: Random
) -> None:
    sender = constant(rate, round_trip, jitter, random)
    sender.run(20)
    too_large = sum(each.layer > right_layers(rate)[-1] for each in sender.shown)
    assert too_large <= 0.3 * len(sender.shown) + 12
    takes = SIZES[sender.choice.target] / (rate * MBIT)
    assert median_age(sender.shown, 5) <= 2.5 * (takes + round_trip / 2 + jitter / 2)


@pytest.mark.parametrize(
    ("rate", "jitter", "most"),
    [(1.0, 0.01, 4), (EDGE, 0.0, 4), (EDGE, 0.01, 4), (EDGE / DOWN_TO, 0.01, 4), (EDGE, 0.08, 20)],
)
def test_a_choice_does_not_swing_on_a_constant_link(rate: float, jitter: float, most: int) -> None:
    sender = constant(rate, 0.04, jitter, Random(1), largest=True)
    sender.run(300)
    assert switches(sender) <= most


@pytest.mark.parametrize("on_demand", [False, True])
@pytest.mark.parametrize(("fast", "slow"), [(20.0, 1.0), (5.0, 0.5), (20.0, 0.5)])
@pytest.mark.parametrize("round_trip", [0.02, 0.12])
def test_a_step_down_costs_two_switches_and_all_is_soon_back(
    fast: float, slow: float, round_trip: float, on_demand: bool
) -> None:
    down, up = 15.0, 30.0
    link = LinkModel([(0.0, fast * MBIT), (down, slow * MBIT), (up, fast * MBIT)], round_trip / 2)
    sender = viewer(link, on_demand=on_demand)
    sender.run(40)
    before = target_at(sender, down)
    assert before in right_layers(fast)
    assert switches(sender, down) == 2
    first = next(each for each in sender.shown if each.sent > down and each.layer == 0)
    under_way = max(each.arrived for each in sender.shown if each.sent < first.sent)
    # An answer to what was under way has to come back before.
    seconds = round_trip + SIZES[0] / (slow * MBIT)
    assert first.arrived <= under_way + 0.2 + seconds
    large = [each for each in sender.shown if down + 0.2 < each.sent < up and each.layer > 0]
    assert len(large) <= 2  # one that may be sent before its answer is missing, and one more try
    assert target_at(sender, up + 1.5) == before


@pytest.mark.parametrize("rate", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("on_demand", [False, True])
def test_a_gap_of_the_radio_is_no_smaller_link(rate: float, on_demand: bool) -> None:
    gaps = [each for at in range(5, 60, 5) for each in ((float(at), 0.0), (at + 0.3, rate * MBIT))]
    sender = viewer(LinkModel([(0.0, rate * MBIT), *gaps], 0.02), on_demand=on_demand)
    sender.run(60)
    assert switches(sender, 2) == 0
    right = right_layers(rate)
    shown = [each for each in sender.shown if each.sent > 5]
    assert sum(each.layer in right for each in shown) >= 0.9 * len(shown)
    takes = SIZES[sender.choice.target] / (rate * MBIT)
    assert len(shown) >= 0.85 * 55 * min(FPS, 1 / takes)


@pytest.mark.parametrize("sizes", [(200, 600, 2_000), (400, 6_000, 100_000), (900, 3_000, 150_000)])
def test_the_way_up_is_found_from_pictures_that_hardly_keep_a_fast_link_busy(
    sizes: tuple[int, ...],
) -> None:
    sender = viewer(LinkModel([(0.0, 100 * MBIT)], 0.01), sizes=sizes)
    sender.run(5)
    assert sender.choice.target == 2
    assert switches(sender) <= 2


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("rate", [1.0, 4.0, 8.0, 16.0])
def test_sizes_that_are_supposed_wrong_at_first_do_not_make_a_choice_swing(
    rate: float, factor: float
) -> None:
    supposed = [SIZES[0], *(size * factor for size in SIZES[1:])]
    link = LinkModel([(0.0, rate * MBIT)], 0.02)
    sender = viewer(link, supposed=supposed, on_demand=True)
    sender.run(60)
    assert switches(sender) <= 4
    assert sender.choice.target <= right_layers(rate)[-1]


@settings(max_examples=10)
@given(rate=megabits, random=seeds)
def test_a_peer_that_answers_nothing_gets_the_largest(rate: float, random: Random) -> None:
    sender = constant(rate, 0.04, 0.0, random)
    sender.answers = lambda _number, _token, _sent, _arrived: []
    sender.run(5)
    assert sender.choice.target == 2
