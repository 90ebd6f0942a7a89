"""What is judged in every run of a load test, whatever its scenario says."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.load.measures.builtin_checks import LEDGER_AGREES, all_thresholds, builtin_results
from relay.load.measures.checks import CheckResult
from relay.load.measures.reconciliation.ledger import LedgerLine
from relay.load.measures.stats import RunStats
from relay.load.scenario.parsing import parse_scenario

GOOD = LedgerLine("alerts stored", 1, "1", agrees=True)
BAD = LedgerLine("alerts stored", 1, "2", agrees=False)


def results(
    source: str, ledger: tuple[LedgerLine, ...] = (), failure: str | None = None, **counts: int
) -> dict[str, CheckResult]:
    scenario = parse_scenario(f"duration = '1s'\n{source}", "test.toml", Path())
    run_stats = RunStats()
    for name, count in counts.items():
        run_stats.group("p").counts[name.replace("_", ".")] += count
    return {
        each.line: each
        for each in builtin_results(
            run_stats,
            ledger,
            failure,
            lateness={},
            max_lateness=scenario.lateness,
            expects_logins=scenario.expects_logins,
        )
    }


@pytest.mark.parametrize(
    ("ledger", "failure", "kept"), [((GOOD,), None, True), ((GOOD, BAD), None, False)]
)
def test_the_ledger_is_judged_where_there_is_one(
    ledger: tuple[LedgerLine, ...], failure: str | None, kept: bool
) -> None:
    assert results("[phones.p]", ledger, failure, auth_done=1)[LEDGER_AGREES].kept is kept
    assert LEDGER_AGREES not in results("[phones.p]", auth_done=1)


def test_a_ledger_that_cannot_be_read_does_not_agree() -> None:
    found = results("[phones.p]", (), "cannot read it", auth_done=1)[LEDGER_AGREES]
    assert (found.kept, found.measured) == (False, "cannot read it")


def test_a_run_in_which_nobody_got_in_is_not_kept_unless_it_is_for_hostiles_only() -> None:
    found = results("[phones.p]", connect_done=3)
    assert not found["clients are admitted"].kept
    assert "none of 3 connections" in found["clients are admitted"].measured
    assert results("[phones.p]", auth_done=1) == {}
    assert results("[hostiles.h]\nkind = 'silent'") == {}


def test_sessions_that_expired_in_the_middle_are_not_passed_over() -> None:
    found = results("[phones.p]", auth_done=2, sessions_expired=2)
    assert not found["no session expires during the run"].kept


def test_what_the_scenario_says_of_content_takes_the_place_of_what_is_judged_anyway() -> None:
    scenario = parse_scenario("check = ['lost == 0']\n[phones.p]", "test.toml", Path())
    lines = [check.line for check in all_thresholds(scenario.checks)]
    assert lines.count("lost == 0") == 1
    assert "torn == 0" in lines
