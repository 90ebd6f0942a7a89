"""What stands in the way of relay. Floor 6."""

from __future__ import annotations

import click

from relay.commands.options import examined, settings_options
from relay.settings import SETTINGS

UNWELL = 1


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@settings_options(*SETTINGS)
def doctor(as_json: bool) -> int:
    """Look at what relay needs, and say what to do where something is amiss.

    The settings, the database and its tables, notifications, the clock, files, the port, the
    certificate, the disk. Nothing is started or changed. The exit code is 1 when a check failed.

    \b
    Example:
      relay doctor --config relay.toml
      relay doctor --json
    """
    from relay.doctor.report import diagnose
    from relay.logs import configure_logging

    configuration, problems = examined()
    configure_logging("error", "console")
    return 0 if diagnose(configuration, problems, as_json=as_json) else UNWELL
