"""The settings, looked at. Floor 6."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from relay.commands.options import configuration, examined, settings_options
from relay.config import Configuration, Problem
from relay.errors import ConfigError
from relay.printable import printable
from relay.settings import SETTINGS

WRONG = 2
MOST = 1000
"""Characters of a problem."""


@click.group(name="config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command(name="check")
@click.option("--json", "as_json", is_flag=True, help="What is wrong as one JSON object.")
@settings_options(*SETTINGS)
def config_check(as_json: bool) -> int:
    """Check the settings, and nothing else: all that is wrong, each with where it was found.

    The exit code is 2 when relay would not start with them.

    \b
    Example:
      relay config check --config relay.toml
    """
    from relay.setting_doubts import doubts

    found, problems = examined()
    problems += _unreadable_addresses(found)
    doubtful = [] if problems else list(doubts(found))
    if as_json:
        said = {"ok": not problems, "problems": [*map(_values, problems)], "doubts": doubtful}
        click.echo(json.dumps(said, indent=2))
        return WRONG if problems else 0
    for problem in problems:
        click.echo(f"relay: {printable(problem.message, MOST)}", err=True)
    for doubt in doubtful:
        click.echo(f"relay: in doubt: {doubt}", err=True)
    if problems:
        return WRONG
    click.echo("the settings are fine" + (", but for what is in doubt" if doubtful else ""))
    return 0


def _unreadable_addresses(found: Configuration) -> Iterator[Problem]:
    """Addresses of databases that psycopg, which nothing else here needs, cannot read."""
    for name in ("database_url", "listen_url"):
        url = getattr(found.settings, name)
        if url is None:
            continue
        from relay.postgres.address import Address

        try:
            Address.parse(url, connect_timeout=found.settings.connect_timeout)
        except ConfigError as error:
            source = found.sources[name]
            yield Problem(f"{name}: {error} ({source})", source, (name,))


def _values(problem: Problem) -> dict[str, Any]:
    return {
        "message": problem.message,
        "source": problem.source,
        "settings": list(problem.settings),
    }


@config_group.command(name="show")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, by name.")
@settings_options(*SETTINGS)
def config_show(as_json: bool) -> None:
    """Show each setting and where it comes from, as a file that --config reads.

    A secret is not shown, of the database's address the password.

    \b
    Example:
      relay config show > relay.toml
    """
    from relay.settings_report import as_values, describe

    found = configuration()
    if as_json:
        click.echo(json.dumps(as_values(found), indent=2, ensure_ascii=False))
        return
    for line in describe(found):
        click.echo(line)
