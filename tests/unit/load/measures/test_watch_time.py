"""How long viewers watch, as the rates of a load test need it."""

from __future__ import annotations

from collections import Counter

from relay.load.measures.watch_time import WatchTime


def test_each_stream_counts_for_as_long_as_it_is_watched() -> None:
    watch_time, counts = WatchTime(end=100.0), Counter[str]()
    watch_time.change(counts, 1.0, 2)
    watch_time.change(counts, 3.0, 1)
    watch_time.change(counts, 4.0, -3)
    watch_time.count(counts, 9.0)
    assert counts["watched_ms"] == 2 * 2000 + 3 * 1000


def test_a_count_that_is_taken_away_meanwhile_goes_on_where_it_was_taken() -> None:
    watch_time, counts = WatchTime(end=100.0), Counter[str]()
    watch_time.change(counts, 0.0, 1)
    watch_time.count(counts, 1.0)
    assert counts.pop("watched_ms") == 1000
    watch_time.change(counts, 2.5, -1)
    assert counts["watched_ms"] == 1500


def test_nothing_counts_once_phones_have_stopped() -> None:
    watch_time, counts = WatchTime(end=10.0), Counter[str]()
    watch_time.change(counts, 9.0, 1)
    watch_time.change(counts, 10.5, 1)
    watch_time.count(counts, 11.0)
    assert counts["watched_ms"] == 1000
