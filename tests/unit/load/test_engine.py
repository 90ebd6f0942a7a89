"""What a process of the load test keeps of itself: its beat, its waits, its files, its scripts."""

from __future__ import annotations

import re
import resource
from io import StringIO
from pathlib import Path

import attrs
import msgspec
import pytest
import trio
import trio.testing
from rich.console import Console

from relay.load.actors import engine
from relay.load.actors.engine import Share
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.actors.script import BadScript, read_script
from relay.load.measures.checks import CheckResult
from relay.load.measures.results import (
    STATISTICS,
    BadResult,
    GroupResult,
    RunResult,
    Second,
    group_result,
    read_result,
)
from relay.load.measures.stats import GroupStats
from relay.load.report.compare import rows
from relay.load.report.html import page
from relay.load.report.live_view import LiveView
from relay.load.report.outputs import JsonLines
from relay.load.report.summary import print_summary
from relay.load.run.run_state import RunState
from relay.load.run.wire import Assignment
from relay.load.scenario.groups import Reconnect
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Timeline


@pytest.mark.mock_clock
async def test_a_generator_that_stood_still_is_late_for_all_that_was_due_meanwhile() -> None:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    scenario = parse_scenario("duration = '10s'\n[phones.p]", "test.toml", Path())
    context = RunContext(Timeline(scenario), Endpoint("ws://x", ("t",)), "abcd1234")
    context.epoch = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine._measure_lateness, context)
        await trio.sleep(2)
        clock.jump(2)
        await trio.sleep(2 * engine.HEARTBEAT_INTERVAL)
        nursery.cancel_scope.cancel()
    lateness = context.stats("generator").time("lateness")
    assert lateness.count == pytest.approx(4 / engine.HEARTBEAT_INTERVAL, abs=3)
    late = lateness.statistic("p99")
    assert late is not None
    assert late > 1.9


def test_a_client_that_is_refused_for_days_still_knows_how_long_to_wait() -> None:
    policy = Reconnect(after=0.01, factor=100.0, most=3.0)
    assert [policy.wait(attempt) for attempt in (0, 1, 2, 10_000)] == [0.01, 1.0, 3.0, 3.0]


def test_what_a_server_says_is_one_line_that_no_terminal_obeys() -> None:
    stats = GroupStats()
    stats.error("refused: HTTP 502 <html>\r\n\t<b>\x1b[2J bad\x9b gateway</b>" + "x" * 10_000)
    (words,) = stats.errors
    assert words.startswith("refused: HTTP 502 <html> <b> [2J bad gateway</b>xxx")
    assert len(words) == 300


def test_a_line_that_found_room_for_a_part_of_it_only_is_a_failure_to_write(
    tmp_path: Path,
) -> None:
    second = Second(
        at=1, sent=1, received=1, missed=0, bytes_in=1, connected=1, closes=0, errors=0, age={},
        lateness=0,
    )  # fmt: skip
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonLines(tmp_path / "r.json") as lines:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            lines.second(second)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert lines.failure == f"cannot write {tmp_path / 'r.json'}: File too large"


RESULT = RunResult(
    scenario="s", started=0, seconds=1, workers=1, machine="m", outcome="kept", failure=None,
    aborted_by=None, stages={}, checks=[], ledger=[], groups={},
    total=GroupResult(counts={}, errors={}, times={}, histograms={}),
)  # fmt: skip


def evil(name: str) -> RunResult:
    """A result in which whatever a scenario, a script or a server may choose has this name."""
    group = GroupResult(
        counts={name: 1}, errors={name: 1}, histograms={},
        times={name: dict.fromkeys(STATISTICS, 0.0123)},
    )  # fmt: skip
    return attrs.evolve(
        RESULT, scenario=name, outcome="could not run", failure=name, aborted_by=name,
        stages={name: 0.0, f"{name}2": 1.0}, checks=[CheckResult(name, kept=False, measured=name)],
        groups={name: group},
    )  # fmt: skip


def test_no_name_is_more_than_words_in_the_report() -> None:
    seconds = [
        Second(
            at=1, sent=1, received=1, missed=0, bytes_in=1, connected=1, closes=0, errors=0, age={},
            lateness=0,
        )
    ]  # fmt: skip
    text = page(evil("<script>alert(1)</script>\"'"), seconds)
    assert "<script" not in text
    assert "It ended early: &lt;script&gt;" in text


def test_a_narrow_terminal_shows_the_figures_whole() -> None:
    times = {"frame_age": dict.fromkeys(STATISTICS, 0.00299)}
    group = GroupResult(counts={"received": 123456}, errors={}, times=times, histograms={})
    screen = StringIO()
    console = Console(file=screen, width=50)
    print_summary(console, attrs.evolve(RESULT, groups={"viewers": group}))
    assert re.search(r"viewers +123456 +2.99 ms +2.99 ms", screen.getvalue())


