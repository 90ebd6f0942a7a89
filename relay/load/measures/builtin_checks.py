"""The checks of every run, whatever its scenario says. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.load.measures.checks import CheckResult, Threshold, parse_threshold
from relay.load.measures.reconciliation.ledger import LedgerLine
from relay.load.measures.stats import RunStats

INTEGRITY_COUNTS = (
    *("torn", "doubled", "disordered", "foreign", "lost", "mislabeled", "undecodable"),
    "misnumbered",
    *("alerts.doubled", "alerts.lost"),
)
"""Counts that must be 0."""
INTEGRITY_CHECKS = tuple(parse_threshold(f"{name} == 0", ()) for name in INTEGRITY_COUNTS)
LEDGER_AGREES = "the relay's ledger agrees"
CLIENTS_ADMITTED = "clients are admitted"


def all_thresholds(own: Sequence[Threshold]) -> list[Threshold]:
    """A scenario's own checks and those on integrity, without repetition."""
    lines = {check.line for check in own}
    return [*own, *(check for check in INTEGRITY_CHECKS if check.line not in lines)]


def builtin_results(
    run_stats: RunStats,
    ledger: Sequence[LedgerLine],
    ledger_failure: str | None,
    *,
    max_lateness: float | None,
    lateness: Mapping[str, float],
    expects_logins: bool,
) -> list[CheckResult]:
    """Check the generator's lateness, the relay's ledger, expired sessions and refused logins.

    `max_lateness` is in seconds; None allows any. `lateness` is the p99 of each of several
    generators, by name. A check that cannot fail is left out.
    """
    found = []
    late = run_stats.group("generator").time("lateness").statistic("p99")
    if max_lateness is not None and late is not None:
        words = f"lateness.p99 < {max_lateness * 1000:g}ms"
        found.append(CheckResult(words, late < max_lateness, f"{late * 1000:.3g} ms"))
        found += [
            CheckResult(f"{words} at {name}", kept=False, measured=f"{of_one * 1000:.3g} ms")
            for name, of_one in lateness.items()
            if of_one >= max_lateness
        ]
    if ledger_failure is not None:
        found.append(CheckResult(LEDGER_AGREES, kept=False, measured=ledger_failure))
    elif ledger:
        wrong = [each.what for each in ledger if not each.agrees]
        found.append(CheckResult(LEDGER_AGREES, not wrong, ", ".join(wrong) or "all lines agree"))
    counts = run_stats.total().counts
    if expired := counts["sessions.expired"]:
        words = f"{expired} connections were closed because their session had expired"
        found.append(CheckResult("no session expires during the run", kept=False, measured=words))
    if expects_logins and not counts["auth.done"]:
        words = f"none of {counts['connect.done']} connections was authenticated"
        found.append(CheckResult(CLIENTS_ADMITTED, kept=False, measured=words))
    return found
