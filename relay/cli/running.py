"""Runs the database work of a command whose output is its result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from relay.cli.options import configuration
from relay.logs.setup import configure_logging
from relay.settings.settings import Settings

if TYPE_CHECKING:
    from relay.postgres.database import Database
    from relay.postgres.store import Store

Result = TypeVar("Result")


def with_store(work: Callable[[Store], Awaitable[str]]) -> str:
    """Run `work` with relay's tables, which must be up to date; returns the text to print."""
    import trio

    settings = _quiet_settings()

    async def run() -> str:
        from relay.postgres.store import open_store

        async with open_store(settings) as store:
            return await work(store)

    return trio.run(run)


def with_database(work: Callable[[Database], Awaitable[Result]]) -> Result:
    """Run `work` with the database as it is, whether or not it has relay's tables."""
    import trio

    settings = _quiet_settings()

    async def run() -> Result:
        from relay.postgres.store import open_configured_database

        async with open_configured_database(settings) as database:
            return await work(database)

    return trio.run(run)


def _quiet_settings() -> Settings:
    """The settings; only warnings are logged, since the output is the result."""
    settings = configuration().settings
    configure_logging("warning", settings.log_format)
    return settings
