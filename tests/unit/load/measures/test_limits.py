"""What gave way first."""

from __future__ import annotations

import attrs
import pytest

from relay.load.measures.analysis.limits import LevelRun, find_cause
from relay.load.measures.checks import CheckResult
from relay.load.measures.generator_usage import GeneratorResult, GeneratorSecond
from relay.load.measures.results import GroupResult, GroupSecond, RunResult, Second

EMPTY = GroupResult(counts={}, errors={}, times={}, histograms={})
QUIET = GeneratorResult(busiest=0.2, overloaded=0, gc_pause=0, dropped=0, lateness=0.001)
RESULT = RunResult(
    scenario="s", started=0, seconds=10, workers=1, machine="m", outcome="kept", failure=None,
    aborted_by=None, stages={}, checks=[], ledger=[], groups={}, total=EMPTY, generator=QUIET,
)  # fmt: skip


def run(
    level: float = 100,
    *,
    kept: bool = False,
    cpu: float | None = 0.3,
    waited: float | None = None,
    busy: float = 0.2,
    machine: float | None = 0.5,
    traffic: float = 1e6,
    result: RunResult = RESULT,
) -> LevelRun:
    group = GroupSecond(
        connected=1, sent=0, received=1, missed=0, bytes_in=int(traffic), closes=0, errors=0,
        age={}, ages="",
    )  # fmt: skip
    seconds = [
        Second(
            at=at, sent=1, received=1, missed=0, bytes_in=traffic, connected=1, closes=0, errors=0,
            age={}, lateness=0, busiest=cpu, waited=waited, machine=machine,
            groups={"v": group}, generator=GeneratorSecond(busy=busy),
        )
        for at in range(1, 6)
    ]  # fmt: skip
    return LevelRun(level=level, kept=kept, result=result, seconds=seconds)


KEPT = run(50, kept=True, traffic=5e5)


def test_a_full_core_of_the_relay_is_named_with_its_share_and_the_room_of_others() -> None:
    cause = find_cause(run(cpu=0.97), KEPT)
    assert cause.resource == "relay"
    assert "97% of a core" in cause.evidence
    assert cause.others == ["the generator was busy 20% of the time"]
    assert not cause.is_generator


def test_a_relay_that_was_given_less_than_a_core_is_named_with_what_it_waited() -> None:
    """As in a container with a limit, or beside others on its core: traffic has a plateau, too."""
    cause = find_cause(run(200, cpu=0.12, waited=0.8), run(100, kept=True, traffic=1e6))
    assert cause.resource == "relay"
    assert not cause.is_generator
    assert "used 12% of a core, and waited for one for 80% of the time" in cause.evidence
    assert find_cause(run(cpu=0.07, waited=0.72), KEPT).resource == "relay"
    assert find_cause(run(cpu=0.5, waited=0.2), KEPT).resource == "unknown"


def test_a_relay_that_waited_for_a_full_machine_is_named_after_that() -> None:
    cause = find_cause(run(cpu=0.5, waited=0.45, machine=1.0), KEPT)
    assert cause.resource == "machine"
    (relay,) = cause.others
    assert relay.startswith("relay: its busiest process used 50% of a core, and waited for one")
    full = find_cause(run(cpu=0.9, waited=0.08, machine=1.0), KEPT)
    assert (full.resource, full.others) == ("relay", ["the generator was busy 20% of the time"])


@pytest.mark.parametrize("cpu", [0.3, 0.99])
def test_a_generator_that_is_full_is_named_and_not_the_relay(cpu: float) -> None:
    cause = find_cause(run(busy=0.9, cpu=cpu), KEPT)
    assert cause.resource == "generator"
    assert cause.is_generator
    assert "worked 90% of the time" in cause.evidence


def test_a_generator_that_is_late_is_named_too() -> None:
    late = CheckResult("lateness.p99 < 100ms", kept=False, measured="800 ms")
    cause = find_cause(run(result=attrs.evolve(RESULT, checks=[late])), KEPT)
    assert (cause.resource, cause.is_generator) == ("generator", True)
    assert "it was late by 800 ms" in cause.evidence


def test_a_cap_of_an_agent_is_a_limit_of_the_generator() -> None:
    words = "a.test:1: 2000 connections are more than its --max-connections of 1000"
    failed = run(result=attrs.evolve(RESULT, failure=words, outcome="could not run"))
    assert failed.failed_checks == [f"could not run: {words}"]
    assert find_cause(failed, KEPT).is_generator


def test_a_machine_that_is_full_of_other_work_is_named() -> None:
    cause = find_cause(run(machine=1.0), KEPT)
    assert (cause.resource, cause.is_generator) == ("machine", True)


