"""Thresholds and figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.measures.checks import parse_threshold
from relay.load.measures.histogram import MAX_VALUE, HdrHistogram
from relay.load.measures.stats import (
    GroupStats,
    LinkCapacity,
    RunStats,
    TimeDistribution,
)

GROUPS = ("slow", "fast")


def some_stats() -> RunStats:
    made = RunStats({"slow": LinkCapacity(1_000_000, 0.0)})
    slow, fast = made.group("slow"), made.group("fast")
    for _ in range(100):
        slow.time("frame_age").record(0.3)
        fast.time("frame_age").record(0.01)
    slow.counts.update({"received": 100, "missed": 300, "frames.bytes": 100 * 25_000})
    fast.counts.update({"received": 999, "missed": 1})
    slow.counts.update({"pictures": 100, "layer.l": 75, "layer.p50": 25, "switches": 3})
    slow.counts.update({"watched_ms": 20_000})
    fast.counts.update({"pictures": 900, "layer.H": 900, "watched_ms": 60_000})
    return made


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("frame_age.p99 < 400ms", "kept"),
        ("frame_age.p99 < 0.2s", "failed"),
        ("fast.frame_age.p999 < 20ms", "kept"),
        ("fast.frame_age.p99 < 20ms", "kept"),
        ("slow.frame_age.p50 < 1.6 x wire", "kept"),
        ("slow.frame_age.p50 < 1.6 \u00d7 wire", "kept"),
        ("slow.frame_age.p50 < 1.4 x wire", "failed"),
        ("fast.missed < 0.2%", "kept"),
        ("fast.missed < 0.1%", "failed"),
        ("slow.missed >= 75%", "kept"),
        ("missed == 301", "kept"),
        ("alerts.lost == 0", "kept"),
        ("alerts.lost != 0", "failed"),
        ("fast.frame_age.count == 100", "kept"),
        ("alert_age.p99 < 1s", "failed"),
        ("alerts.accepted < 1%", "failed"),
        ("slow.pictures_per_second >= 5", "kept"),
        ("slow.pictures_per_second > 5", "failed"),
        ("fast.pictures_per_second == 15", "kept"),
        ("pictures_per_second == 12.5", "kept"),
        ("slow.switches_per_minute <= 9", "kept"),
        ("slow.switches_per_minute < 9", "failed"),
        ("fast.switches_per_minute == 0", "kept"),
        ("slow.layer.l >= 75%", "kept"),
        ("slow.layer.l > 75%", "failed"),
        ("slow.layer.p50 == 25%", "kept"),
        ("layer.H == 90%", "kept"),
        ("slow.layer.H == 0", "kept"),
        ("slow.switches == 3", "kept"),
        ("slow.switches < 4%", "kept"),
    ],
)
def test_a_check_is_kept_or_not(line: str, verdict: str) -> None:
    check = parse_threshold(line, GROUPS)
    assert check.line == line
    assert check.evaluate(some_stats(), final=True) == verdict


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("frame_age.p99 < 400ms", "kept"),
        ("frame_age.p99 < 100ms", "failed"),
        ("missed == 0", "failed"),
        ("missed == 400", "unknown"),
        ("frame_age.count == 500", "unknown"),
        ("missed > 1000", "unknown"),
        ("alert_age.p99 < 1s", "unknown"),
        ("slow.switches_per_minute < 1", "unknown"),
        ("slow.pictures_per_second > 9", "unknown"),
        ("slow.layer.l < 50%", "failed"),
        ("slow.layer.l > 80%", "unknown"),
    ],
)
def test_while_the_run_goes_on_only_what_cannot_be_mended_fails(line: str, verdict: str) -> None:
    assert parse_threshold(line, GROUPS).evaluate(some_stats(), final=False) == verdict


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("slow.frame_age.p50 < 1s", "kept"),
        ("slow.frame_age.p50 < 1s during the climb", "failed"),
        ("slow.frame_age.p50 < 3s during  the climb ", "kept"),
        ("slow.frame_age.p50 < 7 x wire during the climb", "failed"),
        ("slow.frame_age.p50 < 9 x wire during the climb", "kept"),
        ("frame_age.count == 10 during the climb", "kept"),
        ("frame_age.max < 1s during rest", "failed"),
        ("slow.pictures_per_second == 2 during the climb", "kept"),
        ("slow.pictures_per_second < 2 during the climb", "failed"),
        ("slow.layer.l == 100% during the climb", "kept"),
        ("slow.layer.l == 0 during rest", "kept"),
    ],
)
def test_a_check_of_a_stage_counts_what_arrived_in_it_on_its_network(
    line: str, verdict: str
) -> None:
    stages = {name: RunStats({"slow": LinkCapacity(2_000_000)}) for name in ("the climb", "rest")}
    run_stats = RunStats({"slow": LinkCapacity(1_000_000)}, stages=stages)
    for stage, age, number in (("before", 0.1, 90), ("the climb", 2.0, 10)):
        seen = GroupStats()
        for _ in range(number):
            seen.time("frame_age").record(age)
        seen.counts.update({"received": number, "frames.bytes": number * 62_500})
        seen.counts.update({"pictures": number, "watched_ms": 5000, "layer.l": 10})
        run_stats.add({"slow": {"": seen.drain()}}, stage)
    check = parse_threshold(line, GROUPS, stages=tuple(stages))
    assert check.evaluate(run_stats, final=True) == verdict
    assert check.evaluate(run_stats, final=False) in {verdict, "unknown"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("frame_age < 200ms", "is a distribution: choose a statistic"),
        ("frame_age.p99 < 200", "give it a unit"),
        ("frame_age.p99 < 5%", "give it a unit"),
        ("missed.p99 < 5", "is a count and has no p99"),
        ("missed < 5ms", "without ms"),
        ("unserved < 5%", "is not a part of anything"),
        ("frame_age.p50 < 2 x wire", "of one group"),
        ("fats.missed == 0", "did you mean fast"),
        ("alerts.lots == 0", "did you mean alerts.lost?"),
        ("missed", "expected FIGURE < NUMBER"),
        ("missed <> 0", "expected FIGURE < NUMBER"),
        ("missed < -1", "expected FIGURE < NUMBER"),
        ("missed < 1 durign climb", "expected FIGURE < NUMBER"),
        ("frame_age.p50 < 1s during climp", "no stage 'climp'; did you mean climb?"),
        ("frame_age.p50 < 1s during rest", "more than one stage is named 'rest'"),
        ("missed < 1% during climb", "missed is of the whole run: during needs another time"),
        ("gap.max < 1s during climb", "gap is of the whole run"),
        ("switches_per_minut < 1", "did you mean switches_per_minute?"),
        ("slow.pictures_per_secnd < 1", "did you mean pictures_per_second?"),
        ("slwo.pictures_per_second < 1", "did you mean slow?"),
        ("switches_per_minute < 5%", "switches_per_minute is a rate: compare it with a number"),
        ("pictures_per_second < 5/s", "expected FIGURE < NUMBER"),
        ("pictures_per_second.p50 < 5", "is a rate and has no p50"),
        ("pictures_per_second < 5 x wire", "wire needs a time"),
        ("layer >= 50%", "layer needs the id of a layer"),
        ("slow.layer >= 50%", "layer needs the id of a layer"),
        ("slow.layer.l >= 5ms", "layer.l is a count"),
        ("switches < 3 during climb", "switches is of the whole run"),
    ],
)
def test_a_line_that_is_wrong_is_explained(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_threshold(line, GROUPS, stages=("climb", "rest", "rest"))
    assert words in str(caught.value)


def test_what_was_measured_is_written_in_the_units_of_the_check() -> None:
    for line, words in (
        ("slow.frame_age.p50 < 1s", "3"),
        ("slow.frame_age.p50 < 2 x wire", "1.51 x wire"),
        ("fast.missed < 1%", "0.1%"),
        ("missed < 1", "301"),
        ("alert_age.p50 < 1s", "nothing measured"),
        ("slow.pictures_per_second > 1", "5"),
        ("pictures_per_second > 1", "12.5"),
        ("slow.layer.l > 1%", "75%"),
    ):
        check = parse_threshold(line, GROUPS)
        assert check.in_words(check.measured(some_stats())).startswith(words)


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200), st.integers(1, 5))
def test_merged_histograms_are_those_of_all_values(values: list[float], processes: int) -> None:
    whole, merged = TimeDistribution(), GroupStats()
    parts = [GroupStats() for _ in range(processes)]
    for number, value in enumerate(values):
        whole.record(value)
        parts[number % processes].time("frame_age").record(value)
    for part in parts:
        merged.add_delta(part.drain())
        assert not part.times
    found = merged.time("frame_age")
    assert found.count == len(values)
    for name in ("p50", "p90", "p99", "p999", "max", "min"):
        assert found.statistic(name) == whole.statistic(name)
    exact = sorted(values)[max(0, -(-len(values) // 2) - 1)]
    assert found.statistic("p50") == pytest.approx(exact, rel=0.02, abs=2e-6)


def test_times_beyond_the_range_count_as_its_ends() -> None:
    times = TimeDistribution()
    times.record(-1)
    times.record(1e9)
    assert times.count == 2
    assert times.statistic("max") == pytest.approx(3600, rel=0.02)


def test_kinds_of_errors_are_bounded_and_none_is_forgotten() -> None:
    stats = GroupStats()
    for number in range(1000):
        stats.error(f"error {number}")
    assert len(stats.errors) <= 201
    assert sum(stats.errors.values()) == 1000
    merged = GroupStats()
    merged.add_delta(stats.drain())
    assert sum(merged.errors.values()) == 1000


WRITTEN_BY_HDRHISTOGRAM = (
    "HISTFAAAAC94nJNpmSzMwMAgwAABTFCaEURcm7yEwf4DVICJ6TszE8tHZqZ+bpbFCkwAt9MH9A=="
)
"""By the HdrHistogram library, of these values."""
VALUES = (1, 2, 255, 256, 257, 1000, 50000, 50000, 3_600_000_000)


def test_what_the_hdrhistogram_library_wrote_is_read_and_written_alike() -> None:
    histogram = HdrHistogram.decode(WRITTEN_BY_HDRHISTOGRAM)
    expected = HdrHistogram()
    for value in VALUES:
        expected.record(value)
    assert histogram.counts == expected.counts
    assert expected.total == len(VALUES)
    assert HdrHistogram.decode(expected.encode()).counts == expected.counts


@given(st.lists(st.integers(0, 1 << 40), min_size=1))
def test_a_histogram_keeps_each_value_to_two_digits(values: list[int]) -> None:
    histogram = HdrHistogram()
    for value in values:
        histogram.record(value)
    assert HdrHistogram.decode(histogram.encode()).counts == histogram.counts
    kept = [value for value, count in histogram for _ in range(count)]
    for exact, value in zip(sorted(values), kept, strict=True):
        assert min(exact, MAX_VALUE) <= value <= min(exact, MAX_VALUE) * 1.01 + 1


@pytest.mark.parametrize("wrong", ["", "x", "AAAA", "HISTFAAAAC94", WRITTEN_BY_HDRHISTOGRAM[::-1]])
def test_what_is_no_histogram_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        HdrHistogram.decode(wrong)
