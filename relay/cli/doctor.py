"""`relay doctor`: check whether everything that relay needs is there."""

from __future__ import annotations

import click

from relay.cli.grouped_help import GroupedCommand
from relay.cli.options import examined, settings_options
from relay.settings.settings import SETTINGS

EXIT_CHECK_FAILED = 1


@click.command(cls=GroupedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options(*SETTINGS)
def doctor(as_json: bool) -> int:
    """Check an installation, and say how to fix what is wrong.

    Checks the settings, the database and its tables, notifications, clocks, the limit of open
    files, the port, the certificate, the disk, and other relays that serve together with this one.
    Starts and changes nothing. The exit code is 1 if a check fails.

    \b
    Example:
      relay doctor --config relay.toml
      relay doctor --json
    """
    from relay.doctor.report import diagnose
    from relay.logs.setup import configure_logging

    configuration, problems = examined()
    configure_logging("error", "console")
    return 0 if diagnose(configuration, problems, as_json=as_json) else EXIT_CHECK_FAILED
