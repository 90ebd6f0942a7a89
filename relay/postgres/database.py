"""One way to ask Postgres: `Database.transact`, a function in a worker thread and a transaction.

Floor 1. psycopg's synchronous connections are used from Trio's own worker threads and kept here,
in a list, under a capacity limiter. `psycopg_pool` could keep them too, but it starts threads of
its own, and half of what follows would still be needed to give a transaction up when its task is
cancelled.

Everything a connection needs to know is said inside the transaction (`BEGIN`), never at connect
time: PgBouncer in transaction mode refuses start-up options and lets each transaction run on
another server connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
import trio
from attrs import define, field
from psycopg.pq import TransactionStatus

from relay.errors import StoreForbids, StoreUnavailable
from relay.postgres.address import Address
from relay.postgres.call import ANSWER_MARGIN, STOP_LIMIT, Call

CLOSE_PATIENCE = 30.0
"""Seconds that `open_database` waits for the last call before it leaves."""

AWAY = (
    psycopg.OperationalError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.InternalError_,  # what it has no word for: a quota of the disk is used up
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
    OSError,  # psycopg's own: no file is left to wait for the server with
)
"""What it comes to that Postgres cannot do what it is asked."""
OF_FILES = "could not "
"""So begins what Postgres says where it is the system that forbids it something: it has the same
code for a disk that is mounted read-only as for a role without rights."""

Connection = psycopg.Connection[Any]
T = TypeVar("T")


@asynccontextmanager
async def open_database(
    url: str,
    *,
    pool_size: int = 4,
    statement_timeout: float = 5.0,
    connect_timeout: float = 3.0,
) -> AsyncIterator[Database]:
    """Yield a `Database` that connects when it is first asked; close its connections afterwards.

    Timeouts are in seconds. `ConfigError` when `url` is no Postgres address.
    """
    address = Address.parse(url, connect_timeout=connect_timeout)
    database = Database(address, pool_size, statement_timeout, connect_timeout)
    try:
        yield database
    finally:
        # A call that was abandoned while it connected keeps its thread for as long as that takes.
        with trio.move_on_after(CLOSE_PATIENCE, shield=True):
            await database._wait_for_calls()
        database._close()


@define(eq=False)
class Database:
    """A few connections to one Postgres database, each lent to one transaction at a time."""

    address: Address
    _size: int
    _statement_timeout: float
    _connect_timeout: float
    on_failure: Callable[[str], object] = field(init=False, default=lambda _why: None)
    """Told why, each time that Postgres does not do what it is asked."""
    _closed: bool = field(init=False, default=False)
    _idle: list[Connection] = field(init=False, factory=list)
    _turns: trio.CapacityLimiter = field(init=False)
    # Cancelling must not queue behind the very calls that it is to end.
    _cancel_turns: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._turns = trio.CapacityLimiter(self._size)
        self._cancel_turns = trio.CapacityLimiter(self._size)

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work(connection)` in a worker thread, in one transaction, committed on return.

        Cancelled, it ends the statement that runs and rolls back before it returns. Raises
        `StoreUnavailable` when Postgres cannot be asked or takes too long, `StoreForbids` when the
        role has no right to it; other errors of `work` roll back and come out as they are.
        """
        limit = self._connect_timeout + self._statement_timeout + ANSWER_MARGIN
        with trio.move_on_after(limit):
            return await self._run(work, self._statement_timeout)
        why = f"Postgres did not answer within {limit:g} s"
        self.on_failure(why)
        raise StoreUnavailable(why)

    async def transact_unhurried(self, work: Callable[[Connection], T]) -> T:
        """`transact` with no limit of time but the caller's: for changes of the schema."""
        return await self._run(work, 0)

    async def check(self) -> None:
        """Ask Postgres the cheapest question; `StoreUnavailable` if it does not answer."""
        await self.transact(lambda connection: connection.execute("select 1").fetchone())

    async def _run(self, work: Callable[[Connection], T], statement_timeout: float) -> T:
        call = Call(work, statement_timeout, self._take, self._give_back)
        try:
            return await trio.to_thread.run_sync(
                call.run, limiter=self._turns, abandon_on_cancel=True
            )
        except trio.Cancelled:
            with trio.move_on_after(STOP_LIMIT, shield=True):
                await call.stop(self._cancel_turns)
            raise
        except psycopg.errors.InsufficientPrivilege as error:
            said = error.diag.message_primary or ""
            if said.startswith(OF_FILES):
                raise self._unavailable(error) from None
            raise StoreForbids(said) from None
        except AWAY as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        unavailable = self.address.unavailable(error)
        self.on_failure(str(unavailable))
        return unavailable

    async def _wait_for_calls(self) -> None:
        for _ in range(self._size):
            await self._turns.acquire_on_behalf_of(object())

    def _close(self) -> None:
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    # The rest is called in worker threads.

    def _take(self) -> tuple[Connection, bool]:
        """A connection, and whether it is fresh; one that lay idle may be dead."""
        try:
            return self._idle.pop(), False
        except IndexError:
            return psycopg.connect(**self.address.arguments), True

    def _give_back(self, connection: Connection) -> None:
        whole = connection.info.transaction_status == TransactionStatus.IDLE
        if whole and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()
