"""Which frames a phone of a load test sends of each picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.load.actors.frames.frame_plan import FramePlan, PlannedFrame

LAYERS = ("l", "m", "h")


def layers_of(plan: FramePlan, number: int) -> list[str | None]:
    return [frame.layer for frame in plan.frames(number)]


def bases(plan: FramePlan, pictures: int, first: int = 1) -> list[list[int | None]]:
    return [
        [frame.base for frame in plan.frames(number)] for number in range(first, first + pictures)
    ]


def test_a_phone_without_layers_sends_one_frame_that_names_none() -> None:
    assert FramePlan().frames(1) == [PlannedFrame(0, None, None)]


def test_nothing_is_sent_before_a_layer_is_asked_for_and_then_only_what_is_the_smallest_first() -> (
    None
):
    plan = FramePlan(LAYERS)
    assert layers_of(plan, 1) == []
    plan.need(["h", "unknown", "l"])
    assert plan.frames(1) == [PlannedFrame(0, "l", None), PlannedFrame(2, "h", None)]
    plan.need([])
    assert layers_of(plan, 2) == []


def test_a_relay_that_knows_no_layers_gets_the_largest_alone() -> None:
    plan = FramePlan(LAYERS)
    plan.send_largest_alone()
    plan.need(["l"])
    assert plan.frames(1) == [PlannedFrame(2, None, None)]


def test_a_keyframe_comes_after_so_many_pictures_and_deltas_build_on_the_picture_before() -> None:
    plan = FramePlan(keyframe_every=3)
    assert bases(plan, 7) == [[None], [1], [2], [None], [4], [5], [None]]


def test_a_keyframe_that_is_wanted_is_the_next_picture() -> None:
    plan = FramePlan(keyframe_every=4)
    assert bases(plan, 2) == [[None], [1]]
    plan.send_keyframe_next()
    assert bases(plan, 5, first=3) == [[None], [3], [4], [5], [None]]


def test_a_layer_that_is_new_begins_with_a_keyframe_of_all_layers() -> None:
    plan = FramePlan(LAYERS, keyframe_every=10)
    plan.need(["l"])
    assert bases(plan, 3) == [[None], [1], [2]]
    plan.need(["l", "h"])
    assert bases(plan, 2, first=4) == [[None, None], [4, 4]]
    plan.need(["h"])
    assert bases(plan, 1, first=6) == [[5]]
    plan.need(["l", "h"])
    assert bases(plan, 2, first=7) == [[None, None], [7, 7]]


@given(st.lists(st.sets(st.sampled_from(LAYERS)), max_size=60), st.integers(1, 8) | st.none())
def test_every_delta_builds_on_the_picture_before_in_its_own_layer(
    needs: list[set[str]], keyframe_every: int | None
) -> None:
    plan = FramePlan(LAYERS, keyframe_every)
    number, before = 1, set[int]()
    for needed in needs:
        plan.need(sorted(needed))
        frames = plan.frames(number)
        assert {frame.layer for frame in frames} == needed
        assert frames == sorted(frames, key=lambda frame: frame.index)
        assert len({frame.base is None for frame in frames}) <= 1
        for frame in frames:
            assert frame.base is None or (frame.base == number - 1 and frame.index in before)
        if frames:
            number, before = number + 1, {frame.index for frame in frames}
