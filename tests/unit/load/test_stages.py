"""Stages: what each group saw and what the relay used in each, and groups in the background."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define
from rich.console import Console

from relay.load.actors import attacks
from relay.load.actors.engine import Share, drain_update
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.measures.process_usage import ProcessUsage
from relay.load.measures.results import UsedInStage
from relay.load.measures.stats import GroupStats, endings_of
from relay.load.report.html import page
from relay.load.report.summary import print_summary
from relay.load.run.run_state import RunState
from relay.load.run.targets.stage_meter import StageMeter
from relay.load.run.targets.target_reports import TargetFailed
from relay.load.run.tokens import user_name
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Timeline

STAGES = """
[phones.p]
[viewers.v]
watch = "p"
[[stages]]
name = "calm"
duration = "2s"
[[stages]]
name = "storm"
duration = "4s"
"""
APART = """
workers = 3
[phones.p]
[viewers.crowd]
watch = "p"
count = 10
background = true
"""


def state_of(source: str) -> RunState:
    return RunState(parse_scenario(source, "test.toml", Path()))


def stats_with(counts: dict[str, int], **times: float) -> GroupStats:
    stats = GroupStats()
    stats.counts.update(counts)
    for name, seconds in times.items():
        stats.time(name).record(seconds)
    return stats


def shown(state: RunState) -> str:
    screen = StringIO()
    print_summary(Console(file=screen, width=120), state.result())
    return screen.getvalue()


def test_the_summary_and_the_report_say_what_was_seen_and_used_in_each_stage() -> None:
    state = state_of(STAGES)
    calm = {"received": 100, "sent": 100}
    state.run_stats.add({"v": {"": stats_with(calm, frame_age=0.005).drain()}}, "calm")
    logins = stats_with({"auth.done": 2000}, connect_time=1.5)
    state.run_stats.add({"v": {"": logins.drain()}}, "storm")
    state.used_in_stages = {
        "calm": UsedInStage(cpu=0.1, memory=64 << 20, queries=1),
        "storm": UsedInStage(cpu=1.3, memory=90 << 20, queries=20),
    }
    words = shown(state)
    assert re.search(r"calm +v +100 +(5(\.\d+)? ms *){4}", words)
    assert re.search(r"storm +v +2000 +(1\.5\d* s *){3}", words)
    # What a login costs is known where there is nothing else.
    assert re.search(r"calm +5% +64.0 MiB +1 *\n", words)
    assert re.search(r"storm +32% +90.0 MiB +20 +0.65 ms +0.010", words)
    html = page(state.result(), [])
    assert "<h2>Stages</h2>" in html
    assert "<td>storm</td><td>32%</td>" in html


def test_a_run_of_one_stage_has_no_tables_of_stages() -> None:
    state = state_of("[phones.p]\n")
    state.run_stats.add({"p": {"": stats_with({"received": 1}).drain()}}, "run")
    assert state.result().by_stage == {}
    assert "stage" not in shown(state)


def test_the_summary_says_how_the_relay_answered_attacks_the_most_frequent_first() -> None:
    state = state_of("[hostiles.h]\nkind = 'bad-token'\n")
    stats = stats_with({"attacks": 5})
    for words in ("HTTP 429", "AUTH_FAILED", "AUTH_FAILED"):
        stats.note_ending(words)
    state.run_stats.add({"h": {"": stats.drain()}})
    words = "h: 5 attacks; the relay's answers: 2 x AUTH_FAILED, 1 x HTTP 429"
    assert words in shown(state)


def test_a_relay_that_answers_in_many_ways_fills_no_memory() -> None:
    stats = GroupStats()
    for number in range(1000):
        stats.note_ending(f"CODE_{number}\x1b")
    endings = endings_of(stats.counts)
    assert (len(endings), endings["otherwise"]) == (41, 960)
    assert "CODE_0" in endings


@define
class Reports:
    answers: list[int | None]

    async def verification_queries(self) -> int:
        answer = self.answers.pop(0)
        if answer is None:
            raise TargetFailed("nobody answers")
        return answer


@define
class FakeTarget:
    reports: Reports


@define
class FakeTargets:
    """One relay, which uses half a core."""

    by_name: dict[str, FakeTarget]

    def usage(self) -> dict[str, ProcessUsage]:
        return {"": ProcessUsage(trio.current_time() / 2, 1000)}


@pytest.mark.mock_clock
@pytest.mark.parametrize(
    ("answers", "queries"), [([3, 5, 25], [2, 20]), ([3, None, 25], [None, None])]
)
async def test_what_the_relay_used_is_read_when_a_stage_begins_and_ends(
    answers: list[int | None], queries: list[int | None], autojump_clock: trio.testing.MockClock
) -> None:
    targets: Any = FakeTargets({"": FakeTarget(Reports(answers))})
    meter = StageMeter(parse_scenario(STAGES, "test.toml", Path()), targets)
    await meter.run(trio.current_time() + 1)
    assert meter.used == {
        "calm": UsedInStage(cpu=1.0, memory=1000, queries=queries[0]),
        "storm": UsedInStage(cpu=2.0, memory=1000, queries=queries[1]),
    }


def members(share: Share, *, background: bool) -> list[int]:
    scenario = parse_scenario(APART, "test.toml", Path())
    return list(share.members(scenario, background=background, count=5))


def test_the_last_worker_plays_the_groups_in_the_background_and_no_other() -> None:
    shares = [Share(worker=worker, of=3) for worker in range(3)]
    assert [members(each, background=True) for each in shares] == [[], [], [0, 1, 2, 3, 4]]
    assert [members(each, background=False) for each in shares] == [[0, 2, 4], [1, 3], []]
    scripts = [each.of_script(parse_scenario(APART, "t", Path())) for each in shares[:2]]
    assert scripts == [(0, 2), (1, 2)]
    alone = Share()  # --workers 1
    assert members(alone, background=True) == members(alone, background=False) == [0, 1, 2, 3, 4]


@pytest.mark.mock_clock
async def test_a_worker_in_the_background_may_be_late_and_busy_without_doubt_of_the_run() -> None:
    scenario = parse_scenario(APART, "test.toml", Path())
    context = RunContext(Timeline(scenario), Endpoint("ws://x", ("t",)), "abcd1234")
    context.is_background = True
    context.note_lateness(3.0)
    with context.own_load.measuring():
        context.own_load._since = context.own_load._clock() - 1
        update = drain_update(context, 0)
    assert update.usage.seconds > 0.9
    assert update.usage.busy == 0
    assert set(update.groups["generator"][""].times) == {"background_lateness"}


def test_each_user_of_a_storm_has_a_name() -> None:
    assert [user_name(number) for number in (0, 1)] == [
        "load@relay.invalid",
        "load-1@relay.invalid",
    ]


@pytest.mark.parametrize("has_many", [True, False])
def test_attackers_come_from_many_addresses_of_this_machine_where_it_has_them(
    has_many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "has_many_addresses", lambda: has_many)
    found = {attacks.loopback_address(number) for number in range(60_000)}
    if not has_many:
        assert found == {None}
        return
    assert len(found) == 60_000
    assert "127.0.0.1" not in found
    assert {"127.1.0.1", "127.240.0.250"} <= found


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://127.0.0.1:3000", True),
        ("ws://localhost:3000/x", True),
        ("ws://[::1]:3000", False),
        ("ws://10.0.0.1", False),
        ("wss://relay.example", False),
    ],
)
def test_they_come_from_the_usual_address_to_a_relay_elsewhere(url: str, expected: bool) -> None:
    assert attacks._is_loopback(url) is expected
