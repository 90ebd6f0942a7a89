"""The rules by which a subscription gets a layer of each picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from relay.hub.layers.choice import (
    CAREFUL_PICTURES,
    DOWN_AFTER,
    MAX_CAREFUL_WAIT,
    MAX_RISE_PAUSE,
    MAX_WAIT_FOR_BANDWIDTH,
    MAX_WAIT_FOR_SMALLER,
    MIN_RISE_PAUSE,
    UP_AFTER,
    UP_AFTER_FAILURE,
    LayerChoice,
    LayerOption,
    share_of_limit,
    supposed_width,
)
from tests.unit.hub.layers.viewer_model import FPS, SIZES, WIDTHS

PERIOD = 1 / FPS
LAYERS = [LayerOption(w, s, flows=True) for w, s in zip(WIDTHS, SIZES, strict=True)]
SMALL, MIDDLE, LARGE = range(3)


def bandwidth_for(index: int, share: float) -> float:
    """The bandwidth at which a frame of a layer takes this part of its limit."""
    return share_of_limit(LAYERS, 1.0, 0, 0, index) / share


def flowing(*indexes: int) -> list[LayerOption]:
    return [evolve(each, flows=index in indexes) for index, each in enumerate(LAYERS)]


@define
class Viewer:
    """Chooses 25 times a second."""

    choice: LayerChoice = field(factory=LayerChoice)
    layers: Sequence[LayerOption] = field(factory=lambda: LAYERS)
    now: float = 100.0

    def picture(
        self,
        bandwidth: float | None,
        *,
        late: bool = False,
        period: float = 0.0,
        others: float = 0.0,
        round_trip: float = 0.0,
        may_rise: bool = True,
    ) -> int:
        chosen = self.choice.choose(
            self.now,
            self.layers,
            bandwidth=bandwidth,
            late=late,
            period=period,
            others=others,
            round_trip=round_trip,
            may_rise=may_rise,
        )
        self.now += PERIOD
        return chosen

    def watch(self, seconds: float, bandwidth: float | None, **more: float) -> list[int]:
        pictures = round(seconds * FPS)
        return [self.picture(bandwidth, **more) for _ in range(pictures)]  # type: ignore[arg-type]

    def until(self, holds: Callable[[int], bool], bandwidth: float | None) -> float:
        """Watch until this holds of the layer chosen; returns after how many seconds it does."""
        start = self.now
        while not holds(self.picture(bandwidth)):
            assert self.now < start + 1000
        return self.now - PERIOD - start


def at(target: int) -> Viewer:
    """A viewer that has had this layer for long."""
    viewer = Viewer()
    viewer.watch(5, bandwidth_for(target, 0.6))
    assert viewer.choice.target == target
    viewer.watch(61, bandwidth_for(target, 0.9))
    assert viewer.choice.target == target
    return viewer


def test_a_new_viewer_begins_with_the_smallest_and_goes_up_when_the_link_is_known() -> None:
    viewer = Viewer()
    assert viewer.until(lambda layer: layer != SMALL, bandwidth_for(LARGE, 0.6)) == pytest.approx(
        UP_AFTER, abs=1.1 * PERIOD
    )
    assert viewer.choice.target == LARGE


def test_a_new_viewer_begins_with_the_largest_where_others_are_made_only_when_needed() -> None:
    assert Viewer(LayerChoice(begins_with_largest=True)).picture(None) == LARGE
    assert Viewer(LayerChoice(begins_with_largest=True, max_width=640)).picture(None) == MIDDLE


def test_a_new_viewer_leaves_the_largest_with_the_first_answer_if_the_link_is_far_too_slow() -> (
    None
):
    viewer = Viewer(LayerChoice(begins_with_largest=True))
    assert set(viewer.watch(1, None)) == {LARGE}
    assert viewer.picture(bandwidth_for(LARGE, 1.7)) == MIDDLE


def test_a_new_viewer_keeps_the_largest_for_a_while_if_the_link_is_a_little_too_slow() -> None:
    viewer = Viewer(LayerChoice(begins_with_largest=True))
    viewer.watch(1, None)
    after = viewer.until(lambda layer: layer != LARGE, bandwidth_for(LARGE, 1.5))
    assert 0 < after <= DOWN_AFTER


def test_a_picture_that_waited_for_the_first_answer_is_left_out_if_it_takes_far_too_long() -> None:
    viewer = Viewer(LayerChoice(begins_with_largest=True))
    viewer.watch(1, None)
    far_too_slow, too_slow = bandwidth_for(LARGE, 1.7), bandwidth_for(LARGE, 1.5)
    assert not viewer.choice.was_blind(LAYERS, None, 0)
    assert not viewer.choice.was_blind(LAYERS, too_slow, 0)
    assert viewer.choice.was_blind(LAYERS, far_too_slow, 0)
    viewer.picture(bandwidth_for(LARGE, 0.9))
    assert not viewer.choice.was_blind(LAYERS, far_too_slow, 0)


@pytest.mark.parametrize("choice", [LayerChoice(), LayerChoice(layer=LARGE)])
def test_the_smallest_picture_and_the_one_that_is_asked_for_are_never_left_out(
    choice: LayerChoice,
) -> None:
    viewer = Viewer(choice)
    viewer.watch(1, None)
    assert not choice.was_blind(LAYERS, 1.0, 0)


def test_a_new_viewer_stays_as_it_began_while_the_bandwidth_is_unknown_but_not_for_ever() -> None:
    viewer = Viewer()
    assert set(viewer.watch(MAX_WAIT_FOR_BANDWIDTH, None)) == {SMALL}
    assert viewer.watch(1, None)[-1] == LARGE


def test_a_bandwidth_that_need_not_be_known_is_enough_for_the_largest() -> None:
    assert Viewer().watch(0.5, math.inf)[-1] == LARGE
    viewer = at(SMALL)
    assert viewer.watch(0.5, None)[-1] == LARGE


@pytest.mark.parametrize("target", [MIDDLE, LARGE])
def test_a_layer_that_takes_too_long_is_endured_for_a_while(target: int) -> None:
    viewer = at(target)
    assert set(viewer.watch(60, bandwidth_for(target, 0.99))) == {target}
    after = viewer.until(lambda layer: layer != target, bandwidth_for(target, 1.1))
    assert after == pytest.approx(DOWN_AFTER, abs=1.1 * PERIOD)


def test_a_layer_that_is_too_large_for_a_moment_is_kept() -> None:
    viewer = at(LARGE)
    for _ in range(20):
        assert set(viewer.watch(0.2, bandwidth_for(LARGE, 1.5))) == {LARGE}
        assert set(viewer.watch(0.2, bandwidth_for(LARGE, 0.9))) == {LARGE}


def test_a_layer_that_takes_far_too_long_is_left_with_the_third_picture() -> None:
    viewer = at(LARGE)
    slow = bandwidth_for(LARGE, 1.7)
    assert [viewer.picture(slow) for _ in range(3)] == [LARGE, LARGE, MIDDLE]


def test_a_step_down_is_to_the_largest_that_takes_well_less_than_its_limit() -> None:
    viewer = at(LARGE)
    assert viewer.watch(1, bandwidth_for(MIDDLE, 0.78))[-1] == MIDDLE
    viewer = at(LARGE)
    assert viewer.watch(1, bandwidth_for(MIDDLE, 0.82))[-1] == SMALL


def test_the_smallest_is_kept_however_slow_the_link_is() -> None:
    viewer = at(LARGE)
    assert viewer.watch(5, 10.0)[-1] == SMALL
    assert viewer.watch(5, 0.0)[-1] == SMALL


@pytest.mark.parametrize("target", [MIDDLE, LARGE])
def test_nothing_changes_between_the_ways_up_and_down(target: int) -> None:
    for share in (0.65, 0.99):
        assert set(at(target).watch(60, bandwidth_for(target, share))) == {target}
    assert set(at(target - 1).watch(60, bandwidth_for(target, 0.65))) == {target - 1}


def test_a_larger_layer_that_fits_for_a_moment_is_not_tried() -> None:
    viewer = at(SMALL)
    for _ in range(20):
        assert set(viewer.watch(0.28, bandwidth_for(MIDDLE, 0.5))) == {SMALL}
        viewer.watch(0.04, bandwidth_for(MIDDLE, 0.7))


def failing_steps(viewer: Viewer, lasting: float) -> list[float]:
    """The pauses before steps up that last so long each time: the link seems faster than it is."""
    pauses = []
    for _ in range(8):
        viewer.until(lambda _: viewer.choice.target == MIDDLE, bandwidth_for(LARGE, 2))
        down = viewer.now
        viewer.until(lambda _: viewer.choice.target == LARGE, bandwidth_for(LARGE, 0.5))
        pauses.append(viewer.now - down)
        viewer.watch(lasting, bandwidth_for(LARGE, 0.9))
    return pauses


def test_the_pause_doubles_while_steps_up_do_not_last() -> None:
    pauses = failing_steps(at(LARGE), 2.0)
    assert pauses[0] < UP_AFTER + 2 * PERIOD
    expected = [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0]
    assert pauses[1:] == pytest.approx(expected, abs=0.2)
    assert min(expected) == MIN_RISE_PAUSE
    assert max(expected) == MAX_RISE_PAUSE


def test_the_pause_is_kept_after_a_stay_and_gone_after_a_long_one() -> None:
    viewer = at(LARGE)
    failing_steps(viewer, 2.0)
    assert failing_steps(viewer, 15.0)[1:] == pytest.approx([60.0] * 7, abs=0.2)
    assert max(failing_steps(viewer, 61.0)[1:]) < UP_AFTER + 2 * PERIOD


def test_a_step_up_that_failed_is_tried_again_only_when_it_would_fit_for_longer() -> None:
    viewer = at(LARGE)
    failing_steps(viewer, 2.0)
    viewer.until(lambda layer: layer == MIDDLE, bandwidth_for(LARGE, 2))
    viewer.watch(MAX_RISE_PAUSE, bandwidth_for(LARGE, 0.9))
    after = viewer.until(lambda layer: layer == LARGE, bandwidth_for(LARGE, 0.5))
    assert after == pytest.approx(UP_AFTER_FAILURE, abs=1.1 * PERIOD)


def test_after_a_late_answer_the_smallest_comes_and_the_target_stays() -> None:
    viewer = at(LARGE)
    enough = bandwidth_for(LARGE, 0.6)
    assert {viewer.picture(10.0, late=True) for _ in range(10)} == {SMALL}
    assert viewer.choice.careful
    assert viewer.choice.target == LARGE
    assert set(viewer.watch(CAREFUL_PICTURES * PERIOD, enough)) == {SMALL}
    assert viewer.picture(enough) == LARGE
    assert not viewer.choice.careful
    assert set(viewer.watch(60, enough)) == {LARGE}


def test_after_a_late_answer_the_choice_waits_for_answers_to_small_pictures() -> None:
    viewer = at(LARGE)
    viewer.picture(10.0, late=True)
    slow = SIZES[SMALL] / 1.0
    assert set(viewer.watch(1.9, slow)) == {SMALL}
    assert viewer.choice.target == LARGE
    assert set(viewer.watch(0.3, slow)) == {SMALL}
    assert viewer.choice.target == SMALL
    viewer = at(LARGE)
    viewer.picture(10.0, late=True)
    for _ in range(12):
        assert viewer.picture(bandwidth_for(LARGE, 0.6), round_trip=0.5) == SMALL
    viewer.picture(bandwidth_for(LARGE, 0.6), round_trip=0.5)
    assert viewer.picture(bandwidth_for(LARGE, 0.6), round_trip=0.5) == LARGE


def test_a_second_late_answer_begins_the_doubt_anew() -> None:
    viewer = at(LARGE)
    enough = bandwidth_for(LARGE, 0.6)
    for _ in range(10):
        assert viewer.picture(10.0, late=True) == SMALL
        assert set(viewer.watch(CAREFUL_PICTURES * PERIOD, enough)) == {SMALL}
    assert viewer.picture(enough) == LARGE


def test_two_steps_down_after_one_up_double_the_pause_once() -> None:
    viewer = at(LARGE)
    failing_steps(viewer, 2.0)  # the last one begins anew
    viewer.watch(61, bandwidth_for(LARGE, 0.9))
    for pause in (0, MIN_RISE_PAUSE):
        viewer.until(lambda layer: layer == MIDDLE, bandwidth_for(LARGE, 2))
        viewer.until(lambda layer: layer == SMALL, bandwidth_for(MIDDLE, 2))
        down = viewer.now
        viewer.until(lambda layer: layer == LARGE, bandwidth_for(LARGE, 0.5))
        assert viewer.now - down == pytest.approx(max(pause, UP_AFTER), abs=0.2)
        viewer.watch(2, bandwidth_for(LARGE, 0.9))


def test_a_link_that_is_far_too_slow_is_not_tried_again_when_the_doubt_ends() -> None:
    viewer = at(LARGE)
    viewer.picture(10.0, late=True)
    viewer.watch(CAREFUL_PICTURES * PERIOD, bandwidth_for(LARGE, 0.6))
    assert viewer.picture(bandwidth_for(LARGE, 2)) == MIDDLE


def test_while_careful_the_smallest_that_flows_comes_if_the_smallest_does_not() -> None:
    viewer = at(LARGE)
    viewer.layers = flowing(MIDDLE, LARGE)
    chosen = [viewer.picture(10.0, late=True) for _ in range(25)]
    assert chosen[: round(MAX_CAREFUL_WAIT * FPS)] == [SMALL] * round(MAX_CAREFUL_WAIT * FPS)
    assert chosen[-1] == MIDDLE


def test_the_nearest_smaller_layer_comes_at_once_for_one_that_does_not_flow() -> None:
    viewer = at(LARGE)
    enough = bandwidth_for(LARGE, 0.6)
    viewer.layers = flowing(SMALL, MIDDLE)
    assert viewer.picture(enough) == MIDDLE
    viewer.layers = flowing(SMALL)
    assert viewer.picture(enough) == SMALL
    assert viewer.choice.target == LARGE
    viewer.layers = LAYERS
    assert viewer.picture(enough) == LARGE


def test_a_larger_layer_comes_when_no_smaller_one_does_for_a_while() -> None:
    viewer = at(SMALL)
    slow = bandwidth_for(SMALL, 0.9)
    viewer.layers = flowing(MIDDLE, LARGE)
    assert set(viewer.watch(MAX_WAIT_FOR_SMALLER - PERIOD, slow)) == {SMALL}
    assert viewer.watch(1, slow)[-1] == MIDDLE
    viewer.layers = LAYERS
    assert viewer.picture(slow) == SMALL
    viewer.layers = flowing(LARGE)
    assert set(viewer.watch(MAX_WAIT_FOR_SMALLER - PERIOD, slow)) == {SMALL}
    assert viewer.watch(1, slow)[-1] == LARGE
    viewer.layers = flowing()
    assert viewer.picture(slow) == SMALL
    assert viewer.choice.target == SMALL


@pytest.mark.parametrize(
    ("max_width", "largest"), [(4000, LARGE), (1279, MIDDLE), (640, MIDDLE), (1, SMALL)]
)
def test_no_layer_is_wider_than_asked_for_if_there_is_one(max_width: int, largest: int) -> None:
    viewer = Viewer(LayerChoice(max_width=max_width))
    assert viewer.watch(5, math.inf)[-1] == largest
    viewer = at(LARGE)
    viewer.choice.max_width = max_width
    assert viewer.picture(math.inf) == largest


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_that_is_asked_for_comes_whatever_the_link_carries(layer: int) -> None:
    viewer = Viewer(LayerChoice(layer=layer, max_width=320))
    assert {viewer.picture(10.0, late=each % 2 == 0) for each in range(50)} == {layer}
    assert {viewer.picture(math.inf) for _ in range(50)} == {layer}
    assert viewer.choice.target == layer
    viewer.layers = flowing(SMALL)
    assert viewer.picture(10.0) == SMALL
    viewer.choice.layer = viewer.choice.max_width = None
    viewer.layers = LAYERS
    assert viewer.watch(2, math.inf)[-1] == LARGE


def test_a_picture_may_take_the_whole_of_a_long_period() -> None:
    viewer = Viewer()
    slow = SIZES[LARGE] / 0.4
    assert viewer.watch(2, slow)[-1] == SMALL
    assert viewer.watch(2, slow, period=0.7)[-1] == LARGE


def test_what_other_subscriptions_send_counts() -> None:
    viewer = at(LARGE)
    enough = bandwidth_for(LARGE, 0.6)
    assert viewer.watch(2, enough, others=SIZES[LARGE])[-1] == MIDDLE
    assert viewer.watch(2, enough, others=0)[-1] == LARGE


def test_a_step_up_waits_until_it_may_be_taken() -> None:
    viewer = at(SMALL)
    enough = bandwidth_for(LARGE, 0.6)
    assert set(viewer.watch(5, enough, may_rise=False)) == {SMALL}
    rising = viewer.now
    assert viewer.picture(enough) == LARGE
    assert viewer.choice.raised_at == rising


def test_widths_that_are_not_said_follow_from_the_order() -> None:
    def widths(*said: int | None) -> list[float]:
        layers = [LayerOption(width, 1.0, flows=True) for width in said]
        return [supposed_width(layers, index) for index in range(len(said))]

    assert widths(None) == [1280]
    assert widths(None, None, None) == [320, 640, 1280]
    assert widths(None, 400, None) == [200, 400, 800]
    assert widths(100, None, 1000) == [100, 500, 1000]


def test_layers_without_widths_are_chosen_as_with_usual_ones() -> None:
    viewer = at(LARGE)
    other = at(LARGE)
    other.layers = [evolve(each, width=None) for each in LAYERS]
    for share in (0.6, 1.1, 2, 10, 0.6):
        bandwidth = bandwidth_for(LARGE, share)
        assert viewer.watch(8, bandwidth) == other.watch(8, bandwidth)


def test_a_viewer_of_the_only_layer_keeps_it_when_renditions_appear() -> None:
    for widths in (WIDTHS, (None, None, None)):
        layers = [evolve(each, width=width) for each, width in zip(LAYERS, widths, strict=True)]
        viewer = Viewer(LayerChoice(begins_with_largest=True), layers[LARGE:])
        assert viewer.picture(None) == 0
        viewer.layers = layers
        assert viewer.picture(None) == LARGE
        viewer.layers = layers[LARGE:]
        assert viewer.picture(None) == 0


def test_a_target_among_other_layers_is_the_one_that_is_as_wide() -> None:
    viewer = at(MIDDLE)
    viewer.layers = [LayerOption(160, 4000, flows=True), *LAYERS]
    assert viewer.picture(bandwidth_for(MIDDLE, 0.9)) == MIDDLE + 1
    viewer.layers = [LayerOption(480, 16_000, flows=True), LAYERS[LARGE]]
    assert viewer.picture(bandwidth_for(MIDDLE, 0.9)) == 0


def test_sizes_that_are_supposed_wrong_do_not_make_a_choice_swing() -> None:
    """Each time that the largest does not flow, it is supposed to be half as large as it is."""
    viewer = Viewer()
    wrong = [*LAYERS[:LARGE], LayerOption(WIDTHS[LARGE], SIZES[LARGE] / 2, flows=False)]
    switches, last, largest_since = 0, 0, math.inf
    for _ in range(round(300 * FPS)):
        known = viewer.now > largest_since + 0.2
        viewer.layers = LAYERS if known else wrong
        viewer.picture(bandwidth_for(LARGE, 1.2))
        if viewer.choice.target != last:
            last = viewer.choice.target
            switches += 1
            largest_since = viewer.now if last == LARGE else math.inf
    assert switches <= 18


options = st.builds(
    LayerOption,
    width=st.none() | st.integers(1, 65535),
    size=st.floats(1, 1e7),
    flows=st.booleans(),
)


calls = st.tuples(
    st.lists(options, min_size=1, max_size=4),
    st.floats(0, 3),
    st.none() | st.floats(0, math.inf),
    st.booleans(),
)


@given(
    begins_with_largest=st.booleans(),
    max_width=st.none() | st.integers(1, 65535),
    layer=st.none() | st.integers(0, 5),
    period=st.floats(0, 10),
    calls=st.lists(calls, max_size=20),
)
def test_whatever_comes_a_layer_that_is_there_is_chosen(
    begins_with_largest: bool,
    max_width: int | None,
    layer: int | None,
    period: float,
    calls: list[tuple[list[LayerOption], float, float | None, bool]],
) -> None:
    choice, now = LayerChoice(begins_with_largest, max_width, layer), 0.0
    for layers, passed, bandwidth, late in calls:
        now += passed
        chosen = choice.choose(now, layers, bandwidth=bandwidth, late=late, period=period)
        assert 0 <= chosen < len(layers)
        assert 0 <= choice.target < len(layers)
        if any(each.flows for each in layers[: choice.target + 1]) and not choice.careful:
            assert layers[chosen].flows
            assert chosen <= choice.target
