"""What `relay doctor` says. Floor 6."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import click
import trio
from attrs import define, field

from relay.config import Configuration, Problem
from relay.doctor.checks import Examined, Finding, Outcome, examine, fail, ok, warn
from relay.doctor.database import DatabaseChecks
from relay.doctor.issuer import IssuerChecks
from relay.doctor.machine import MachineChecks
from relay.printable import printable
from relay.setting_doubts import doubts

MOST = 1000
"""Characters of a sentence."""


def diagnose(configuration: Configuration, problems: Sequence[Problem], *, as_json: bool) -> bool:
    """Make all checks and print what came of them; whether nothing failed."""
    report = Report(as_json)
    trio.run(_diagnose, configuration, problems, report)
    report.finish()
    return report.healthy


async def _diagnose(
    configuration: Configuration, problems: Sequence[Problem], report: Report
) -> None:
    for finding in _of_settings(configuration, problems):
        report.tell(Examined("settings", finding))
    settings = configuration.settings
    wrong = {name for problem in problems for name in problem.settings}
    checks = [
        *DatabaseChecks(settings).checks(),
        *IssuerChecks(settings).checks(),
        *MachineChecks(settings).checks(),
    ]
    await examine(checks, wrong, report.tell)


def _of_settings(configuration: Configuration, problems: Sequence[Problem]) -> Iterator[Finding]:
    for problem in problems:
        yield fail(problem.message, "mend it; `relay config check` looks again")
    if not problems:
        doubtful = list(doubts(configuration))
        for doubt in doubtful:
            yield warn(doubt, "see whether that is meant")
        if not doubtful:
            number = len(configuration.sources)
            yield ok(f"{number} of them set, and they go together" if number else "all are default")


@define(eq=False)
class Report:
    """Says each finding as it comes, or all at the end as one JSON object."""

    _as_json: bool
    _findings: list[Examined] = field(factory=list)

    @property
    def healthy(self) -> bool:
        return all(each.finding.outcome is not Outcome.FAIL for each in self._findings)

    def tell(self, examined: Examined) -> None:
        self._findings.append(examined)
        if self._as_json:
            return
        finding = examined.finding
        click.echo(f"{finding.outcome:5} {examined.name:12} {printable(finding.said, MOST)}")
        if finding.do:
            click.echo(f"{'':18} -> {printable(finding.do, MOST)}")

    def finish(self) -> None:
        if self._as_json:
            checks = [
                {
                    "name": each.name,
                    "outcome": each.finding.outcome,
                    "said": each.finding.said,
                    "do": each.finding.do,
                }
                for each in self._findings
            ]
            click.echo(json.dumps({"ok": self.healthy, "checks": checks}, indent=2))