def test_what_viewers_were_shown_by_layer_is_in_the_summary_the_report_and_a_comparison() -> None:
    stats = GroupStats()
    stats.counts.update({"pictures": 100, "layer.m": 75, "layer.l": 20, "switches": 2})
    stats.counts.update({"watched_ms": 8000})
    layered, plain = group_result(stats), group_result(GroupStats())
    result = attrs.evolve(RESULT, groups={"slow": layered, "phones": plain})
    screen = StringIO()
    console = Console(file=screen, width=100)
    print_summary(console, result)
    words = "slow: 12.5 pictures/s, m 75%, l 20%, original 5%; 15 switches/min"
    assert words in screen.getvalue()
    assert "phones:" not in screen.getvalue()
    second = Second(
        at=1, sent=1, received=1, missed=0, bytes_in=1, connected=1, closes=0, errors=0, age={},
        lateness=0, layers={"m": 9.0, "l": 2.0}, switches=2,
    )  # fmt: skip
    html = page(result, [second])
    assert "<td>slow</td><td>12.5</td><td>15</td><td>m 75%, l 20%, original 5%</td>" in html
    assert "Pictures shown per second, by layer" in html
    assert "Pictures shown per second, by layer" not in page(RESULT, [])
    assert ("slow pictures_per_second", "12.5", "12.5", "+0.0%", "") in rows(result, result)


def test_the_live_view_shows_layers_where_there_are_any() -> None:
    scenario = parse_scenario("[phones.p]\n[viewers.v]\nwatch = 'p'", "test.toml", Path())
    screen = StringIO()
    view = LiveView(Console(file=screen, width=120), RunState(scenario))
    view.state.run_stats.group("p").counts["sent"] = 70
    view.state.run_stats.group("v").counts.update({"pictures": 4, "watched_ms": 20_000})
    view.console.print(view._groups())
    assert "layers" not in screen.getvalue()
    view.state.run_stats.group("v").counts.update({"layer.m": 3, "layer.l": 1, "switches": 2})
    view.console.print(view._groups())
    assert re.search(r"switches/min +layers\s+p .*70\s+v +0 .*6 +m 75%, l 25%", screen.getvalue())


def test_a_result_of_a_version_without_layers_is_read(tmp_path: Path) -> None:
    old = msgspec.to_builtins(attrs.evolve(RESULT, groups={"v": group_result(GroupStats())}))
    del old["total"]["rates"], old["groups"]["v"]["rates"]
    (tmp_path / "r.json").write_bytes(msgspec.json.encode(old))
    assert read_result(tmp_path / "r.json")[0].total.rates == {}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b"", "holds no result"),
        (b"[1]", "is not a result"),
        (b"\xff\xfe", "is not a result"),
        (b"[" * 100_000, "is not a result"),
        (msgspec.json.encode(RESULT)[:-9], "is not a result"),
        (msgspec.json.encode(attrs.evolve(RESULT, format="relay-load-9")), "its format is"),
        (
            msgspec.json.encode(
                attrs.evolve(RESULT, total=attrs.evolve(RESULT.total, times={"frame_age": {}}))
            ),
            "a statistic is missing",
        ),
    ],
)
def test_a_file_that_holds_no_whole_result_of_this_kind_is_refused(
    written: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_bytes(msgspec.json.encode(RESULT))
    assert read_result(tmp_path / "r.json") == (RESULT, [])
    (tmp_path / "r.json").write_bytes(written)
    with pytest.raises(BadResult, match=words):
        read_result(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ACTORS = {}", "defines no ACTORS"),
        ("ACTORS = {'a': 3}", "ACTORS['a'] is not an async function"),
        ("ACTORS = {'a': (print, 1, 2)}", "ACTORS['a'] is not an async function"),
        ("ACTORS = {'a': (print, -1)}", "ACTORS['a'] is not an async function"),
        ("ACTORS = {'=1+1': (print, 1)}", "ACTORS['=1+1']: a name begins with a letter"),
        ("ACTORS = {'generator': (print, 1)}", "is not that of a figure"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("1 +", "SyntaxError"),
    ],
)
def test_a_script_that_cannot_be_played_is_said_so(source: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "actors.py"
    path.write_text(source)
    with pytest.raises(BadScript) as caught:
        read_script(str(path))
    assert words in str(caught.value)


def test_a_workers_order_does_not_show_its_tokens() -> None:
    endpoint = Endpoint("ws://x", ("secret-1",), ("secret-2",))
    assignment = Assignment(source="", file="", run="", endpoint=endpoint, shares=[Share()])
    assert "secret" not in repr(assignment)
