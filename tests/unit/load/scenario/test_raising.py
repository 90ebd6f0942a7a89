"""Scenarios with more or less load."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.raising import (
    level_of,
    parse_raise,
    raise_to,
    raised_scenario,
)
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schedule import Timeline
from relay.load.scenario.schema import ScenarioError

SOURCE = """
[phones.doors]
count = 2
fps = 10
[phones.film]
frames = { recording = "door.trace" }
[viewers.homes]
watch = "doors"
count = 6
[viewers.guards]
watch = "doors"
count = 2
[[stages]]
duration = "5s"
[[stages]]
duration = "5s"
[stages.change.homes]
count = 18
[stages.change.doors]
fps = 20
"""


@pytest.fixture
def scenario() -> Scenario:
    return parse_scenario(SOURCE, "mine.toml", Path())


def test_all_viewers_are_multiplied_those_of_the_stages_too(scenario: Scenario) -> None:
    raised = parse_raise("viewers", scenario)
    assert level_of(scenario, raised) == 20
    more = raised_scenario(scenario, raise_to(raised, scenario, 40))
    line = Timeline(more)
    counts = [[line.group_in(name, stage).count for name in raised.groups] for stage in (0, 1)]
    assert counts == [[12, 4], [36, 4]]
    assert line.group_in("doors", 0) == Timeline(scenario).group_in("doors", 0)
    assert level_of(more, raised) == 40


def test_one_group_can_be_raised_alone(scenario: Scenario) -> None:
    raised = parse_raise("viewers.guards", scenario)
    more = raised_scenario(scenario, raise_to(raised, scenario, 7))
    assert more.viewers["guards"].count == 7
    assert more.viewers["homes"].count == 6


def test_frames_per_second_are_those_of_phones_with_a_pace_of_their_own(
    scenario: Scenario,
) -> None:
    raised = parse_raise("fps", scenario)
    assert raised.groups == ("doors",)
    assert level_of(scenario, raised) == 20
    line = Timeline(raised_scenario(scenario, raise_to(raised, scenario, 30)))
    assert [line.group_in("doors", stage).fps for stage in (0, 1)] == [15, 30]  # type: ignore[attr-defined]


def test_what_there_is_does_not_vanish_and_what_is_not_does_not_come(scenario: Scenario) -> None:
    raised = parse_raise("viewers", scenario)
    less = raised_scenario(scenario, raise_to(raised, scenario, 1))
    assert {group.count for group in less.viewers.values()} == {1}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("viewrs", "there is no 'viewrs' to raise; did you mean viewers?"),
        ("load", "there is no 'load' to raise; known are fps, phones, viewers"),
        ("viewers.home", "there is no group 'home' with viewers to raise; did you mean homes?"),
        ("phones.homes", "there is no group 'homes' with phones to raise"),
        ("fps.film", "there is no group 'film' with fps to raise"),
        ("", "there is no '' to raise"),
    ],
)
def test_a_misspelt_word_is_named_with_the_nearest(
    given: str, words: str, scenario: Scenario
) -> None:
    with pytest.raises(ScenarioError, match=r"^--raise: ") as raised:
        parse_raise(given, scenario)
    assert words in str(raised.value)


def test_a_scenario_without_viewers_has_none_to_raise() -> None:
    scenario = parse_scenario("[phones.doors]\n", "mine.toml", Path())
    with pytest.raises(ScenarioError, match="mine has no viewers to raise"):
        parse_raise("viewers", scenario)
