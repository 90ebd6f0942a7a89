"""`Database.transact`: run a function in a worker thread, in one transaction.

psycopg's synchronous connections are used from Trio's own worker threads and kept here, in a list,
under a capacity limiter. `psycopg_pool` could keep them too, but it starts threads of its own, and
half of this file would still be needed to end a transaction when its task is cancelled.

All settings of a connection are made inside the transaction (`BEGIN`), never at connect time:
PgBouncer in transaction mode refuses start-up options, and lets each transaction run on another
server connection.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

import psycopg
import trio
from attrs import define, field
from psycopg.pq import TransactionStatus

from relay.errors import StoreForbids, StoreLacks, StoreRejects, StoreUnavailable
from relay.model.text import is_storable
from relay.postgres.address import DatabaseAddress
from relay.postgres.call import ANSWER_MARGIN, CALL_STOP_TIMEOUT, Call
from relay.postgres.encodings import can_encode

MAX_UNUSED_TIME = 60.0
"""Seconds for which a connection is kept that is not used."""
POOL_CLOSE_TIMEOUT = 30.0
"""Seconds that `open_database` waits at its end for the last call."""

UNAVAILABLE_ERRORS = (
    psycopg.OperationalError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.InternalError_,  # among others: the quota of the disk is used up
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
    OSError,  # psycopg's own: there is no free file descriptor to wait for the server with
)
"""Errors that become `StoreUnavailable`."""
SIZE_ERRORS = (
    psycopg.errors.ProgramLimitExceeded,  # a value is too large for an index
    psycopg.errors.StatementTooComplex,  # a value is nested too deep
)
LACKING_ERRORS = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,  # also for a column of another type
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.DatatypeMismatch,
)
"""Errors of a database that somebody has changed, which become `StoreLacks`."""
REJECTING_ERRORS = (psycopg.DataError, psycopg.IntegrityError, *SIZE_ERRORS, UnicodeError)
"""Errors about one of the values, which become `StoreRejects`."""
ENCODING_ERRORS = (
    psycopg.errors.UntranslatableCharacter,
    psycopg.errors.CharacterNotInRepertoire,
    UnicodeError,
)
FILE_ERROR_PREFIX = "could not "
"""How messages of Postgres begin when the operating system denies it something. The error code is
the same for a read-only disk and for a role without rights."""

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
    """Yield a `Database` that connects on its first use; close its connections afterwards.

    Timeouts are in seconds. `ConfigError` when `url` is not a Postgres address.
    """
    address = DatabaseAddress.parse(url, connect_timeout=connect_timeout)
    database = Database(address, pool_size, statement_timeout, connect_timeout)
    try:
        yield database
    finally:
        # A call that was abandoned while connecting keeps its thread until that ends.
        with trio.move_on_after(POOL_CLOSE_TIMEOUT, shield=True):
            await database._wait_for_calls()
        database._close()


@define(eq=False, repr=False)
class Database:
    """A few connections to one database, each used by one transaction at a time."""

    address: DatabaseAddress
    size: int
    """The most connections."""
    _statement_timeout: float
    _connect_timeout: float
    on_failure: Callable[[str], object] = field(init=False, default=lambda _why: None)
    """Called with the reason, each time that Postgres is unavailable or rejects a value."""
    encoding: str | None = field(init=False, default=None)
    """The encoding of the database, by Postgres' name for it; None before the first connection."""
    _closed: bool = field(init=False, default=False)
    _idle: list[tuple[Connection, float]] = field(init=False, factory=list)
    """Connections, and when each was released, by the monotonic clock."""
    _slots: trio.CapacityLimiter = field(init=False)
    _long_slots: trio.CapacityLimiter = field(init=False)
    """For calls that may take long."""
    # Cancelling must not queue behind the calls that it is to end.
    _cancel_slots: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._slots = trio.CapacityLimiter(self.size)
        # Of one connection there is no half: they get one beside it.
        self._long_slots = trio.CapacityLimiter(1) if self.size == 1 else self._slots
        self._cancel_slots = trio.CapacityLimiter(self.size)

    async def transact(self, work: Callable[[Connection], T], *, may_be_long: bool = False) -> T:
        """Run `work(connection)` in a worker thread, in one transaction, committed on return.

        When cancelled, it ends the running statement and rolls back before it returns. Raises
        `StoreUnavailable` when Postgres is away or takes too long, `StoreForbids` when the role
        lacks the right, `StoreLacks` when a table or a column is not there, and `StoreRejects` when
        it cannot take or return one of the values; other errors of `work` roll back and propagate.

        `may_be_long`: it takes the only connection from nobody. Where there are several, the caller
        sees to it.
        """
        limit = self._connect_timeout + self._statement_timeout + ANSWER_MARGIN
        with trio.move_on_after(limit):
            try:
                slots = self._long_slots if may_be_long else self._slots
                return await self._run(work, self._statement_timeout, slots)
            except REJECTING_ERRORS as error:
                raise self._rejected(error) from None
        why = f"Postgres did not answer within {limit:g} s"
        self.on_failure(why)
        raise StoreUnavailable(why)

    async def transact_unhurried(self, work: Callable[[Connection], T]) -> T:
        """`transact` without a limit of time: for changes of the schema."""
        return await self._run(work, 0, self._slots)

    def can_hold(self, text: str) -> bool:
        """Whether a text in this database can be this one, as far as that is known."""
        return is_storable(text) and (self.encoding is None or can_encode(text, self.encoding))

    async def keep_closing_unused(self) -> NoReturn:
        """Close connections that were not used for a while: a serverless database may sleep, and
        one that woke up has lost them."""
        while True:
            await trio.sleep(MAX_UNUSED_TIME / 2)
            self._close_unused(time.monotonic() - MAX_UNUSED_TIME)

    def _close_unused(self, since: float) -> None:
        # The first one was released longest ago. A thread may take the last one at any moment.
        with suppress(IndexError):
            while self._idle[0][1] < since:
                connection, _ = self._idle.pop(0)
                connection.close()

    async def check(self) -> None:
        """Run the cheapest query; `StoreUnavailable` if Postgres does not answer."""
        await self.transact(lambda connection: connection.execute("select 1").fetchone())

    async def _run(
        self,
        work: Callable[[Connection], T],
        statement_timeout: float,
        slots: trio.CapacityLimiter,
    ) -> T:
        call = Call(work, statement_timeout, self._acquire, self._release)
        await _take_slot(slots, call)
        release_slot = partial(slots.release_on_behalf_of, call)
        try:
            call.start(release_slot)
        except BaseException:  # there can be no more threads, or there is no memory for one
            release_slot()
            raise
        try:
            return await call.result()
        except trio.Cancelled:
            with trio.move_on_after(CALL_STOP_TIMEOUT, shield=True):
                await call.stop(self._cancel_slots)
            raise
        except SIZE_ERRORS:  # they are operational errors, too
            raise
        except psycopg.errors.InsufficientPrivilege as error:
            said = error.diag.message_primary or ""
            if said.startswith(FILE_ERROR_PREFIX):
                raise self._unavailable(error) from None
            self.on_failure(f"{said}; `relay doctor` shows the missing privileges")
            raise StoreForbids(said) from None
        except LACKING_ERRORS as error:
            said = error.diag.message_primary or type(error).__name__
            self.on_failure(f"{said}; `relay doctor` shows what is missing")
            raise StoreLacks(said) from None
        except UNAVAILABLE_ERRORS as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        unavailable = self.address.unavailable(error)
        self.on_failure(str(unavailable))
        return unavailable

    def _rejected(self, error: BaseException) -> StoreRejects:
        # What Postgres says may quote the value, which may be a token.
        why = f"the database cannot store or return a value ({type(error).__name__})"
        if isinstance(error, ENCODING_ERRORS):
            why = (
                "the database cannot store or return a character: its encoding is"
                f" {self.encoding}, not UTF8"
            )
            if self.encoding in {None, "UTF8"}:
                why = "the database cannot store or return a character"
        traceback.clear_frames(error.__traceback__)
        self.on_failure(why)
        return StoreRejects(why)

    async def _wait_for_calls(self) -> None:
        for slots in {self._slots, self._long_slots}:
            for _ in range(int(slots.total_tokens)):
                await slots.acquire_on_behalf_of(object())

    def _close(self) -> None:
        self._closed = True
        for connection, _ in self._idle:
            connection.close()
        self._idle.clear()

    # The methods below are called in worker threads.

    def _acquire(self) -> tuple[Connection, bool]:
        """A connection, and whether it is new; an idle one may be dead."""
        try:
            return self._idle.pop()[0], False
        except IndexError:
            connection = psycopg.connect(**self.address.arguments)
            self.encoding = connection.info.parameter_status("server_encoding")
            return connection, True

    def _release(self, connection: Connection) -> None:
        whole = connection.info.transaction_status == TransactionStatus.IDLE
        if whole and not self._closed:
            self._idle.append((connection, time.monotonic()))
        else:
            connection.close()


async def _take_slot(slots: trio.CapacityLimiter, call: Call[Any]) -> None:
    """Take a slot for a call. No checkpoint if one is free: to wait for the call is one."""
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        slots.acquire_on_behalf_of_nowait(call)
    except trio.WouldBlock:
        await slots.acquire_on_behalf_of(call)
