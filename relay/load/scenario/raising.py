"""A scenario with more or less load: more viewers, more phones, or more frames a second. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import frozen

from relay.load.scenario.groups import Group, PhoneGroup
from relay.load.scenario.scenario import Scenario, Stage
from relay.load.scenario.schedule import Timeline
from relay.load.scenario.schema import ScenarioError
from relay.load.suggestions import suggestion

Raised = Literal["viewers", "fps", "phones"]
RAISED: tuple[Raised, ...] = ("viewers", "fps", "phones")
MAX_COUNT = 100_000
MAX_FPS = 1000.0
MIN_FPS = 0.1
WHERE = "--raise"


@frozen(kw_only=True)
class Raise:
    """What of a scenario is multiplied, and by how much."""

    what: Raised
    groups: tuple[str, ...]
    factor: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return self.what != "fps"

    @property
    def key(self) -> str:
        """The key of the groups that it changes."""
        return "fps" if self.what == "fps" else "count"

    @property
    def most(self) -> float:
        """What a scenario may have at most."""
        return MAX_FPS if self.what == "fps" else float(MAX_COUNT)

    def in_words(self, level: float) -> str:
        words: str = "frames per second" if self.what == "fps" else self.what
        if level == 1:
            words = words.replace("s", "", 1) if self.what == "fps" else words[:-1]
        return f"{level:g} {words}"


def parse_raise(given: str, scenario: Scenario) -> Raise:
    """Read `viewers`, or `viewers.GROUP` for one group; `ScenarioError`."""
    what, dot, name = given.partition(".")
    found = next((each for each in RAISED if each == what), None)
    if found is None:
        raise ScenarioError(WHERE, f"there is no {what!r} to raise{suggestion(what, RAISED)}")
    known: Mapping[str, Group] = scenario.viewers if found == "viewers" else scenario.phones
    if found == "fps":
        known = {name: group for name, group in known.items() if _has_own_pace(group)}
    if dot and name not in known:
        hint = suggestion(name, known) if known else ""
        raise ScenarioError(WHERE, f"there is no group {name!r} with {what} to raise{hint}")
    groups = (name,) if dot else tuple(known)
    raised = Raise(what=found, groups=groups)
    if not groups or level_of(scenario, raised) <= 0:
        raise ScenarioError(WHERE, f"{scenario.name} has no {what} to raise")
    return raised


def _has_own_pace(group: Group) -> bool:
    """Whether its phones send at its `fps`, not at the pace of a recording."""
    return isinstance(group, PhoneGroup) and group.frames.recording is None


def level_of(scenario: Scenario, raised: Raise) -> float:
    """How much of it a scenario has: all viewers or phones of the groups together, in the stage
    with the most of each; or the largest number of frames per second."""
    timeline = Timeline(scenario)
    if raised.is_whole:
        return float(sum(timeline.most(name) for name in raised.groups))
    rates = [
        group.fps
        for name in raised.groups
        for stage in range(len(scenario.stages))
        if isinstance(group := timeline.group_in(name, stage), PhoneGroup)
    ]
    return max(rates, default=0.0)


def raise_to(raised: Raise, scenario: Scenario, level: float) -> Raise:
    """What brings a scenario to a level, or near: counts of several groups are rounded."""
    return attrs.evolve(raised, factor=level / level_of(scenario, raised))


def raised_scenario(scenario: Scenario, raised: Raise) -> Scenario:
    """The scenario with all numbers multiplied, those in its stages too."""
    phones, viewers = (
        {name: _multiplied(name, group, raised) for name, group in groups.items()}
        for groups in (scenario.phones, scenario.viewers)
    )
    stages = tuple(_changed_stage(stage, raised) for stage in scenario.stages)
    return attrs.evolve(scenario, phones=phones, viewers=viewers, stages=stages)


def _multiplied(name: str, group: Group, raised: Raise) -> Group:
    if name not in raised.groups:
        return group
    if raised.is_whole:
        return attrs.evolve(group, count=int(_times(group.count, raised)))
    assert isinstance(group, PhoneGroup)
    return attrs.evolve(group, fps=_times(group.fps, raised))


def _changed_stage(stage: Stage, raised: Raise) -> Stage:
    change = {name: _changed(name, each, raised) for name, each in stage.change.items()}
    return attrs.evolve(stage, change=change)


def _changed(name: str, change: Mapping[str, Any], raised: Raise) -> Mapping[str, Any]:
    """A change of a group by a stage."""
    if name not in raised.groups or raised.key not in change:
        return change
    return {**change, raised.key: _times(change[raised.key], raised)}


def _times(number: float, raised: Raise) -> float:
    """0 stays 0, and what there is does not vanish."""
    if not number:
        return number
    times = number * raised.factor
    if raised.is_whole:
        return min(MAX_COUNT, max(1, round(times)))
    return min(MAX_FPS, max(MIN_FPS, round(times, 1)))
