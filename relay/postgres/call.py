"""One transaction in a worker thread, which the task that waits for it can stop.

A part of `database.py`. The lock guards who owns the connection: the thread, until the call is
abandoned; from then on the task that abandoned it, which closes it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
import trio
from psycopg.pq import ConnStatus, ExecStatus

if TYPE_CHECKING:
    from outcome import Outcome

Connection = psycopg.Connection[Any]
T = TypeVar("T")

ANSWER_MARGIN = 1.0
"""Seconds to wait for an answer beyond the server's own timeout."""

CANCEL_TIMEOUT = 1.0
"""Seconds for the server to obey a cancel request, before we hang up."""

CALL_STOP_TIMEOUT = 10.0
"""Seconds that `Call.stop` may take."""

CANCEL_INTERVAL = 0.05
"""Seconds between cancel requests: one that arrives between two statements has no effect."""

# Read committed, whatever the role's default is: `AlertTable` needs a new snapshot for each
# statement. UTC and ISO, whatever the server's defaults are: values then read the same everywhere.
BEGIN = (
    "begin isolation level read committed;"
    " set local statement_timeout = {milliseconds};"
    " set local timezone = 'UTC';"
    " set local datestyle = 'ISO'"
)


class Call(Generic[T]):
    """One transaction in a worker thread.

    trio.to_thread does more than is needed here: it names the thread, and names it back, and lets
    it call Trio. That is a third of the way to a thread and back, for each phone that comes alone.
    """

    def __init__(
        self,
        work: Callable[[Connection], T],
        statement_timeout: float,
        acquire: Callable[[], tuple[Connection, bool]],
        release: Callable[[Connection], None],
    ) -> None:
        self._work = work
        self._begin_statement = _begin_statement(round(statement_timeout * 1000))
        self._acquire = acquire
        self._release = release
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._abandoned = False
        self._finished = trio.Event()
        self._outcome: Outcome[T] | None = None
        self._trio = trio.lowlevel.current_trio_token()

    def start(self, on_finished: Callable[[], object]) -> None:
        """Begin; `on_finished` is called in Trio when the thread is done, also with a call that was
        abandoned."""

        def report(outcome: Outcome[T]) -> None:
            with suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(finish, outcome)

        def finish(outcome: Outcome[T]) -> None:
            if not self._abandoned:
                self._outcome = outcome
            self._finished.set()
            on_finished()

        run = partial(copy_context().run, self._run)  # what it logs carries the connection's number
        trio.lowlevel.start_thread_soon(run, report)

    async def result(self) -> T:
        """Wait for what the work returns; raises what it raises."""
        await self._finished.wait()
        outcome, self._outcome = self._outcome, None  # an error would hold this call
        assert outcome is not None
        return outcome.unwrap()

    def _run(self) -> T:
        try:
            connection = self._begin()
            try:
                answer = self._work(connection)
                _commit(connection)
            except BaseException:
                # `release` closes a connection that cannot roll back.
                with suppress(psycopg.Error):
                    connection.rollback()
                raise
            return answer
        finally:
            self._drop()

    async def stop(self, limiter: trio.CapacityLimiter) -> None:
        """End the call: when this returns, nothing of it runs on the server.

        A thread that is still connecting ends by itself.
        """
        self._outcome = None
        with self._lock:
            self._abandoned = True
            connection = self._connection
        if connection is None:
            return
        with trio.move_on_after(CANCEL_TIMEOUT):
            while not self._finished.is_set():
                await trio.to_thread.run_sync(_cancel, connection, limiter=limiter)
                with trio.move_on_after(CANCEL_INTERVAL):
                    await self._finished.wait()
        if not self._finished.is_set():
            _hang_up(connection)
            await self._finished.wait()
        # Do not keep it: a late cancel request could hit its next transaction.
        connection.close()

    def _begin(self) -> Connection:
        while True:
            connection, fresh = self._acquire()
            self._hold(connection)
            try:
                _execute(connection, self._begin_statement)
            except psycopg.OperationalError:
                # An idle connection may have been lost, as all are when Postgres restarts. No work
                # was done on it, so try the next one.
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
        self._release(connection)
        raise Abandoned

    def _drop(self, *, broken: bool = False) -> None:
        with self._lock:
            if self._connection is None or self._abandoned:
                return
            connection, self._connection = self._connection, None
        if broken:
            connection.close()
        self._release(connection)


class Abandoned(Exception):
    """Ends a thread whose task is gone."""


@lru_cache
def _begin_statement(milliseconds: int) -> bytes:
    return BEGIN.format(milliseconds=milliseconds).encode()


def _commit(connection: Connection) -> None:
    outcome = _execute(connection, b"commit")
    if outcome != b"COMMIT":
        # The answer when a statement failed and `work` swallowed the error.
        raise psycopg.errors.InFailedSqlTransaction(
            f"the transaction had failed: commit was answered by {outcome.decode()}"
        )


def _execute(connection: Connection, statements: bytes) -> bytes:
    """Execute statements without parameters, and return how the last was answered.

    By libpq itself: one of psycopg's cursors would take as long as a short query does.
    """
    result = connection.pgconn.exec_(statements)
    if result.status == ExecStatus.COMMAND_OK:
        return result.command_status or b""
    if connection.pgconn.status == ConnStatus.BAD:
        raise psycopg.OperationalError(result.get_error_message())
    raise psycopg.errors.error_from_result(result)


def _cancel(connection: Connection) -> None:
    with suppress(psycopg.Error, OSError):
        connection.cancel_safe(timeout=CANCEL_TIMEOUT)


def _hang_up(connection: Connection) -> None:
    """Wake the thread that waits for the server, by the end of the connection."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
