"""Several targets: how clients are spread over them, and what each target's ledger must say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import attrs
import pytest

from relay.load.actors.engine import Share, make_actors
from relay.load.actors.frames.payloads import PayloadFactory
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.measures.reconciliation.ledger import (
    HopTotals,
    LostFrames,
    TargetLedger,
    TargetTotals,
    compare_hops,
    compare_ledger,
)
from relay.load.measures.stats import GroupStats
from relay.load.run.targets.target_reports import read_metrics
from relay.load.scenario.parsing import parse_scenario, with_targets
from relay.load.scenario.schedule import Timeline
from relay.load.scenario.schema import ScenarioError
from relay.protocol.reports import FiguresReport, StreamReport

TARGETS = "[targets.a]\nstart = true\n[targets.b]\nstart = true\n[targets.c]\nstart = true\n"
RUNNING = "[targets.a]\nurl = 'ws://localhost:1'\n[targets.b]\nurl = 'ws://localhost:2'\n"
PHONES = "[phones.p]\n"


def spread(source: str) -> dict[str, list[str]]:
    """The targets of the actors of each group."""
    scenario = parse_scenario(f"{TARGETS}{source}", "mine.toml", Path())
    urls = {name: f"ws://{name}" for name in scenario.targets_by_name}
    context = RunContext(Timeline(scenario), Endpoint(urls, ("t",)), "abcd1234")
    found: dict[str, list[str]] = {}
    for actor in make_actors(context, Share(), PayloadFactory(scenario.seed)):
        found.setdefault(actor.name, []).append(actor.target)
    return found


def test_phones_are_spread_in_turn_unless_their_group_names_a_target() -> None:
    found = spread("[phones.p]\ncount = 4\n[phones.q]\ncount = 2\ntarget = 'c'\n")
    assert found == {"p": ["a", "b", "c", "a"], "q": ["c", "c"]}


@pytest.mark.parametrize("phones", [1, 2, 3, 4])
def test_the_viewers_of_each_stream_are_at_all_targets_first_where_its_phone_is_not(
    phones: int,
) -> None:
    source = f"[phones.p]\ncount = {phones}\n[viewers.v]\nwatch = 'p'\ncount = {3 * phones}\n"
    found = spread(source)
    for stream in range(phones):
        at = found["v"][stream::phones]
        assert sorted(at) == ["a", "b", "c"]
        assert at[-1] == found["p"][stream]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"{TARGETS}[phones.p]\ntarget = 'aa'", "phones.p.target: there is no target named 'aa'"),
        (f"{TARGETS}[phones.p]\ntarget = 'aa'", "; did you mean a?"),
        ("[phones.p]\ntarget = 'a'", "phones.p.target: there is one target, without a name"),
        (f"[target]\nstart = true\n{TARGETS}{PHONES}", "targets: use one of target and targets"),
        (
            f"[targets.a]\nstart = true\n[targets.b]\nurl = 'ws://localhost:1'\n{PHONES}",
            "targets: use start = true for all of them, or url for all",
        ),
        (f"[targets.A]\nstart = true\n{PHONES}", "targets.A: a name consists of lowercase"),
        (f"targets = 3\n{PHONES}", "targets: expected tables by name, such as [targets.a]"),
        (f"{TARGETS}{PHONES}reconnect = {{target = 'b'}}", 'expected "same" or "next"'),
        (
            f"{TARGETS}{PHONES}[[stages]]\nduration = '1s'\nrestart = ['d']",
            "stages[0].restart: there is no target named 'd'",
        ),
        (
            f"{RUNNING}{PHONES}[[stages]]\nduration = '1s'\ndrain = ['a']",
            "stages[0].drain: a is not started by this run, so it cannot end it",
        ),
    ],
)
def test_what_is_wrong_with_targets_is_said(source: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(source, "mine.toml", Path())
    assert words in str(caught.value)


def test_the_hop_and_the_processes_of_a_target_are_read_from_its_metrics() -> None:
    text = """\
