"""What changes in the tables that decide who may do what, told by triggers. Floor 1.

The triggers (migration 0003, `triggers.py`) notify with `KIND:ID`, or with `everything` where that
would be too much. A connection of its own listens, without a thread: its socket is waited for like
any other. Whether notifications arrive at all is tried, since a PgBouncer on the way swallows them.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, cast, get_args

import psycopg
import trio
from attrs import define, field, frozen

from relay.postgres.address import Address
from relay.postgres.database import Connection, Database

ECHO = "echo"
ECHO_PATIENCE = 3.0
"""Seconds in which what we notify ourselves of must arrive."""

Kind = Literal["session", "user", "service", "everything"]


@frozen
class Change:
    """Something that happened to a session, to a user or the grants to one, or to a service."""

    kind: Kind
    id: str = ""
    """A service is named by its name."""


EVERYTHING = Change("everything")
"""Anything may have changed."""


@define(eq=False)
class Changes:
    """Where changes are heard of."""

    _database: Database
    _address: Address
    """To listen at, past any PgBouncer."""

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Ear]:
        """Hear of all that changes from now on; `StoreUnavailable` when that is not possible."""
        connection = await self._connect()
        try:
            yield Ear(connection, self._address, self._database)
        finally:
            connection.close()

    async def _connect(self) -> Connection:
        lock = threading.Lock()
        made: list[Connection] = []
        abandoned = False

        def connect() -> Connection:
            connection = psycopg.connect(**self._address.arguments)
            with lock:
                made.append(connection)
                if abandoned:
                    connection.close()
            connection.execute("listen relay_changes")
            return connection

        connection = None
        try:
            connection = await trio.to_thread.run_sync(connect, abandon_on_cancel=True)
        except (psycopg.Error, OSError) as error:
            raise self._address.unavailable(error) from None
        finally:
            if connection is None:
                with lock:
                    abandoned = True
                    for unused in made:
                        unused.close()
        return connection


@define(eq=False)
class Ear:
    """One connection that listens."""

    _connection: Connection
    _address: Address
    _database: Database
    _echo: str = ""
    _heard: trio.Event = field(factory=trio.Event)

    async def hear(self) -> list[Change]:
        """Wait for the next changes; `StoreUnavailable` when the connection is lost."""
        try:
            await trio.lowlevel.wait_readable(self._connection.fileno())
            notifications = [each.payload for each in self._connection.notifies(timeout=0)]
        except (psycopg.Error, OSError) as error:
            raise self._address.unavailable(error) from None
        if self._echo in notifications:
            self._heard.set()
        return [_change(each) for each in notifications if not each.startswith(ECHO)]

    async def hears(self) -> bool:
        """Whether notifications arrive, while someone waits in `hear`."""
        self._heard, self._echo = trio.Event(), f"{ECHO}:{secrets.token_hex(8)}"
        echo = self._echo

        def notify(connection: Connection) -> None:
            connection.execute("select pg_notify('relay_changes', %s)", [echo])

        await self._database.transact(notify)
        with trio.move_on_after(ECHO_PATIENCE):
            await self._heard.wait()
        return self._heard.is_set()


def _change(payload: str) -> Change:
    kind, _, id_ = payload.partition(":")
    # What nobody here understands is taken seriously, too.
    return Change(cast("Kind", kind), id_) if id_ and kind in get_args(Kind) else EVERYTHING
