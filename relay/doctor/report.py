"""Runs all checks and prints what they found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import click
import trio
from attrs import define, field

from relay.doctor.application import ApplicationChecks
from relay.doctor.checks import Examined, Finding, Outcome, examine, fail, ok, warn
from relay.doctor.cluster import ClusterChecks
from relay.doctor.database import DatabaseChecks
from relay.doctor.issuer import IssuerChecks
from relay.doctor.machine import MachineChecks
from relay.doctor.pictures import PictureChecks
from relay.logs.printable import printable
from relay.settings.lint import lint
from relay.settings.loading import ConfigProblem, Configuration

MAX_TEXT_LENGTH = 1000
"""Characters."""


def diagnose(
    configuration: Configuration, problems: Sequence[ConfigProblem], *, as_json: bool
) -> bool:
    """Run all checks and print the findings; returns whether nothing failed."""
    report = Report(as_json)
    trio.run(_diagnose, configuration, problems, report)
    report.finish()
    return report.healthy


async def _diagnose(
    configuration: Configuration, problems: Sequence[ConfigProblem], report: Report
) -> None:
    for finding in _examine_settings(configuration, problems):
        report.tell(Examined("settings", finding))
    settings = configuration.settings
    wrong = {name for problem in problems for name in problem.settings}
    checks = [
        *DatabaseChecks(settings).checks(),
        *IssuerChecks(settings).checks(),
        *ApplicationChecks(settings).checks(),
        *MachineChecks(settings).checks(),
        *PictureChecks(settings).checks(),
        *ClusterChecks(settings).checks(),
    ]
    await examine(checks, wrong, report.tell)


def _examine_settings(
    configuration: Configuration, problems: Sequence[ConfigProblem]
) -> Iterator[Finding]:
    for problem in problems:
        yield fail(problem.message, "correct it, then run `relay config check`")
    if not problems:
        warnings = list(lint(configuration))
        for warning in warnings:
            yield warn(warning, "check whether this is intended")
        if not warnings:
            number = len(configuration.sources)
            yield ok(f"{number} set, all valid" if number else "all at their defaults")


@define(eq=False)
class Report:
    """Prints each finding as it comes, or all at the end as one JSON object."""

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
        click.echo(
            f"{finding.outcome:5} {examined.name:12} {printable(finding.said, MAX_TEXT_LENGTH)}"
        )
        if finding.do:
            click.echo(f"{'':18} -> {printable(finding.do, MAX_TEXT_LENGTH)}")

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
