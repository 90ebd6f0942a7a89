"""A run is judged against one before it, or it is said why that cannot be done."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import attrs
import pytest
from rich.console import Console

from relay.cli.main import main
from relay.load.measures.analysis.comparison import (
    IncomparableRuns,
    RecordedRun,
    check_ages,
    check_baseline,
    check_same_load,
    compare_runs,
)
from relay.load.measures.process_usage import ProcessUsage
from relay.load.measures.results import Second, second_of
from relay.load.measures.stats import GroupStats
from relay.load.report.compare import print_comparison, print_judgement
from relay.load.report.github import result_annotations
from relay.load.report.html import page
from relay.load.report.junit import junit_xml
from relay.load.report.outputs import JsonLines
from relay.load.scenario.parsing import parse_scenario
from tests.unit.load.report.test_ci_outputs import RESULT as FAILED_RESULT

RESULT = attrs.evolve(FAILED_RESULT, outcome="kept", checks=[], load="abc", seconds=30)


def recorded(
    *, age: float = 0.005, missed: int = 0, cpu: float = 0.1, seconds: int = 30, seed: int = 1
) -> RecordedRun:
    """A run of two groups; each frame is `age` seconds old, and the relay takes `cpu` cores."""
    random = Random(seed)
    made: list[Second] = []
    usage = {"": ProcessUsage(0.0, 1000)}
    for at in range(1, seconds + 1):
        viewers, phones = GroupStats(), GroupStats()
        viewers.counts.update({"received": 100 - missed, "missed": missed})
        for _ in range(100):
            viewers.time("frame_age").record(age * random.uniform(0.8, 1.2))
        phones.counts["sent"] = 50
        before, used = usage, usage[""].cpu_seconds + cpu * random.uniform(0.9, 1.1)
        usage = {"": ProcessUsage(used, 1000)}
        recent = {"viewers": viewers, "phones": phones}
        made.append(second_of(at, recent=recent, usage=usage, before=before, last_at=at - 1))
    last = attrs.evolve(made[-1], at=seconds + 0.4) if made else None
    return RecordedRun("a.json", RESULT, [*made, last] if last else [])


def verdicts(before: RecordedRun, after: RecordedRun, tolerance: float = 0.2) -> dict[str, str]:
    changes = compare_runs(before, after, tolerance).changes
    return {each.name: each.verdict for each in changes}


def test_what_got_worse_is_named_and_nothing_else() -> None:
    same = dict.fromkeys(
        [*(f"viewers {each}" for each in ("frame_age.p50", "frame_age.p99", "missed"))], "not worse"
    ) | {"relay CPU per frame": "not worse"}
    assert verdicts(recorded(), recorded(seed=2)) == same
    older = verdicts(recorded(), recorded(age=0.01, seed=2))
    assert older == same | {"viewers frame_age.p50": "worse", "viewers frame_age.p99": "worse"}
    assert verdicts(recorded(), recorded(missed=5)) == same | {
        "viewers missed": "worse",
        "relay CPU per frame": "not worse",
    }
    costly = verdicts(recorded(), recorded(cpu=0.2, seed=2))
    assert costly == same | {"relay CPU per frame": "worse"}
    assert verdicts(recorded(cpu=0.2), recorded(seed=2))["relay CPU per frame"] == "better"


def test_the_tolerance_is_what_does_not_matter() -> None:
    before, after = recorded(), recorded(age=0.0065, seed=2)
    assert verdicts(before, after)["viewers frame_age.p50"] == "worse"
    assert verdicts(before, after, 0.5)["viewers frame_age.p50"] == "not worse"
    before, after = recorded(missed=10), recorded(missed=11)
    assert verdicts(before, after)["viewers missed"] == "not worse"
    assert verdicts(before, after, 0.05)["viewers missed"] == "worse"


def test_a_comparison_of_few_seconds_cannot_tell() -> None:
    comparison = compare_runs(recorded(seconds=9), recorded(age=1.0), 0.2)
    assert {each.verdict for each in comparison.changes} == {"cannot tell"}
    assert {each.seconds for each in comparison.changes} == {9}


def test_a_figure_is_judged_in_the_seconds_in_which_both_runs_have_it() -> None:
    before, after = recorded(), recorded(age=0.02)
    silent = attrs.evolve(
        after,
        seconds=[attrs.evolve(each, groups={}, cpu=None) for each in after.seconds[:15]]
        + list(after.seconds[15:]),
    )
    (p50, p99, missed, cpu) = compare_runs(before, silent, 0.2).changes
    assert (p50.seconds, p99.verdict, missed.seconds, cpu.seconds) == (15, "worse", 15, 15)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (recorded(seconds=0), "a.json has 0 whole seconds; at least 10 are needed"),
        (recorded(seconds=9), "a.json has 9 whole seconds; at least 10 are needed"),
        (
            attrs.evolve(
                recorded(), seconds=[attrs.evolve(x, groups={}) for x in recorded().seconds]
            ),
            "a.json has no figures of its groups by second: an older relay wrote it",
        ),
    ],
)
def test_a_run_of_which_too_little_is_known_is_no_baseline(run: RecordedRun, words: str) -> None:
    check_baseline(recorded(seconds=10))
    with pytest.raises(IncomparableRuns) as caught:
        check_baseline(run)
    assert str(caught.value) == words


def test_a_run_of_another_scenario_is_no_baseline() -> None:
    check_same_load(recorded(), "s", "abc")
    check_same_load(recorded(), "s", "")
    with pytest.raises(IncomparableRuns, match=r"^a.json is of another scenario: s, not t$"):
        check_same_load(recorded(), "t", "abc")
    with pytest.raises(IncomparableRuns, match=r"^a.json is of another version of s, with other"):
        check_same_load(recorded(), "s", "abd")


def test_scenarios_have_the_same_load_whatever_they_check_and_wherever_they_run() -> None:
    source = "duration = '30s'\nseed = 2\n[phones.p]\ncount = 3\n"

    def load(text: str) -> str:
        return parse_scenario(text, "s.toml", Path()).load

    again = f"check = ['received > 1']\nworkers = 2\n{source}[target]\nurl = 'ws://localhost:1'"
    assert load(source) == load(again)
    for old, new in (("count = 3", "count = 4"), ("30s", "31s"), ("seed = 2", "seed = 3")):
        assert load(source.replace(old, new)) != load(source)


def test_a_comparison_is_in_all_outputs() -> None:
    after = recorded(age=0.01, missed=1)
    noisy = [
        attrs.evolve(each, cpu=0.01 if number // 8 % 2 else 0.25)
        for number, each in enumerate(after.seconds)
    ]
    comparison = compare_runs(recorded(), attrs.evolve(after, seconds=noisy), 0.2)
    result = attrs.evolve(RESULT, comparison=comparison)
    suites = ET.fromstring(junit_xml(result))
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("5", "3", "1")
    (message, *_) = [each.get("message") or "" for each in suites.iter("failure")]
    assert message.startswith("viewers frame_age.p50: 5.02 ms before, 10")
    assert "<td>viewers frame_age.p50</td><td>5.02 ms</td>" in page(result, [])
    annotations = [line.partition(" ")[0] for line in result_annotations(result, "f", "")]
    assert annotations == ["::error", "::error", "::error", "::warning", "::notice"]


def test_machines_that_differ_are_said() -> None:
    after = recorded()
    other = attrs.evolve(after, result=attrs.evolve(RESULT, machine="n"))
    screen = StringIO()
    console = Console(file=screen, width=120)
    print_comparison(console, compare_runs(recorded(), other, 0.2), RESULT, RESULT)
    assert "the machines differ: m; n\nnothing is worse by more than 20%" in screen.getvalue()


def test_a_narrow_terminal_names_each_figure_whole() -> None:
    screen = StringIO()
    comparison = compare_runs(recorded(), recorded(), 0.2)
    print_judgement(Console(file=screen, width=60), comparison)
    for change in comparison.changes:
        assert change.name in screen.getvalue()


def write(run: RecordedRun, path: Path) -> str:
    with JsonLines(path) as lines:
        for second in run.seconds:
            lines.second(second)
        lines.result(run.result)
    return str(path)


def test_the_exit_code_of_compare_says_whether_the_second_run_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(recorded(), tmp_path / "a.json")
    after = write(recorded(age=0.01), tmp_path / "b.json")
    assert main(["load", "compare", before, before]) == 0
    assert main(["load", "compare", after, before]) == 0
    assert main(["load", "compare", before, after]) == 4
    assert "worse by more than 20%: viewers frame_age.p50, viewers" in capsys.readouterr().out
    assert main(["load", "compare", before, after, "--tolerance", "150"]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a report", "is not a result of `relay load`: "),
        (b'{"type":"result","format":"relay-load-9"}', "'relay-load-9', not relay-load-1"),
        (b"", "holds no result: did the run end early?"),
        (None, "No such file or directory"),
    ],
)
def test_a_baseline_that_cannot_be_read_is_one_line_before_the_run(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, baseline = tmp_path / "s.toml", tmp_path / "a.json"
    scenario.write_text("duration = '30s'\n[phones.p]\n")
    if content is not None:
        baseline.write_bytes(content)
    assert main(["load", str(scenario), "--baseline", str(baseline)]) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert words in errors
    assert main(["load", "compare", str(baseline), str(baseline)]) == 2
    assert words in capsys.readouterr().err


def test_a_scenario_that_is_too_short_for_a_baseline_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = write(recorded(), tmp_path / "a.json")
    scenario = tmp_path / "s.toml"
    scenario.write_text("duration = '9s'\n[phones.p]\n")
    evolved = attrs.evolve(RESULT, load="")
    write(attrs.evolve(recorded(), result=evolved), Path(baseline))
    assert main(["load", str(scenario), "--baseline", baseline]) == 2
    assert capsys.readouterr().err == "relay: s takes 9 s; comparing needs 10 s\n"


def test_ages_that_cannot_be_read_are_said_before_a_run_and_not_after_it() -> None:
    whole = recorded()
    group = attrs.evolve(whole.seconds[3].groups["viewers"], ages="bm9uc2Vuc2U=")
    bad = attrs.evolve(whole.seconds[3], groups={"viewers": group})
    broken = attrs.evolve(whole, seconds=[*whole.seconds[:3], bad, *whole.seconds[4:]])
    for check in (check_ages, check_baseline):
        with pytest.raises(IncomparableRuns, match=r"a\.json: the frame ages of viewers at 4 s"):
            check(broken)
    check_ages(whole)


@pytest.mark.parametrize("is_first", [True, False])
def test_files_that_are_no_results_are_one_line_and_exit_code_2(
    is_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.json"
    run = recorded()
    with JsonLines(good) as lines:
        for second in run.seconds:
            lines.second(second)
        lines.result(RESULT)
    text = good.read_text()
    for content, words in (
        ("", "holds no result: did the run end early?"),
        ("\x00\xff", "is not a result of `relay load`"),
        ("[1]\n", "is not a result of `relay load`"),
        ('{"type": "run", "level": 4}\n{"type": "found"}\n', "is of `relay load find`"),
        (text.replace("relay-load-1", "relay-load-9"), "its format is 'relay-load-9'"),
        (text.replace('"ages":"', '"ages":"x'), "the frame ages of viewers at 1 s: "),
        (text.replace('"missed":0,', "", 1), "is not a result of `relay load`"),
        (text.replace('"at":1,', '"at":1e999,', 1), "is not a result of `relay load`"),
    ):
        bad = tmp_path / "bad.json"
        bad.write_text(content, encoding="latin-1")
        files = (bad, good) if is_first else (good, bad)
        assert main(["load", "compare", *map(str, files)]) == 2, content[:100]
        errors = capsys.readouterr().err
        assert words in errors
        assert errors.count("\n") == 1
