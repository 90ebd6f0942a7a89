"""What a run gives to CI servers and spreadsheets: JUnit XML, GitHub's annotations, CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.measures.checks import CheckResult
from relay.load.measures.process_usage import ProcessUsage
from relay.load.measures.results import GroupResult, RunResult, second_of
from relay.load.measures.stats import GroupStats
from relay.load.report.csv_rows import ALL_GROUPS
from relay.load.report.github import Annotations, annotation, result_annotations
from relay.load.report.junit import junit_xml
from relay.load.report.outputs import CsvFile

KEPT = CheckResult("received > 8", kept=True, measured="9")
FAILED = CheckResult("frame_age.p99 < 1us", kept=False, measured="84 ms")
RESULT = RunResult(
    scenario="s", started=0, seconds=1, workers=1, machine="m", outcome="failed", failure=None,
    aborted_by=None, stages={}, checks=[KEPT, FAILED], ledger=[], groups={},
    total=GroupResult(counts={}, errors={}, times={}, histograms={}),
)  # fmt: skip
NOT_RUN = attrs.evolve(RESULT, outcome="could not run", failure="no relay", checks=[])
INTERRUPTED = attrs.evolve(RESULT, outcome="interrupted", checks=[KEPT])


def test_each_check_is_a_test_case_and_a_failed_one_says_what_was_measured() -> None:
    suites = ET.fromstring(junit_xml(RESULT))
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("3", "1", "0")
    failed = [case for case in suites.iter("testcase") if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == [FAILED.line]
    assert [each.get("message") for each in suites.iter("failure")] == ["measured: 84 ms"]


@pytest.mark.parametrize(
    ("result", "words"), [(NOT_RUN, "could not run: no relay"), (INTERRUPTED, "interrupted")]
)
def test_a_run_that_did_not_finish_is_an_error_for_a_server_of_ci(
    result: RunResult, words: str
) -> None:
    suites = ET.fromstring(junit_xml(result))
    assert suites.get("errors") == "1"
    assert [error.get("message") for error in suites.iter("error")] == [words]
    assert f"::{words}" in next(result_annotations(result, "mine.toml", ""))


@given(st.text())
def test_any_text_is_well_formed_xml(text: str) -> None:
    check = CheckResult(text, kept=False, measured=text)
    evil = attrs.evolve(RESULT, scenario=text, failure=text, machine=text, checks=[check])
    suites = ET.fromstring(junit_xml(evil).encode())
    assert len(list(suites.iter("failure"))) == 1


def test_an_annotation_stands_at_its_check_in_the_scenario() -> None:
    source = f'duration = "1s"\ncheck = [\n  "{KEPT.line}",\n  "{FAILED.line}",\n]\n'
    (line,) = result_annotations(RESULT, "load/mine.toml", source)
    assert line == (
        "::error file=load/mine.toml,line=4,title=s%3A a check failed"
        "::frame_age.p99 < 1us (measured: 84 ms)"
    )


def test_a_run_that_kept_its_checks_is_a_notice() -> None:
    kept = attrs.evolve(RESULT, outcome="kept", checks=[KEPT])
    (line,) = result_annotations(kept, "mine.toml", "")
    assert line.startswith("::notice title=s::all 1 checks passed")


@given(st.text(), st.text())
def test_no_text_ends_an_annotation_or_becomes_a_property(text: str, title: str) -> None:
    line = annotation("error", text, title=title)
    assert "\n" not in line
    assert "\r" not in line
    properties, _, data = line.removeprefix("::error").partition("::")
    assert properties.count("=") <= 1 + title.count("=")
    assert "," not in properties
    unescaped = data.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
    assert unescaped == text


def test_what_a_relay_says_during_the_run_is_no_command() -> None:
    printed: list[str] = []
    notes = Annotations(printed.append, "mine.toml")
    with notes:
        printed.append("::error::a relay said this\n")
    notes.error("this is said by relay load")
    stop, _, resume, error = printed
    assert stop.startswith("::stop-commands::")
    assert resume == f"::{stop.strip().rpartition('::')[2]}::\n"
    assert len(resume) > 32
    assert error == "::error file=mine.toml,title=relay load::this is said by relay load\n"


def test_the_rows_of_a_second_are_those_of_its_groups_and_of_all_together(tmp_path: Path) -> None:
    viewers, phones, generator = GroupStats(), GroupStats(), GroupStats()
    viewers.counts.update({"received": 5, "missed": 2, "lost": 1, "frames.bytes": 1000})
    viewers.time("frame_age").record(0.25)
    viewers.connected, phones.connected = 3, 1
    phones.counts["sent"] = 7
    generator.time("lateness").record(0.5)
    recent = {'odd "name",': viewers, "phones": phones, "generator": generator}
    before = {"": ProcessUsage(1.0, 100)}
    usage = {"": ProcessUsage(1.5, 200)}
    second = second_of(2.0, recent=recent, usage=usage, before=before, last_at=1.0)
    with CsvFile(tmp_path / "r.csv") as rows:
        rows.second(second)
    with (tmp_path / "r.csv").open(newline="") as file:
        by_group = {row["group"]: row for row in csv.DictReader(file)}
    assert list(by_group) == ['odd "name",', "phones", ALL_GROUPS]
    odd = by_group['odd "name",']
    assert (odd["received"], odd["missed"], odd["connected"]) == ("5", "3", "3")
    assert float(odd["age_p99"]) == pytest.approx(0.25, rel=0.01)
    assert (odd["cpu"], by_group["phones"]["age_p50"]) == ("", "")
    total = by_group[ALL_GROUPS]
    assert (total["sent"], total["received"], total["connected"]) == ("7", "5", "4")
    assert (total["cpu"], total["memory"]) == ("0.5", "200")
    assert float(total["lateness"]) == pytest.approx(0.5, rel=0.01)


def test_a_csv_file_has_the_names_of_its_columns_even_without_a_second(tmp_path: Path) -> None:
    with CsvFile(tmp_path / "r.csv"):
        pass
    assert (tmp_path / "r.csv").read_text().startswith("second,group,connected,")
