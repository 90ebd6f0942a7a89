"""When things are due: fixed beforehand, and by the seed alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.scenario.groups import Arrival, Network
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Pauses, Presence, Timeline, arrivals


def timeline(source: str) -> Timeline:
    return Timeline(parse_scenario(source, "t.toml", Path()))


def joins(found: list[list[Presence]]) -> list[float]:
    return [presence.join for actor in found for presence in actor]


@pytest.mark.parametrize(
    ("arrival", "expected"),
    [
        ('"at once"', [0.0, 0.0, 0.0, 0.0]),
        ('{ over = "8s" }', [0.0, 2.0, 4.0, 6.0]),
        ('{ rate = "2/s", after = "1s" }', [1.0, 1.5, 2.0, 2.5]),
        ('{ rate = "20/min" }', [0.0, 3.0, 6.0, 9.0]),
    ],
)
def test_actors_come_at_once_in_a_ramp_or_at_a_rate(arrival: str, expected: list[float]) -> None:
    line = timeline(f'duration = "10s"\n[phones.a]\ncount = 4\narrival = {arrival}')
    assert joins(line.presences("a")) == pytest.approx(expected)
    assert {presence.leave for actor in line.presences("a") for presence in actor} == {10.0}


def test_poisson_arrivals_have_their_rate_and_are_the_same_each_time() -> None:
    source = 'duration = "1h"\n[phones.a]\ncount = 2000\narrival = { poisson = "10/s" }'
    first, second = (joins(timeline(source).presences("a")) for _ in range(2))
    assert first == second
    gaps = [b - a for a, b in pairwise(first)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.1, rel=0.1)
    assert max(gaps) > 0.3
    assert joins(timeline(f"seed = 2\n{source}").presences("a")) != first


def test_who_would_come_after_the_end_does_not_come() -> None:
    line = timeline('duration = "3s"\n[phones.a]\ncount = 9\narrival = { rate = "1/s" }')
    assert len(joins(line.presences("a"))) == 3


def test_stages_bring_actors_and_send_the_last_ones_away() -> None:
    line = timeline(
        """
        [phones.a]
        count = 1
        [[stages]]
        duration = "10s"
        [[stages]]
        duration = "10s"
        cut = ["a"]
        change.a = { count = 3, arrival = { over = "4s" } }
        [[stages]]
        duration = "10s"
        change.a = { count = 2 }
        """
    )
    assert line.presences("a") == [
        [Presence(0.0, 30.0)],
        [Presence(10.0, 30.0)],
        [Presence(12.0, 20.0)],
    ]
    assert line.cuts("a") == [10.0]


def test_frames_are_due_at_their_rate_in_each_stage_and_never_while_it_is_0() -> None:
    line = timeline(
        """
        [phones.a]
        fps = 10
        [[stages]]
        duration = "10s"
        [[stages]]
        duration = "10s"
        change.a = { fps = 0 }
        [[stages]]
        duration = "10s"
        change.a = { fps = 50 }
        """
    )
    due = list(line.frames_due("a", 0, Presence(0.0, 30.0)))
    assert due == sorted(due)
    assert sum(at < 10 for at in due) == 100
    assert sum(10 <= at < 20 for at in due) == 0
    assert sum(at >= 20 for at in due) == 500
    other = list(line.frames_due("a", 1, Presence(0.0, 30.0)))
    assert other[0] != due[0]


def test_a_service_raises_alerts_at_its_rate() -> None:
    source = '[phones.a]\n[services.s]\nwatch = "a"\nrate = "5/s"\npoisson = {}\n'
    for poisson in ("true", "false"):
        line = timeline('duration = "1000s"\n' + source.format(poisson))
        due = list(line.alerts_due("s", 0, Presence(0.0, 1000.0)))
        assert len(due) == pytest.approx(5000, rel=0.05)
        assert due == sorted(due)


def test_a_network_changes_with_its_stage() -> None:
    line = timeline(
        """
        [phones.a]
        network = { upload = "5Mbit/s" }
        [[stages]]
        duration = "10s"
        [[stages]]
        duration = "10s"
        [stages.change.a]
        network = { upload = "0bit/s", upload_queue = "1MiB" }
        """
    )
    before, after = Network(upload=5e6), Network(upload=0, upload_queue=1 << 20)
    for at, network, until in ((9.9, before, 10.0), (10.0, after, math.inf)):
        group, changes = line.group_at("a", at)
        assert (group.network, changes) == (network, until)
    assert line.networks("a") == [before, after]


def test_a_curve_says_how_many_join_in_each_part_of_the_time() -> None:
    arrival = Arrival(over=100.0, curve=(1, 4, 0, 5), after=10.0)
    at = list(arrivals(arrival, 1000, Random(1)))
    assert at == sorted(at)
    parts = [sum(10 + 25 * n <= each < 35 + 25 * n for each in at) for n in range(4)]
    assert parts == [100, 400, 0, 500]


def test_a_doubling_has_twice_as_many_after_each_time() -> None:
    at = list(arrivals(Arrival(doubles_every=5.0), 1024, Random(1)))
    assert [sum(each <= 5.0 * n + 1e-9 for each in at) for n in range(11)] == [
        2**n for n in range(11)
    ]


@given(
    every=st.floats(0.1, 1000),
    part=st.floats(0.01, 0.99),
    phase=st.floats(0, 1),
    at=st.floats(0, 10_000),
)
def test_an_app_pauses_and_resumes(every: float, part: float, phase: float, at: float) -> None:
    pauses = Pauses(every, every * part, phase * every)
    change = pauses.next_change(at)
    assert at < change <= at + every + 1e-6
    if change - at > 1e-3:
        assert pauses.is_paused(at) == pauses.is_paused((at + change) / 2)
    assert pauses.resumed(at) == (change if pauses.is_paused(at) else at)
    assert pauses.is_paused(change + 1e-5) != pauses.is_paused(at) or every < 0.01
    assert not Pauses().is_paused(at)
