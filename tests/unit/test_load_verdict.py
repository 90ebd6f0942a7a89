"""What is judged in every run of a load test, whatever its scenario says."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.load.checks import Result
from relay.load.figures import Book
from relay.load.ledger import Comparison
from relay.load.scenario import parse_scenario
from relay.load.verdict import LEDGER_AGREES, all_checks, own_checks

GOOD = Comparison("alerts stored", 1, "1", agrees=True)
BAD = Comparison("alerts stored", 1, "2", agrees=False)


def judge(
    source: str, ledger: tuple[Comparison, ...] = (), failure: str | None = None, **counts: int
) -> dict[str, Result]:
    scenario = parse_scenario(f"duration = '1s'\n{source}", "test.toml", Path())
    book = Book()
    for name, count in counts.items():
        book.group("p").counts[name.replace("_", ".")] += count
    return {each.line: each for each in own_checks(scenario, book, ledger, failure)}


@pytest.mark.parametrize(
    ("ledger", "failure", "kept"), [((GOOD,), None, True), ((GOOD, BAD), None, False)]
)
def test_the_ledger_is_judged_where_there_is_one(
    ledger: tuple[Comparison, ...], failure: str | None, kept: bool
) -> None:
    assert judge("[phones.p]", ledger, failure, auth_done=1)[LEDGER_AGREES].kept is kept
    assert LEDGER_AGREES not in judge("[phones.p]", auth_done=1)


def test_a_ledger_that_cannot_be_read_does_not_agree() -> None:
    found = judge("[phones.p]", (), "cannot read it", auth_done=1)[LEDGER_AGREES]
    assert (found.kept, found.measured) == (False, "cannot read it")


def test_a_run_in_which_nobody_got_in_is_not_kept_unless_it_is_for_hostiles_only() -> None:
    found = judge("[phones.p]", connect_done=3)
    assert not found["somebody gets in"].kept
    assert "of 3 connections none" in found["somebody gets in"].measured
    assert judge("[phones.p]", auth_done=1) == {}
    assert judge("[hostiles.h]\nkind = 'silent'") == {}


def test_sessions_that_expired_in_the_middle_are_not_passed_over() -> None:
    found = judge("[phones.p]", auth_done=2, sessions_expired=2)
    assert not found["the tokens last as long as the run"].kept


def test_what_the_scenario_says_of_content_takes_the_place_of_what_is_judged_anyway() -> None:
    scenario = parse_scenario("check = ['lost == 0']\n[phones.p]", "test.toml", Path())
    lines = [check.line for check in all_checks(scenario)]
    assert lines.count("lost == 0") == 1
    assert "torn == 0" in lines
