"""The generator says how busy it was, how long its garbage collection took, and what it lost."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from rich.console import Console

from relay.load.actors.engine import StatsUpdate
from relay.load.actors.own_load import OwnLoad
from relay.load.measures.generator_usage import (
    GeneratorResult,
    GeneratorSecond,
    GeneratorUsage,
    OneGenerator,
)
from relay.load.measures.reconciliation import observations
from relay.load.measures.reconciliation.observations import Observations, StreamObservation
from relay.load.measures.stats import GroupStats
from relay.load.report.csv_rows import csv_rows
from relay.load.report.github import result_annotations
from relay.load.report.html import page
from relay.load.report.junit import junit_xml
from relay.load.report.metrics.samples import MetricTotals
from relay.load.report.summary import print_summary
from relay.load.run.agents.clocks import ClockFilter
from relay.load.run.generator import Generator
from relay.load.run.run_state import RunState
from relay.load.run.wire import MessagePipe
from relay.load.scenario.parsing import parse_scenario
from tests.unit.load.report.test_ci_outputs import RESULT


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


def test_a_run_says_for_how_long_all_cores_of_the_machine_were_busy() -> None:
    state = RunState(parse_scenario("[phones.p]", "s.toml", Path()))
    for second, machine in enumerate((None, 0.5, 0.96, 1.0), 1):
        state.end_second(float(second), {}, machine)
    full, free = state.result(), attrs.evolve(state.result(), full_seconds=0)
    words = "all cores of this machine were busy for 2 of 4 s, also with other work"
    for result, is_said in ((full, True), (free, False)):
        screen = StringIO()
        print_summary(Console(file=screen, width=300), result)
        assert (words in screen.getvalue()) == (words in page(result, [])) == is_said


def outputs(
    generator: GeneratorResult, generators: Mapping[str, OneGenerator] | None = None
) -> list[str]:
    result = attrs.evolve(
        RESULT, outcome="kept", checks=[], generator=generator, generators=dict(generators or {})
    )
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


def one(usage: GeneratorResult, clock_error: float | None = 0.0003) -> OneGenerator:
    return OneGenerator(
        usage=usage, processes=2, machine="a machine", clock_error=clock_error, sent=11, received=22
    )


def test_each_of_several_generators_is_named_and_those_that_were_too_busy_are_marked() -> None:
    busy = attrs.evolve(CALM, busiest=0.9, overloaded=4)
    generators = {"a.test:3100": one(CALM), "b.test:3100": one(busy)}
    for output in outputs(busy, generators):
        assert "4 seconds (b.test:3100): use more agents or more of their --workers" in output
    for output in outputs(busy, generators)[:2]:
        assert "a.test:3100" in output
        assert "\u00b10.3 ms" in output
    assert not any("(b.test" in output for output in outputs(CALM, {"b.test:3100": one(CALM)}))
    result = attrs.evolve(RESULT, generator=busy, generators=generators)
    junit = junit_xml(result)
    assert '<property name="generator.b.test:3100.busiest" value="0.9" />' in junit
    assert '<property name="generator.a.test:3100.clock_error" value="0.0003" />' in junit


@pytest.mark.parametrize(("error", "words"), [(0.02, "\u00b120 ms"), (float("inf"), "nothing")])
def test_clocks_that_are_hardly_known_are_marked(error: float, words: str) -> None:
    generators = {"a.test:3100": one(CALM), "b.test:3100": one(CALM, error)}
    for output in outputs(CALM, generators):
        assert f"clocks are known to {words} only (b.test:3100), and ages" in output
        assert "may be what limits" not in output


def two_generators() -> RunState:
    state = RunState(parse_scenario("[phones.p]", "s.toml", Path()))
    stream, _ = trio.testing.memory_stream_pair()
    for name in ("a:1", "b:1"):
        pipe = MessagePipe(stream, stream)
        state.generators[name] = Generator(name, pipe, 2, "a machine", ClockFilter())
    return state


def seen(sent: int, late: float, busy: float) -> StatsUpdate:
    phones, own = GroupStats(), GroupStats()
    phones.counts.update({"sent": sent, "auth.done": 1})
    for _ in range(100):
        own.time("lateness").record(late)
    usage = GeneratorUsage(seconds=1, busy=busy, gc_pause=busy / 10)
    groups = {"p": {"": phones.drain()}, "generator": {"": own.drain()}}
    return StatsUpdate(groups, Observations(), "", usage)


def test_of_a_run_that_never_began_it_says_why_and_judges_nothing() -> None:
    state = RunState(parse_scenario("[phones.p]", "s.toml", Path()))
    state.failure = "there are no tokens"
    state.conclude()
    result = state.result()
    assert (result.outcome, result.checks) == ("could not run", [])
    screen = StringIO()
    print_summary(Console(file=screen, width=80), result)
    assert screen.getvalue() == f"{result.scenario}: could not run: there are no tokens\n"


def test_what_generators_did_is_merged_and_kept_apart() -> None:
    state = two_generators()
    state.add("a:1", seen(10, 0.001, 0.2), 0)
    state.add("a:1", seen(5, 0.001, 0.3), 1)
    state.add("b:1", seen(7, 0.5, 0.8), 0)
    state.end_second(1.0, {})
    state.conclude()
    result = state.result()
    assert result.groups["p"].counts["sent"] == 22
    assert {name: each.sent for name, each in result.generators.items()} == {"a:1": 15, "b:1": 7}
    assert result.workers == 4
    assert result.generator is not None
    assert result.generator.busiest == 0.8
    assert result.generators["a:1"].usage.busiest == 0.3
    assert result.generators["b:1"].usage.overloaded == 1
    assert [each.line for each in result.checks if not each.kept] == [
        "lateness.p99 < 100ms",
        "lateness.p99 < 100ms at b:1",
    ]
    (second,) = state.seconds
    rows = csv_rows(second).splitlines()
    assert any(row.startswith("1,generator a:1,") and row.endswith(",0.3,0.03") for row in rows)
    assert len({row.count(",") for row in rows}) == 1
    samples = MetricTotals().add(second)
    busy = [each for each in samples if each.metric.name == "generator_busy"]
    assert {each.labels: each.value for each in busy} == {
        (): 0.8, (("generator", "a:1"),): 0.3, (("generator", "b:1"),): 0.8,
    }  # fmt: skip


def test_one_late_generator_of_many_is_found_though_the_merged_figure_looks_good() -> None:
    state = two_generators()
    for _ in range(200):
        state.add("a:1", seen(1, 0.001, 0.1))
    state.add("b:1", seen(1, 0.5, 0.1))
    state.conclude()
    failed = [each for each in state.result().checks if not each.kept]
    assert [each.line for each in failed] == ["lateness.p99 < 100ms at b:1"]
