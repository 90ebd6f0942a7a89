"""What the database tells by itself: changes of who may do what, and new alerts. Floor 1.

Triggers (migration 0003, `triggers.py`) notify with `KIND:ID`, or with `everything` where that
would be too much; migration 0005 notifies of alerts with the greatest id. A connection of its own
listens, without a thread: its socket is waited for like any other. Whether changes arrive at all is
tried, since a PgBouncer on the way swallows them.
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
from psycopg import sql

from relay.postgres.address import Address
from relay.postgres.database import Connection, Database

CHANGES, ALERTS = "relay_changes", "relay_alerts"
"""The channels."""
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
    """Where what one channel tells is heard."""

    _database: Database
    _address: Address
    """To listen at, past any PgBouncer."""
    _channel: str = CHANGES

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
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
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
        payloads = await self.receive()
        if self._echo in payloads:
            self._heard.set()
        return [_change(each) for each in payloads if not each.startswith(ECHO)]

    async def receive(self) -> list[str]:
        """Wait for the next notifications, or for some of them; as `hear`."""
        try:
            await trio.lowlevel.wait_readable(self._connection.fileno())
            return [each.payload for each in self._connection.notifies(timeout=0)]
        except (psycopg.Error, OSError) as error:
            raise self._address.unavailable(error) from None

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
