"""What is judged in every run, whatever the scenario says. Floor 6, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from relay.load.checks import Check, Result, parse_check
from relay.load.figures import Book
from relay.load.groups import Hostiles
from relay.load.ledger import Comparison
from relay.load.scenario import Scenario

INTEGRITY = ("torn", "doubled", "disordered", "foreign", "lost", "alerts.doubled", "alerts.lost")
"""Counts that must be 0."""
INTEGRITY_CHECKS = tuple(parse_check(f"{name} == 0", ()) for name in INTEGRITY)
LEDGER_AGREES = "the relay's ledger agrees"


def all_checks(scenario: Scenario) -> list[Check]:
    """The scenario's, and those on the content of what came."""
    said = {check.line for check in scenario.checks}
    own = [check for check in INTEGRITY_CHECKS if check.line not in said]
    return [*scenario.checks, *own]


def own_checks(
    scenario: Scenario, book: Book, ledger: Sequence[Comparison], ledger_failure: str | None
) -> list[Result]:
    """Whether the generator did its part, whether it was let in, and whether the relay's ledger
    agrees."""
    found = []
    late = book.group("generator").time("lateness").statistic("p99")
    if scenario.lateness is not None and late is not None:
        words = f"lateness.p99 < {scenario.lateness * 1000:g}ms"
        found.append(Result(words, late < scenario.lateness, f"{late * 1000:.3g} ms"))
    if ledger_failure is not None:
        found.append(Result(LEDGER_AGREES, kept=False, measured=ledger_failure))
    elif ledger:
        wrong = [each.what for each in ledger if not each.agrees]
        found.append(Result(LEDGER_AGREES, not wrong, ", ".join(wrong) or "all lines agree"))
    counts = book.total().counts
    if expired := counts["sessions.expired"]:
        words = f"{expired} connections were closed because their session had expired"
        found.append(Result("the tokens last as long as the run", kept=False, measured=words))
    guests = any(not isinstance(each, Hostiles) for each in scenario.groups.values())
    if guests and not counts["auth.done"]:
        words = f"of {counts['connect.done']} connections none was authenticated"
        found.append(Result("somebody gets in", kept=False, measured=words))
    return found
