"""`relay config`: check and show the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from relay.cli.grouped_help import GroupedGroup
from relay.cli.options import configuration, examined, settings_options
from relay.errors import ConfigError
from relay.logs.printable import printable
from relay.settings.loading import ConfigProblem, Configuration
from relay.settings.settings import SETTINGS

EXIT_INVALID_SETTINGS = 2
MAX_PROBLEM_LENGTH = 1000
"""Characters."""


@click.group(name="config", cls=GroupedGroup)
def config_group() -> None:
    """Check and show the settings.

    \b
    Before a restart:     relay config check --config relay.toml
    See all values:       relay config show --config relay.toml
    """


@config_group.command(name="check")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options(*SETTINGS)
def config_check(as_json: bool) -> int:
    """Check the settings, and list all problems.

    Shows where each problem was found. Checks the settings only; `relay doctor` checks the rest.
    The exit code is 2 if relay would not start.

    \b
    Example:
      relay config check --config relay.toml
    """
    from relay.settings.lint import lint

    found, problems = examined()
    problems += _unreadable_addresses(found)
    warnings = [] if problems else list(lint(found))
    if as_json:
        result = {
            "ok": not problems,
            "problems": [*map(_as_values, problems)],
            "warnings": warnings,
        }
        click.echo(json.dumps(result, indent=2))
        return EXIT_INVALID_SETTINGS if problems else 0
    for problem in problems:
        click.echo(f"relay: {printable(problem.message, MAX_PROBLEM_LENGTH)}", err=True)
    for warning in warnings:
        click.echo(f"relay: warning: {warning}", err=True)
    if problems:
        return EXIT_INVALID_SETTINGS
    click.echo("the settings are valid" + (", with warnings" if warnings else ""))
    return 0


def _unreadable_addresses(found: Configuration) -> Iterator[ConfigProblem]:
    """Database URLs that psycopg cannot parse; it is imported only if there is one."""
    for name in ("database_url", "listen_url"):
        url = getattr(found.settings, name)
        if url is None:
            continue
        from relay.postgres.address import DatabaseAddress

        try:
            DatabaseAddress.parse(url, connect_timeout=found.settings.connect_timeout)
        except ConfigError as error:
            source = found.sources[name]
            yield ConfigProblem(f"{name}: {error} ({source})", source, (name,))


def _as_values(problem: ConfigProblem) -> dict[str, Any]:
    return {
        "message": problem.message,
        "source": problem.source,
        "settings": list(problem.settings),
    }


@config_group.command(name="show")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options(*SETTINGS)
def config_show(as_json: bool) -> None:
    """Show all settings and where each comes from.

    Prints a TOML file that --config can read. Secrets are hidden, and so are the passwords in
    database URLs.

    \b
    Example:
      relay config show > relay.toml
    """
    from relay.settings.report import as_values, describe

    found = configuration()
    if as_json:
        click.echo(json.dumps(as_values(found), indent=2, ensure_ascii=False))
        return
    for line in describe(found):
        click.echo(line)
