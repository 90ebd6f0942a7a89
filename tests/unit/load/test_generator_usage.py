"""The generator says how busy it was, how long its garbage collection took, and what it lost."""

from __future__ import annotations

import gc
from io import StringIO
from pathlib import Path

import attrs
import pytest
import trio
from rich.console import Console

from relay.load.actors.engine import StatsUpdate
from relay.load.actors.own_load import OwnLoad
from relay.load.measures import observations
from relay.load.measures.generator_usage import GeneratorResult, GeneratorSecond, GeneratorUsage
from relay.load.measures.observations import Observations, StreamObservation
from relay.load.report.github import result_annotations
from relay.load.report.html import page
from relay.load.report.junit import junit_xml
from relay.load.report.summary import print_summary
from relay.load.run.run_state import RunState
from relay.load.scenario.scenario import parse_scenario
from tests.unit.load.test_ci_outputs import RESULT


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_all_time_in_which_the_loop_does_not_wait_is_busy() -> None:
    clock = Clock()
    own = OwnLoad(clock)
    own.after_io_wait(0)  # the loop was waiting when the measurement began
    own.drain(0)
    for busy, waiting in ((0.1, 0.3), (0.2, 0.4)):
        clock.now += busy
        own.before_io_wait(1.0)
        clock.now += waiting
        own.after_io_wait(1.0)
    usage = own.drain(dropped=2)
    assert usage.seconds == pytest.approx(1.0)
    assert usage.busy == pytest.approx(0.3)
    assert usage.dropped == 2
    assert own.drain(0) == GeneratorUsage()


def test_the_longest_garbage_collection_is_kept_until_it_was_told() -> None:
    clock = Clock()
    own = OwnLoad(clock)
    for pause in (0.01, 0.05, 0.02):
        own.on_gc("start", {})
        clock.now += pause
        own.on_gc("stop", {})
    assert own.drain(0).gc_pause == pytest.approx(0.05)
    assert own.drain(0).gc_pause == 0


async def test_a_real_loop_and_a_real_collection_are_measured_and_nothing_stays_behind() -> None:
    own, callbacks = OwnLoad(), len(gc.callbacks)
    with own.measuring():
        await trio.sleep(0.05)
        gc.collect()
        usage = own.drain(0)
    assert 0 < usage.gc_pause < usage.seconds
    assert 0 < usage.busy < usage.seconds - 0.04
    assert len(gc.callbacks) == callbacks
    await trio.sleep(0.01)
    assert own.drain(0).busy > 0  # no instrument subtracts the wait


def test_observations_without_room_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations, "MAX_OBSERVATIONS", 1)
    seen, all_of_them = Observations(), Observations()
    one = StreamObservation(
        group="v", stream="s", start=0, end=1, watched=True, first=None, last=None, alerts={}
    )
    for _ in range(3):
        seen.add_stream(one)
    assert seen.dropped == 2
    all_of_them.add(seen.drain())
    assert (all_of_them.dropped, seen.dropped) == (2, 0)


def test_a_second_is_as_busy_as_the_busiest_worker() -> None:
    state = RunState(parse_scenario("[phones.p]", "s.toml", Path()))
    for worker, busy in (("a", 0.2), ("b", 0.5), ("b", 0.4)):
        usage = GeneratorUsage(seconds=0.5, busy=busy, gc_pause=busy / 10, dropped=1)
        state.add(worker, StatsUpdate({}, Observations(), "", usage))
    state.end_second(1.0, {})
    assert state.seconds[0].generator == GeneratorSecond(busy=0.9, gc_pause=0.05, dropped=3)
    state.end_second(2.0, {})
    assert state.seconds[1].generator == GeneratorSecond()
    result = state.result().generator
    assert result == GeneratorResult(
        busiest=0.9, overloaded=1, gc_pause=0.05, dropped=3, lateness=0.0
    )


def outputs(generator: GeneratorResult) -> list[str]:
    result = attrs.evolve(RESULT, outcome="kept", checks=[], generator=generator)
    screen = StringIO()
    print_summary(Console(file=screen, width=300), result)
    return [screen.getvalue(), page(result, []), "\n".join(result_annotations(result, "f", ""))]


CALM = GeneratorResult(busiest=0.7, overloaded=0, gc_pause=0.004, dropped=0, lateness=0.003)


def test_a_run_above_70_percent_of_what_the_generator_can_do_is_marked_everywhere() -> None:
    doubt = "the generator may be what limits these figures: "
    assert not any(doubt in output for output in outputs(CALM))
    busy = attrs.evolve(CALM, busiest=0.71, overloaded=3)
    for output in outputs(busy):
        assert f"{doubt}it was busy for more than 70" in output
        assert "of the time in 3 seconds" in output
    for output in outputs(attrs.evolve(CALM, dropped=7)):
        assert f"{doubt}it dropped 7 observations" in output


def test_what_the_generator_did_is_in_each_report() -> None:
    words = (
        "generator: late by 3 ms (p99), busy for up to 70% of a second, garbage collection up to"
        " 4 ms, 0 observations dropped"
    )
    summary, html, _ = outputs(CALM)
    assert words in summary
    assert words in html
    junit = junit_xml(attrs.evolve(RESULT, generator=CALM))
    assert '<property name="generator.gc_pause" value="0.004" />' in junit
