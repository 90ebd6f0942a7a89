"""Runs what a command does with the database, when its output is its answer. Floor 6."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from relay.commands.options import configuration
from relay.logs import configure_logging
from relay.settings import Settings

if TYPE_CHECKING:
    from relay.app import Store
    from relay.postgres.database import Database

Answer = TypeVar("Answer")


def with_store(work: Callable[[Store], Awaitable[str]]) -> str:
    """Work with the tables, once they are all there; returns what to print."""
    import trio

    settings = _quiet_settings()

    async def run() -> str:
        from relay import app

        async with app.open_store(settings) as store:
            return await work(store)

    return trio.run(run)


def with_database(work: Callable[[Database], Awaitable[Answer]]) -> Answer:
    """Work with the database as it is, whatever tables it has."""
    import trio

    settings = _quiet_settings()

    async def run() -> Answer:
        from relay import app

        async with app.open_database_of(settings) as database:
            return await work(database)

    return trio.run(run)


def _quiet_settings() -> Settings:
    """The settings, for a command whose output is its answer."""
    settings = configuration().settings
    configure_logging("warning", settings.log_format)
    return settings
