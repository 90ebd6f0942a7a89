"""One transaction in a worker thread, which the task that waits for it can stop.

Floor 1, a part of `database.py`. The lock guards one question: whose is the connection? Until the
call is abandoned it is the thread's; from then on it is the task's that abandoned it, which is the
one to close it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import psycopg
import trio
from psycopg import sql

Connection = psycopg.Connection[Any]
T = TypeVar("T")

ANSWER_MARGIN = 1.0
"""Seconds beyond the server's own timeout after which its answer is no longer waited for."""

CANCEL_PATIENCE = 1.0
"""Seconds for the server to heed a cancel request, before we hang up."""

STOP_LIMIT = 10.0
"""Seconds that `Call.stop` takes at most, unless `work` itself never ends."""

CANCEL_INTERVAL = 0.05
"""Seconds between cancel requests: one that arrives between two statements has no effect."""

# Read committed, whatever the role's default is: `AlertTable` needs a new snapshot for each
# statement. UTC and ISO, whatever the server's defaults are: values then read the same everywhere.
BEGIN = sql.SQL(
    "begin isolation level read committed;"
    " set local statement_timeout = {milliseconds};"
    " set local timezone = 'UTC';"
    " set local datestyle = 'ISO'"
)


class Call(Generic[T]):
    """`run` is for the worker thread, `stop` for the task that gives the call up."""

    def __init__(
        self,
        work: Callable[[Connection], T],
        statement_timeout: float,
        take: Callable[[], tuple[Connection, bool]],
        give_back: Callable[[Connection], None],
    ) -> None:
        self._work = work
        self._begin_statement = BEGIN.format(milliseconds=round(statement_timeout * 1000))
        self._take = take
        self._give_back = give_back
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._abandoned = False
        self._finished = trio.Event()
        self._trio = trio.lowlevel.current_trio_token()

    def run(self) -> T:
        try:
            connection = self._begin()
            try:
                answer = self._work(connection)
                _commit(connection)
            except BaseException:
                # A connection that cannot even roll back is closed by whoever gets it next.
                with suppress(psycopg.Error):
                    connection.rollback()
                raise
            return answer
        finally:
            self._drop()
            with suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self._finished.set)

    async def stop(self, limiter: trio.CapacityLimiter) -> None:
        """End the call now: nothing of it runs on the server once this returns.

        While it still connects there is nothing to end: the thread goes home by itself.
        """
        with self._lock:
            self._abandoned = True
            connection = self._connection
        if connection is None:
            return
        with trio.move_on_after(CANCEL_PATIENCE):
            while not self._finished.is_set():
                await trio.to_thread.run_sync(_cancel, connection, limiter=limiter)
                with trio.move_on_after(CANCEL_INTERVAL):
                    await self._finished.wait()
        if not self._finished.is_set():
            _hang_up(connection)
            await self._finished.wait()
        # Not kept: a late cancel request could hit the next transaction on it.
        connection.close()

    def _begin(self) -> Connection:
        while True:
            connection, fresh = self._take()
            self._hold(connection)
            try:
                connection.execute(self._begin_statement)
            except psycopg.OperationalError:
                # An idle connection may have been lost long ago, as all are when Postgres
                # restarts. No work was done on it, so the next one may be tried.
                self._drop(broken=True)
                if fresh or self._abandoned:
                    raise
            else:
                return connection

    def _hold(self, connection: Connection) -> None:
        with self._lock:
            if not self._abandoned:
                self._connection = connection
                return
        self._give_back(connection)
        raise Abandoned

    def _drop(self, *, broken: bool = False) -> None:
        with self._lock:
            if self._connection is None or self._abandoned:
                return
            connection, self._connection = self._connection, None
        if broken:
            connection.close()
        self._give_back(connection)


class Abandoned(Exception):
    """Ends a thread whose task has gone; nobody sees it."""


def _commit(connection: Connection) -> None:
    outcome = connection.execute("commit").statusmessage
    if outcome != "COMMIT":
        # Postgres answers so when a statement failed and `work` swallowed the error.
        raise psycopg.errors.InFailedSqlTransaction(
            f"the transaction had failed: commit was answered by {outcome}"
        )


def _cancel(connection: Connection) -> None:
    with suppress(psycopg.Error, OSError):
        connection.cancel_safe(timeout=CANCEL_PATIENCE)


def _hang_up(connection: Connection) -> None:
    """Make the thread that waits for the server see the end of the connection."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
