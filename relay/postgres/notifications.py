"""Notifications of the database: what changed about sessions and services, new alerts, and what
changed in the cluster.

Triggers (migration 0003, `triggers.py`) notify with `KIND:ID`, or with `everything` where that
would be too much; migration 0005 notifies of alerts with the greatest id, and migration 0016 of
live streams with `streams:ID,ID`, of nodes with `node:ID`, or with `everything`. A connection of
its own listens, without a thread: its socket is waited for like any other. `probe` tries whether
notifications arrive at all, since a PgBouncer in between swallows them.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import cast, get_args

import psycopg
import trio
from attrs import define, field
from psycopg import sql

from relay.model.access.change import EVERYTHING, Change, ChangeKind
from relay.model.cluster import StreamNews
from relay.postgres.address import DatabaseAddress
from relay.postgres.database import Connection, Database
from relay.protocol.messages import STREAM_ID_PATTERN

CHANGE_CHANNEL, ALERT_CHANNEL, STREAM_CHANNEL = "relay_changes", "relay_alerts", "relay_streams"
PROBE_PREFIX = "echo"
PROBE_TIMEOUT = 3.0
"""Seconds in which a notification of our own must arrive."""
MAX_NEWS_IDS = 1000
"""Stream ids of one `StreamNews`; where there are more, everything may have changed."""

_STREAM_ID = re.compile(STREAM_ID_PATTERN)


@define(eq=False, repr=False)
class AlertNotifications:
    """Notifications of new alerts."""

    _address: DatabaseAddress
    """To listen at; no PgBouncer may be in between."""

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[NotificationListener]:
        """Receive notifications from now on; `StoreUnavailable` when that is not possible."""
        async with _open_listener(ALERT_CHANNEL, self._address) as listener:
            yield listener


@define(eq=False, repr=False)
class ChangeNotifications:
    """Notifications of changes of sessions, users, grants and services."""

    _database: Database
    _address: DatabaseAddress
    """To listen at; no PgBouncer may be in between."""

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[ChangeNotificationListener]:
        """Receive changes from now on; `StoreUnavailable` when that is not possible."""
        async with _open_listener(CHANGE_CHANNEL, self._address) as listener:
            yield ChangeNotificationListener(listener, self._database)


@define(eq=False, repr=False)
class StreamNotifications:
    """Notifications of live streams and nodes."""

    _address: DatabaseAddress
    """To listen at; no PgBouncer may be in between."""

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[StreamNewsListener]:
        """Receive news from now on; `StoreUnavailable` when that is not possible."""
        async with _open_listener(STREAM_CHANNEL, self._address) as listener:
            yield StreamNewsListener(listener)


@define(eq=False, repr=False)
class NotificationListener:
    """A connection that listens on one channel."""

    _connection: Connection
    _address: DatabaseAddress

    async def receive(self) -> list[str]:
        """Wait for the payloads of the next notifications; `StoreUnavailable` when the connection
        is lost."""
        try:
            await trio.lowlevel.wait_readable(self._connection.fileno())
            return [each.payload for each in self._connection.notifies(timeout=0)]
        except (psycopg.Error, OSError) as error:
            raise self._address.unavailable(error) from None


@define(eq=False, repr=False)
class ChangeNotificationListener:
    """A connection that listens for changes."""

    _listener: NotificationListener
    _database: Database
    """To notify ourselves through."""
    _probe: str = ""
    _probe_arrived: trio.Event = field(factory=trio.Event)

    async def receive(self) -> list[Change]:
        """Wait for the next changes; `StoreUnavailable` when the connection is lost."""
        payloads = await self._listener.receive()
        if self._probe in payloads:
            self._probe_arrived.set()
        return [_change(each) for each in payloads if not each.startswith(PROBE_PREFIX)]

    async def probe(self) -> bool:
        """Whether a notification of our own arrives, while another task waits in `receive`."""
        self._probe_arrived, self._probe = trio.Event(), f"{PROBE_PREFIX}:{secrets.token_hex(8)}"
        probe = self._probe

        def notify(connection: Connection) -> None:
            connection.execute("select pg_notify(%s, %s)", [CHANGE_CHANNEL, probe])

        await self._database.transact(notify)
        with trio.move_on_after(PROBE_TIMEOUT):
            await self._probe_arrived.wait()
        return self._probe_arrived.is_set()


@define(eq=False, repr=False)
class StreamNewsListener:
    """A connection that listens for news of live streams and nodes."""

    _listener: NotificationListener

    async def receive(self) -> StreamNews:
        """Wait for the next news; `StoreUnavailable` when the connection is lost.

        Anybody who may connect to the database can have sent them. What nobody of relay sends is
        ignored.
        """
        while True:
            news = _stream_news(await self._listener.receive())
            if news != StreamNews():
                return news


@asynccontextmanager
async def _open_listener(
    channel: str, address: DatabaseAddress
) -> AsyncIterator[NotificationListener]:
    connection = await _connect(channel, address)
    try:
        yield NotificationListener(connection, address)
    finally:
        connection.close()


async def _connect(channel: str, address: DatabaseAddress) -> Connection:
    lock = threading.Lock()
    made: list[Connection] = []
    abandoned = False

    def connect() -> Connection:
        connection = psycopg.connect(**address.arguments)
        with lock:
            made.append(connection)
            if abandoned:
                connection.close()
        connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        return connection

    connection = None
    try:
        connection = await trio.to_thread.run_sync(connect, abandon_on_cancel=True)
    except (psycopg.Error, OSError) as error:
        raise address.unavailable(error) from None
    finally:
        if connection is None:
            with lock:
                abandoned = True
                for unused in made:
                    unused.close()
    return connection


def _change(payload: str) -> Change:
    kind, _, id_ = payload.partition(":")
    if id_ and kind in get_args(ChangeKind):
        return Change(cast("ChangeKind", kind), id_)
    return EVERYTHING  # a newer trigger may tell of kinds that this relay does not know


def _stream_news(payloads: Iterable[str]) -> StreamNews:
    stream_ids: set[str] = set()
    everything = nodes = False
    for payload in payloads:
        kind, _, rest = payload.partition(":")
        if kind == "streams" and not everything:
            stream_ids.update(each for each in rest.split(",") if _STREAM_ID.match(each))
        nodes = nodes or kind == "node"
        everything = everything or payload == "everything" or len(stream_ids) > MAX_NEWS_IDS
    return StreamNews(frozenset() if everything else frozenset(stream_ids), everything, nodes)