def test_simulated_links_that_became_full_are_named_by_their_group() -> None:
    failed = attrs.evolve(run(traffic=1e6), capacity={"v": 1.05e6})
    kept = attrs.evolve(KEPT, capacity={"v": 1.05e6})
    cause = find_cause(failed, kept)
    assert cause.resource == "link"
    assert "links of v carried 95%" in cause.evidence
    full_before = attrs.evolve(kept, seconds=failed.seconds)
    assert "simulated" not in find_cause(failed, full_before).evidence


def test_uplinks_that_became_too_slow_are_named() -> None:
    phones = attrs.evolve(EMPTY, counts={"sent": 90, "withheld": 10})
    result = attrs.evolve(RESULT, groups={"p": phones})
    cause = find_cause(attrs.evolve(run(result=result), thin_phones=["p"]), KEPT)
    assert cause.resource == "link"
    assert "uplinks of p were too slow for 10%" in cause.evidence


def test_a_slow_database_is_named_by_what_waited_for_it() -> None:
    slow = attrs.evolve(RESULT, verification=0.8)
    quick = attrs.evolve(RESULT, verification=0.004)
    cause = find_cause(run(result=slow), run(50, kept=True, result=quick, traffic=5e5))
    assert cause.resource == "database"
    assert cause.evidence == "a token was verified in 800 ms, 4 ms at the limit"


def test_a_full_machine_that_took_nothing_from_the_relay_is_named_last() -> None:
    slow = attrs.evolve(RESULT, verification=0.8)
    cause = find_cause(run(cpu=0.04, waited=0.05, machine=1.0, result=slow), KEPT)
    assert cause.resource == "database"
    assert cause.others == [
        "machine: all cores of this machine were busy (100%), also with other work"
    ]
    assert find_cause(run(cpu=0.04, waited=0.05, machine=1.0), KEPT).resource == "machine"
    not_known = find_cause(run(cpu=0.04, machine=1.0, result=slow), KEPT)
    assert not_known.resource == "machine"


def connecting(mean: float, verification: float, check: str) -> LevelRun:
    """A run that failed this check, in which clients took so long to connect."""
    total = attrs.evolve(EMPTY, times={"connect_time": {"mean": mean}})
    failed = CheckResult(check, kept=False, measured="612 ms")
    return run(result=attrs.evolve(RESULT, total=total, verification=verification, checks=[failed]))


def test_a_database_that_is_most_of_a_slow_login_is_named_even_if_it_was_slow_before() -> None:
    check, slow = "connect_time.p99 < 400ms", attrs.evolve(RESULT, verification=0.3)
    kept = run(50, kept=True, result=slow, traffic=5e5)
    cause = find_cause(connecting(0.5, 0.45, check), kept)
    assert cause.resource == "database"
    assert cause.evidence == (
        "a token was verified in 450 ms, of the 500 ms in which clients connected"
    )
    for other in (connecting(2.0, 0.45, check), connecting(0.5, 0.45, "frame_age.p99 < 200ms")):
        assert find_cause(other, kept).resource == "unknown"


@pytest.mark.parametrize("verification", [None, 0.004])
def test_a_database_that_answers_some_in_no_time_and_others_never_is_named(
    verification: float | None,
) -> None:
    """Only what was answered has a time."""
    stalled = attrs.evolve(RESULT, verification=verification, unverified=0.25)
    cause = find_cause(run(result=stalled), KEPT)
    assert cause.resource == "database"
    assert cause.evidence == "25% of the tokens were not verified in time"
    before = run(50, kept=True, result=stalled, traffic=5e5)
    assert find_cause(run(result=stalled), before).resource == "unknown"


def test_traffic_that_no_longer_grows_is_a_link_if_nothing_else_is_full() -> None:
    cause = find_cause(run(200, traffic=1e6), run(100, kept=True, traffic=1e6))
    assert cause.resource == "link"
    assert "traffic did not grow with the load: 8 Mbit/s at 100, 8 Mbit/s at 200" in cause.evidence


def test_where_nothing_is_full_it_says_so_with_what_was_measured() -> None:
    cause = find_cause(run(), KEPT)
    assert cause.resource == "unknown"
    assert "30% of a core" in cause.evidence
    assert cause.others == []
    assert find_cause(run(cpu=None, machine=None), None).resource == "unknown"


def test_where_the_relay_does_not_say_how_busy_it_was_nothing_else_is_named_without_that() -> None:
    slow = attrs.evolve(RESULT, verification=0.8)
    for result, resource in ((RESULT, "unknown"), (slow, "database")):
        cause = find_cause(run(cpu=None, result=result), KEPT)
        assert cause.resource == resource
        assert any("how busy the relay was is not known" in words for words in cause.others)
    late = find_cause(run(cpu=None, busy=0.9), KEPT)
    assert late.resource == "generator"
    assert not any("not known" in words for words in late.others)