# HELP relay_hop_frames_total Frames
relay_hop_frames_total{direction="out",outcome="written"} 70.0
relay_hop_frames_total{direction="out",outcome="dropped"} 3.0
relay_hop_frames_total{direction="in",outcome="received"} 1e+06
relay_hop_frames_total{direction="in",outcome="lost"} 2.0
process_cpu_seconds_total{worker="0"} 1.5
process_cpu_seconds_total{worker="1"} 2.25
process_resident_memory_bytes{worker="0"} 1e+07
process_resident_memory_bytes{worker="1"} 2e+07
"""
    found = read_metrics(text)
    assert found.hop == HopTotals(written=70, dropped=3, received=1_000_000, lost=2)
    assert found.usage is not None
    assert (found.usage.cpu_seconds, found.usage.resident) == (3.75, 30_000_000)
    assert found.has_workers
    assert read_metrics("").usage is None


# -- the ledger

HONEST = {"sent": 10, "received": 27, "skipped": 3, "alerts.received": 2, "alerts.accepted": 2,
          "alerts.sent": 2}  # fmt: skip
TOTALS = TargetTotals(
    accepted=10, offered=30, written=28, dropped=2, stored=2, delivered=2,
    hop=HopTotals(received=10, lost=1),
)  # fmt: skip


def wrong_lines(totals: TargetTotals = TOTALS, *, viewers: int = 1, **counts: int) -> list[str]:
    """What disagrees where clients saw this."""
    stats = GroupStats()
    stats.counts.update(HONEST | counts)
    ledger = TargetLedger(target="a", totals=totals)
    found = compare_ledger(ledger, stats, {"s": viewers})
    return [line.what for line in found if not line.agrees]


def test_gaps_are_what_a_node_dropped_and_what_was_lost_on_the_way_there() -> None:
    assert wrong_lines() == []
    assert wrong_lines(skipped=4) == ["gaps of viewers: dropped here, lost on the way here"]
    assert wrong_lines(skipped=4, viewers=2) == []  # each of both missed the lost frame


def test_a_node_that_conceals_what_it_lost_is_caught() -> None:
    silent = attrs.evolve(TOTALS, hop=HopTotals(received=10))
    assert wrong_lines(silent) == ["gaps of viewers: dropped here, lost on the way here"]


def stream(received: int, lost: int, *, node: str = "n1") -> FiguresReport:
    report = StreamReport(
        stream_id="s", status="streaming", epoch=1, frames=received, producer=None, consumers=[],
        node=node, carried_from="n0", received=received, lost=lost,
    )  # fmt: skip
    return FiguresReport(streams=[report])


def test_what_is_lost_of_a_stream_adds_up_over_links_and_nodes() -> None:
    lost = LostFrames()
    for received, number in ((5, 1), (9, 2), (3, 0), (8, 4)):  # a new link before the third
        lost.note(stream(received, number))
    lost.note(stream(7, 3, node="n2"))
    assert lost.by_stream() == Counter({"s": 2 + 4 + 3})


@pytest.mark.parametrize(("received", "agrees"), [(0, True), (10, True), (11, False)])
def test_what_came_from_other_nodes_is_no_more_than_what_they_sent(
    received: int, *, agrees: bool
) -> None:
    hops = [HopTotals(written=7), HopTotals(written=3, received=received)]
    ledgers = [
        TargetLedger(target=str(number), totals=TargetTotals(hop=hop))
        for number, hop in enumerate(hops)
    ]
    assert compare_hops(ledgers).agrees is agrees


def test_of_a_target_that_was_restarted_only_what_is_known_is_compared() -> None:
    stats = GroupStats()
    stats.counts.update(HONEST)
    for accepted, agrees in ((4, True), (11, False)):
        ledger = TargetLedger(target="a", totals=TargetTotals(accepted=accepted), is_complete=False)
        first, *_ = compare_ledger(ledger, stats, {})
        assert (first.what, first.agrees) == ("frames accepted", agrees)


# -- the command line


def named(given: list[str], own: str = RUNNING) -> dict[str, str | None]:
    scenario = parse_scenario(f"{own}{PHONES}", "mine.toml", Path())
    found = with_targets(scenario, given)
    return {name: each.url for name, each in found.targets_by_name.items()}


def test_targets_of_the_command_line_take_the_names_of_the_scenario_or_letters() -> None:
    assert named(["ws://x"]) == {"": "ws://x"}
    assert named(["ws://x", "ws://y"]) == {"a": "ws://x", "b": "ws://y"}
    assert named(["b=ws://x", "ws://y/?a=1"]) == {"b": "ws://x", "a": "ws://y/?a=1"}
    own = RUNNING.replace("targets.a", "targets.east").replace("targets.b", "targets.west")
    assert list(named(["ws://x", "ws://y", "ws://z"], own)) == ["east", "west", "a"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a=ws://x", "a=ws://y"], "--target: two targets are named a"),
        (["A=ws://x"], "--target: A=ws://x: a name consists of lowercase letters"),
        (["b=ws://x"], "--target: phones.p.target: there is no target named 'a'"),
        (["ws://x"], "--target: phones.p.target: there is one target, without a name"),
    ],
)
def test_what_is_wrong_with_targets_of_the_command_line_is_said(
    given: list[str], words: str
) -> None:
    scenario = parse_scenario(f"{RUNNING}{PHONES}target = 'a'", "mine.toml", Path())
    with pytest.raises(ScenarioError) as caught:
        with_targets(scenario, given)
    assert words in str(caught.value)
