"""The database: whether it answers, has the tables, tells of changes, and has the same time.

Floor 6.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio
from attrs import define, field

from relay.doctor.checks import Check, Finding, fail, ok, skip, warn
from relay.errors import ConfigError, StoreForbids, StoreUnavailable
from relay.postgres.address import Address
from relay.postgres.database import Database, open_database
from relay.postgres.inspect import (
    compare_clocks,
    embedded_version,
    measure,
    notifications_arrive,
    running_embedded,
    unusable_tables,
)
from relay.postgres.migrate import pending
from relay.postgres.sessions import BetterAuthSessions, find_better_auth
from relay.postgres.triggers import SessionTriggers
from relay.settings import Settings

SLOW = 0.05
"""Seconds: each token that is verified waits for a query."""
SKEWED, FAR_OFF = 2.0, 60.0
"""Seconds between the clocks that are worth a word, and that make tokens and logs useless."""

SPARE_CONNECTIONS = 3
"""Of relay to its database, beside those of the pool: one listens, and commands take one."""

ADDRESS = ("database_url", "data_dir", "postgres_bin", "connect_timeout", "statement_timeout")
AUTH = (*ADDRESS, "auth_schema", "auth_user_table", "auth_session_table")

REACH = (
    "see that PostgreSQL runs, that database_url (RELAY_DATABASE_URL) names it, and that a firewall"
    " and pg_hba.conf let relay in"
)
GRANT = (
    "grant the role of database_url usage on schema relay and on all its sequences, and select,"
    " insert, update and delete on all its tables"
)
MIGRATE = "run `relay db migrate` as a role that owns the database"


@define(eq=False)
class DatabaseChecks:
    """The checks of one database, which share the question whether it answers at all."""

    _settings: Settings
    _asked: trio.Event = field(factory=trio.Event)
    _url: str | None = field(default=None, repr=False)
    """Once it has answered."""
    _instead: str = "not looked at: the database does not answer"
    """What the others say where it has not."""

    def checks(self) -> list[Check]:
        return [
            Check("database", self._reach, ADDRESS, REACH),
            Check("tables", self._of(self._tables), ADDRESS, MIGRATE),
            Check(
                "better-auth",
                self._of(self._better_auth),
                AUTH,
                "name its tables with auth_schema, auth_user_table and auth_session_table, and let"
                " the role read them: grant select on both",
            ),
            Check(
                "logouts",
                self._of(self._logouts),
                (*AUTH, "listen_url"),
                "see that listen_url names the database itself, and no pool before it",
            ),
            Check("clock", self._of(self._clock), ADDRESS, "see what the database says"),
        ]

    async def _reach(self) -> Finding:
        try:
            settings = self._settings
            url = settings.database_url
            if url is None:
                url = await trio.to_thread.run_sync(
                    running_embedded, settings.data_folder, abandon_on_cancel=True
                )
            if url is None:
                return await self._embedded_is_off()
            async with self._open(url) as database:
                answered = await measure(database)
            self._url = url
        finally:
            self._asked.set()
        told = (
            f"PostgreSQL {answered.version} answers: {answered.connected * 1000:.0f} ms with"
            f" connecting, {answered.query * 1000:.1f} ms for a query"
        )
        if answered.query > SLOW:
            return warn(told, "bring relay nearer to its database: whoever signs in waits for it")
        if answered.connections < settings.database_pool + SPARE_CONNECTIONS:
            return warn(
                f"{told}; it lets {answered.connections} in at once, and relay may want"
                f" {settings.database_pool + SPARE_CONNECTIONS}",
                "raise max_connections of PostgreSQL, or lower database_pool",
            )
        return ok(told)

    async def _embedded_is_off(self) -> Finding:
        settings = self._settings
        version = await trio.to_thread.run_sync(
            embedded_version, settings.data_folder, settings.postgres_bin, abandon_on_cancel=True
        )
        self._instead = "not looked at: relay's own PostgreSQL does not run now"
        return ok(f"relay's own PostgreSQL {version} starts with relay, in {settings.data_folder}")

    def _of(
        self, look: Callable[[Database], Awaitable[Finding]]
    ) -> Callable[[], Awaitable[Finding]]:
        """A look at the database, where it answers."""

        async def if_it_answers() -> Finding:
            await self._asked.wait()
            if self._url is None:
                return skip(self._instead)
            async with self._open(self._url) as database:
                return await look(database)

        return if_it_answers

    async def _tables(self, database: Database) -> Finding:
        try:
            missing = await pending(database)
        except StoreForbids as error:
            return fail(f"this role may not read relay's tables: {error}", GRANT)
        if missing:
            return fail(f"{len(missing)} migrations are missing, up to {missing[-1]}", MIGRATE)
        if unusable := await unusable_tables(database):
            return fail(f"this role may not use {', '.join(unusable)}", GRANT)
        return ok("relay's tables are as this version needs them")

    async def _better_auth(self, database: Database) -> Finding:
        tables = (await self._find_better_auth(database)).tables
        return ok(f"Better Auth's tables are there: {tables.user} and {tables.session}")

    async def _logouts(self, database: Database) -> Finding:
        try:
            tables = (await self._find_better_auth(database)).tables
            told = await SessionTriggers(database, tables).installed()
        except ConfigError:
            return skip("not looked at: see better-auth")
        every = f"sessions are read every {self._settings.session_poll:g} s"
        listen = database.address
        if self._settings.listen_url is not None:
            listen = Address.parse(
                self._settings.listen_url, connect_timeout=self._settings.connect_timeout
            )
        try:
            heard = await notifications_arrive(database, listen)
        except StoreUnavailable as error:
            return fail(f"there is no way to listen: {error}", "mend listen_url (RELAY_LISTEN_URL)")
        if not heard:
            return warn(
                f"notifications do not arrive, so {every}",
                "a PgBouncer in transaction mode swallows them: set listen_url to the database"
                " itself",
            )
        if not told:
            return ok(
                f"notifications arrive; {every}, for there are no triggers"
                " (`relay db migrate --watch-sessions` makes them)"
            )
        return ok("triggers tell of logouts at once, and notifications arrive")

    async def _clock(self, database: Database) -> Finding:
        clocks = await compare_clocks(database)
        apart = abs(clocks.ahead)
        way = "ahead of" if clocks.ahead > 0 else "behind"
        if apart - clocks.uncertain <= SKEWED:
            return ok(f"the database's clock is {_seconds(apart)} {way} this one")
        told = f"the database's clock is {_seconds(apart)} {way} this one"
        do = "let both machines keep time (chrony, systemd-timesyncd)"
        return fail(told, do) if apart > FAR_OFF else warn(told, do)

    def _open(self, url: str) -> AbstractAsyncContextManager[Database]:
        return open_database(
            url,
            pool_size=1,
            statement_timeout=self._settings.statement_timeout,
            connect_timeout=self._settings.connect_timeout,
        )

    async def _find_better_auth(self, database: Database) -> BetterAuthSessions:
        return await find_better_auth(
            database,
            schema=self._settings.auth_schema,
            user_table=self._settings.auth_user_table,
            session_table=self._settings.auth_session_table,
        )


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
