"""What a generator says that it saw: what of it a coordinator refuses, and how much it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from attrs import evolve

from relay.load.actors.engine import StatsUpdate
from relay.load.measures.generator_usage import GeneratorUsage
from relay.load.measures.reconciliation.observations import (
    AcknowledgedAlert,
    Observations,
    SentFrames,
    StreamObservation,
)
from relay.load.measures.stats import StatsDelta
from relay.load.run import run_state, update_check
from relay.load.run.run_state import RunState
from relay.load.scenario.parsing import parse_scenario

TOO_MUCH = update_check.MAX_NUMBER + 1
SOURCE = "[phones.p]\n[viewers.v]\nwatch = 'p'\n"
DELTA = StatsDelta(counts={"received": 1}, errors={}, times={}, connected=1)
SEEN = StreamObservation(
    group="v", stream="s", start=0, end=1, watched=True, first=None, last=None, alerts={}
)
SENT = SentFrames("s", 0.0, 1.0, 1, 9)
ACKNOWLEDGED = AcknowledgedAlert("a", "s", 1, 0.0, 0.5)


def state(source: str = SOURCE) -> RunState:
    return RunState(parse_scenario(source, "mine.toml", Path()))


def of_group(delta: StatsDelta, name: str = "v") -> StatsUpdate:
    return StatsUpdate({name: {"": delta}}, Observations(), "run")


def observed(*, streams: object = (), sent: object = (), alerts: object = ()) -> StatsUpdate:
    observations = Observations(list(streams), list(sent), list(alerts))  # type: ignore[call-overload]
    return StatsUpdate({}, observations, "run", GeneratorUsage(seconds=1.0))


def used(**usage: float) -> StatsUpdate:
    return StatsUpdate({}, Observations(), "run", GeneratorUsage(**usage))  # type: ignore[arg-type]


def add_all(made: RunState, updates: Iterable[StatsUpdate]) -> None:
    for each in updates:
        made.add("b.test:3100", each)


@pytest.mark.parametrize(
    "update",
    [
        of_group(DELTA, "nobody"),
        of_group(evolve(DELTA, counts={f"ended.{n}": 1 for n in range(501)})),
        of_group(evolve(DELTA, counts={"x" * 401: 1})),
        of_group(evolve(DELTA, counts={"received": TOO_MUCH})),
        of_group(evolve(DELTA, errors={"x": -TOO_MUCH})),
        of_group(evolve(DELTA, connected=TOO_MUCH)),
        used(seconds=math.inf),
        used(seconds=1.0, busy=math.nan),
        used(gc_pause=-1.0),
        used(dropped=-1),
        observed(streams=[evolve(SEEN, group="nobody")]),
        observed(streams=[evolve(SEEN, target="nowhere")]),
        observed(streams=[evolve(SEEN, start=-math.inf, end=math.inf)]),
        observed(streams=[evolve(SEEN, alerts={"a": [(1, TOO_MUCH)]})]),
        observed(streams=[evolve(SEEN, alerts={"\x1b[2J": []})]),
        observed(streams=[evolve(SEEN, first=TOO_MUCH)]),
        observed(sent=[evolve(SENT, start=-math.inf, end=math.inf)]),
        observed(sent=[evolve(SENT, last=TOO_MUCH)]),
        observed(alerts=[evolve(ACKNOWLEDGED, due=math.nan)]),
        observed(alerts=[evolve(ACKNOWLEDGED, sender="\n")]),
    ],
)
def test_what_would_break_or_fill_a_coordinator_is_refused(update: StatsUpdate) -> None:
    made = state()
    with pytest.raises(ValueError, match=r"no such|too large|no number|below 0|more than|a name"):
        made.add("b.test:3100", update)
    made.conclude()
    assert made.observations.number == 0


def test_what_a_good_generator_sees_is_kept() -> None:
    made = state()
    made.add("b.test:3100", of_group(DELTA))
    made.add("b.test:3100", observed(streams=[SEEN], sent=[SENT], alerts=[ACKNOWLEDGED]))
    made.add("b.test:3100", used(seconds=1.0, busy=0.5, dropped=2))
    assert made.run_stats.group("v").counts["received"] == 1
    assert made.observations.streams == [SEEN]
    assert made.observations.sent == [SENT]
    assert made.observations.alerts == [ACKNOWLEDGED]


def test_names_do_not_grow_without_end_over_many_updates() -> None:
    made = state()
    updates = (of_group(evolve(DELTA, counts={f"ended.{n}": 1})) for n in range(10_000))
    with pytest.raises(ValueError, match="more than 500 counts or times of one group"):
        add_all(made, updates)
    assert len(made.run_stats.group("v").counts) <= 500


def test_a_script_may_name_groups_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_check, "MAX_RUN_GROUPS", 10)
    made = state('script = "actors.py"\n' + SOURCE)
    with pytest.raises(ValueError, match="more than 10 groups"):
        add_all(made, (of_group(DELTA, f"talkers-{number}") for number in range(100)))
    with pytest.raises(ValueError, match="no such group"):
        state('script = "actors.py"\n' + SOURCE).add("b.test:3100", of_group(DELTA, "=1+1"))


@pytest.mark.parametrize(
    "update",
    [
        lambda: observed(streams=[evolve(SEEN, alerts={"a": [(n, n) for n in range(5)]})]),
        lambda: observed(sent=[SENT] * 5),
        lambda: observed(alerts=[ACKNOWLEDGED] * 5),
    ],
)
def test_observations_without_room_are_dropped_and_the_run_says_so(
    update: Callable[[], StatsUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "MAX_RUN_OBSERVATIONS", 20)
    made = state()
    for _ in range(100):
        made.add("b.test:3100", update())
    assert made.observations.number <= 20
    made.end_second(1.0, {})
    generator = made.result().generator
    assert generator is not None
    assert generator.dropped >= 95
