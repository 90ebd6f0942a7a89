"""Says before a load test what is missing for a relay that it would start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from relay.errors import ConfigError

if TYPE_CHECKING:
    from relay.load.scenario.scenario import Scenario

OWN_DATABASE = ("database-url", "database_url", "postgres-bin", "postgres_bin")
"""Parts of the options, and of the environment's variables, that choose a PostgreSQL."""
INSTALL = (
    "install relay with its extra `load`, or PostgreSQL itself; or load a relay that runs, with"
    " --target URL"
)


def check_database(scenario: Scenario) -> None:
    """Check that relays that a scenario starts have a PostgreSQL; `ConfigError`."""
    targets = [each for each in scenario.targets_by_name.values() if each.start]
    if not targets:
        return
    try:
        from relay.postgres import store  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"psycopg does not work here ({error}): {INSTALL}") from None
    given = [*os.environ, *(option for each in targets for option in each.settings)]
    if any(part in option.lower() for option in given for part in OWN_DATABASE):
        return
    from relay.postgres.embedded.binaries import NoPostgres, find_binaries

    try:
        find_binaries(None, None, Path())
    except NoPostgres:
        raise ConfigError(
            f"there is no PostgreSQL for the relay that this run starts: {INSTALL}"
        ) from None
