"""A run in which nobody was let in says that, and not what it therefore did not measure."""

from __future__ import annotations

import io

import attrs
from rich.console import Console

from relay.load.measures.builtin_checks import CLIENTS_ADMITTED
from relay.load.measures.checks import CheckResult
from relay.load.report.summary import print_summary
from tests.unit.load.report.test_ci_outputs import RESULT

EMPTY = [CheckResult(f"{name} == 0", kept=True, measured="0") for name in ("torn", "lost")]


def summary_with(admitted: CheckResult) -> str:
    screen = io.StringIO()
    print_summary(Console(file=screen, width=200), attrs.evolve(RESULT, checks=[*EMPTY, admitted]))
    return screen.getvalue()


def test_where_nobody_is_admitted_no_other_check_is_shown() -> None:
    refused = CheckResult(CLIENTS_ADMITTED, kept=False, measured="none of 6 was authenticated")
    said = summary_with(refused)
    assert "FAIL clients are admitted   (none of 6 was authenticated)" in said
    assert "== 0" not in said


def test_of_any_other_run_all_checks_are_shown() -> None:
    said = summary_with(CheckResult("doubled == 0", kept=False, measured="1"))
    assert all(line in said for line in ("ok   torn == 0", "ok   lost == 0", "FAIL doubled == 0"))
