"""Who missed frames, when and why, as the summary and the report say it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from relay.load.measures.reconciliation.observations import (
    Observations,
    SentFrames,
    StreamObservation,
)
from relay.load.measures.reconciliation.reconcile import reconcile
from relay.load.measures.stats import GroupStats, RunStats
from relay.load.report.html import page
from relay.load.report.summary import print_summary
from relay.load.report.words.missed import missed_lines
from relay.load.run.run_state import RunState
from relay.load.scenario.parsing import parse_scenario

SOURCE = """
[phones.p]
[viewers.watcher]
watch = "p"
[[stages]]
name = "alone"
duration = "5s"
[[stages]]
name = "a flood"
duration = "5s"
"""


def missed(**counts: int) -> dict[str, dict[str, object]]:
    stats = GroupStats()
    stats.counts.update(counts)
    return {"watcher": {"": stats.drain()}}


def state() -> RunState:
    made = RunState(parse_scenario(SOURCE, "fair.toml", Path()))
    made.run_stats.add(missed(received=90, missed=2, skipped=2), "alone")  # type: ignore[arg-type] # of deltas
    made.run_stats.add(missed(received=50, missed=28, skipped=28), "a flood")  # type: ignore[arg-type]
    made.run_stats.group("watcher").counts.update({"missed": 4, "watches": 6, "watches.missed": 5})
    return made


def test_who_missed_frames_when_and_why_is_told_in_the_summary_and_in_the_report() -> None:
    result = state().result()
    line = (
        "watcher: 34 frames missed, in 5 of 6 watches: 30 skipped by the relay for newer ones or"
        " for maxFps, 4 before the first frame of a connection, or after its last; 28 during a"
        " flood; 2 during alone"
    )
    assert list(missed_lines(result)) == [line]
    screen = StringIO()
    print_summary(Console(file=screen, width=400), result)
    assert line in screen.getvalue()
    assert line in page(result, [])


def test_of_a_group_that_missed_nothing_nothing_is_said() -> None:
    made = RunState(parse_scenario(SOURCE, "fair.toml", Path()))
    made.run_stats.add(missed(received=90), "alone")  # type: ignore[arg-type]
    assert list(missed_lines(made.result())) == []
    assert "<h2>Events</h2>" not in page(made.result(), [])


def test_a_watch_counts_as_missing_something_once_wherever_that_was() -> None:
    def seen(stream: str, first: int | None, last: int | None, between: int) -> StreamObservation:
        return StreamObservation(
            group="watcher", stream=stream, start=0, end=10, watched=True, first=first, last=last,
            alerts={}, missed=between,
        )  # fmt: skip

    observations = Observations(
        streams=[
            seen("whole", 1, 9, 0),
            seen("whole", 1, 9, 3),  # between two frames
            seen("whole", 1, 8, 0),  # after the last
            seen("whole", None, None, 0),  # all of them
        ],
        sent=[SentFrames("whole", 0, 9, 1, 9)],
    )
    stats = RunStats()
    reconcile(stats, observations, end=10, grace=1)
    counts = stats.group("watcher").counts
    assert (counts["watches"], counts["watches.missed"]) == (4, 3)


def test_what_failed_beside_a_run_of_one_target_is_in_the_report_too() -> None:
    made = state()
    made.note(1.0, "metrics do not reach http://localhost:9090: nobody answers there")
    assert "metrics do not reach http://localhost:9090" in page(made.result(), [])
