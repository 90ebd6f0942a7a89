"""Checks of the database: connection, tables, notifications and clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio
from attrs import define, field

from relay.doctor.brokers import look_at_brokers
from relay.doctor.checks import DoctorCheck, Finding, fail, ok, skip, warn
from relay.doctor.cluster import look_at_nodes
from relay.errors import ConfigError, StoreForbids, StoreUnavailable
from relay.model.targets.alert_target import AlertTarget
from relay.postgres.address import DatabaseAddress
from relay.postgres.database import Database, open_database
from relay.postgres.inspect import (
    compare_clocks,
    embedded_version,
    measure,
    missing_tables,
    notifications_arrive,
    running_embedded,
    unusable_tables,
)
from relay.postgres.migrate import pending
from relay.postgres.store import find_configured_better_auth
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.mqtt_streams import MqttStreamsTable
from relay.postgres.tables.sessions.local_times import hours, offset_of_newest
from relay.postgres.tables.sessions.sessions import BetterAuthSessions
from relay.postgres.triggers import SessionTriggers
from relay.settings.settings import Settings

SLOW_QUERY = 0.05
"""Seconds; verifying a token takes one query."""
CLOCK_SKEW_WARNING, MAX_CLOCK_SKEW = 2.0, 60.0
"""Seconds; beyond the second, tokens and logs are of no use."""

SPARE_CONNECTIONS = 3
"""Connections beside the pool: one that listens, and some for commands."""

MIN_FAILING_BROWSERS = 3
MAX_NAMED_TARGETS = 5
"""Targets of alerts that one line names."""

CONNECTION_SETTINGS = (
    "database_url",
    "data_dir",
    "postgres_bin",
    "connect_timeout",
    "statement_timeout",
)
BETTER_AUTH_SETTINGS = (
    *CONNECTION_SETTINGS,
    "auth_schema",
    "auth_user_table",
    "auth_session_table",
    "auth_user_columns",
    "auth_session_columns",
    "auth_token_storage",
    "auth_time_zone",
    "auth_session_url",
)

BROKER_SETTINGS = (*CONNECTION_SETTINGS, "webhook_networks")

FIX_CONNECTION = (
    "check that PostgreSQL is running, that database_url (RELAY_DATABASE_URL) is right, and that"
    " firewalls and pg_hba.conf allow relay to connect"
)
FIX_PRIVILEGES = (
    "grant the role of database_url USAGE on the schema relay, USAGE and UPDATE on all its"
    " sequences, and SELECT, INSERT, UPDATE and DELETE on all its tables"
)
FIX_TABLES = "run `relay db migrate` as a role that owns the database"


@define(eq=False)
class DatabaseChecks:
    """The checks of one database. All wait for the first, which tries to connect."""

    _settings: Settings
    _asked: trio.Event = field(factory=trio.Event)
    _url: str | None = field(default=None, repr=False)
    """Set once the database has answered."""
    _skipped: str = "not checked: the database does not answer"
    """What the other checks report if it has not answered."""

    def checks(self) -> list[DoctorCheck]:
        settings = self._settings
        nodes = DoctorCheck("nodes", self._of(look_at_nodes), CONNECTION_SETTINGS)
        in_cluster = settings.cluster_addresses or settings.workers > 1
        return [
            DoctorCheck("database", self._reach, CONNECTION_SETTINGS, FIX_CONNECTION),
            DoctorCheck("tables", self._of(self._tables), CONNECTION_SETTINGS, FIX_TABLES),
            DoctorCheck(
                "better-auth",
                self._of(self._better_auth),
                BETTER_AUTH_SETTINGS,
                "set auth_schema, auth_user_table and auth_session_table to Better Auth's tables,"
                " and grant the role SELECT on both",
            ),
            DoctorCheck(
                "logouts",
                self._of(self._logouts),
                (*BETTER_AUTH_SETTINGS, "listen_url"),
                "set listen_url to the database itself, not to a connection pool",
            ),
            DoctorCheck(
                "clock",
                self._of(self._clock),
                CONNECTION_SETTINGS,
                "see PostgreSQL's message",
            ),
            DoctorCheck("targets", self._of(self._targets), (*CONNECTION_SETTINGS, "public_url")),
            DoctorCheck("brokers", self._of(self._brokers), BROKER_SETTINGS),
            *([nodes] if in_cluster else []),
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
            f"PostgreSQL {answered.version} answers: {answered.connected * 1000:.0f} ms to connect,"
            f" {answered.query * 1000:.1f} ms for a query"
        )
        if answered.encoding != "UTF8":
            return warn(
                f"{told}; its encoding is {answered.encoding}, so relay refuses text with other"
                " characters",
                "move the data to a database with the encoding UTF8",
            )
        if answered.query > SLOW_QUERY:
            return warn(told, "run relay closer to the database: each authentication waits for it")
        wanted = settings.workers * (settings.database_pool + SPARE_CONNECTIONS)
        if answered.connections < wanted:
            return warn(
                f"{told}; it allows {answered.connections} connections, and relay may need"
                f" {wanted}",
                "raise max_connections in PostgreSQL, or lower database_pool",
            )
        return ok(told)

    async def _embedded_is_off(self) -> Finding:
        settings = self._settings
        version = await trio.to_thread.run_sync(
            embedded_version, settings.data_folder, settings.postgres_bin, abandon_on_cancel=True
        )
        self._skipped = "not checked: relay's own PostgreSQL is not running"
        return ok(f"relay's own PostgreSQL {version} starts with relay, in {settings.data_folder}")

    def _of(
        self, look: Callable[[Database], Awaitable[Finding]]
    ) -> Callable[[], Awaitable[Finding]]:
        """Run a check with a connection; skip it if the database has not answered."""

        async def if_it_answers() -> Finding:
            await self._asked.wait()
            if self._url is None:
                return skip(self._skipped)
            async with self._open(self._url) as database:
                return await look(database)

        return if_it_answers

    async def _tables(self, database: Database) -> Finding:
        try:
            missing = await pending(database)
        except StoreForbids as error:
            return fail(f"this role may not read relay's tables: {error}", FIX_PRIVILEGES)
        if missing:
            return fail(f"{len(missing)} migrations are missing, up to {missing[-1]}", FIX_TABLES)
        if lost := await missing_tables(database):
            return fail(
                f"these tables are missing, though all migrations were applied: {', '.join(lost)}",
                "restore them from a backup; or let relay begin anew: `drop schema relay cascade`,"
                " which deletes its alerts and tokens, and then `relay db migrate`",
            )
        if unusable := await unusable_tables(database):
            return fail(f"this role may not use {', '.join(unusable)}", FIX_PRIVILEGES)
        return ok("relay's tables are up to date")

    async def _better_auth(self, database: Database) -> Finding:
        if self._settings.auth_session_url is not None:
            return ok("relay asks the application about sessions, so it does not need their tables")
        sessions = await self._find_better_auth(database)
        told = f"the Better Auth tables exist: {sessions.tables.user} and {sessions.tables.session}"
        suspicions = await sessions.suspicions()
        if marks := await sessions.end_marks():
            suspicions.append(marks)
        if suspicions:
            said = "; ".join(each.said for each in suspicions)
            do = "; ".join(dict.fromkeys(each.do for each in suspicions))
            certain = any(each.is_certain for each in suspicions)
            return fail(said, do) if certain else warn(f"{told}, but {said}", do)
        offset = offset_of_newest(await sessions.newest_ages())
        if offset is None:
            return ok(told)
        zone = self._settings.auth_time_zone
        seems = (
            f"{told}; read in {zone}, the newest session's creation time is off by {hours(offset)}"
        )
        return warn(
            seems,
            "if that session is new, set auth_time_zone to the time zone of the application: its"
            " columns have none (timestamp without time zone)",
        )

    async def _logouts(self, database: Database) -> Finding:
        if self._settings.auth_session_url is not None:
            every = f"{self._settings.auth_session_recheck:g} s"
            return ok(
                f"relay asks the application about open sessions every {every}; it can report"
                " their end with POST /revocations"
            )
        try:
            tables = (await self._find_better_auth(database)).tables
            told = await SessionTriggers(database, tables).installed()
        except ConfigError:
            return skip("not checked: see better-auth")
        every = f"sessions are checked every {self._settings.session_poll:g} s"
        listen = database.address
        if self._settings.listen_url is not None:
            listen = DatabaseAddress.parse(
                self._settings.listen_url, connect_timeout=self._settings.connect_timeout
            )
        try:
            heard = await notifications_arrive(database, listen)
        except StoreUnavailable as error:
            return fail(
                f"cannot listen for notifications: {error}", "correct listen_url (RELAY_LISTEN_URL)"
            )
        if not heard:
            return warn(
                f"notifications do not arrive, so {every}",
                "if PgBouncer is in transaction mode, it drops them: set listen_url to the database"
                " itself",
            )
        if not told:
            return ok(
                f"notifications arrive; {every}, because there are no triggers"
                " (`relay db migrate --watch-sessions` adds them)"
            )
        return ok("triggers report logouts at once, and notifications arrive")

    async def _targets(self, database: Database) -> Finding:
        if await pending(database):
            return skip("not checked: see tables")
        found = [each for each, _ in await AlertTargetTable(database).all()]
        targets = [each for each in found if each.viewer is None]
        browsers = [each for each in found if each.viewer is not None]
        given_up = [each for each in targets if each.given_up_at is not None]
        failing = [each for each in targets if each.failures and each.given_up_at is None]
        if given_up or failing:
            said = "; ".join(
                f"{each.target_id} {'is given up' if each in given_up else 'fails'}"
                f" ({each.last_error})"
                for each in (given_up + failing)[:MAX_NAMED_TARGETS]
            )
            number = f"{len(given_up)} given up and {len(failing)} failing of {len(targets)}"
            return warn(
                f"targets of alerts: {number}: {said}",
                "`relay target list` shows all; when one works again, `relay target test ID`"
                " resumes it",
            )
        if self._settings.public_url is None and any(
            each.options.get("picture") for each in targets
        ):
            return warn(
                "messages to targets of alerts have no pictures, because public_url is not set",
                "set public_url to the URL at which people reach relay",
            )
        return _browsers(browsers) or ok(
            f"{len(targets)} targets of alerts and {len(browsers)} browsers, and deliveries to no"
            " target fail"
        )

    async def _brokers(self, database: Database) -> Finding:
        if await pending(database):
            return skip("not checked: see tables")
        targets = await MqttStreamsTable(database).targets()
        return await look_at_brokers(targets, self._settings)

    async def _clock(self, database: Database) -> Finding:
        clocks = await compare_clocks(database)
        apart = abs(clocks.ahead)
        way = "ahead of" if clocks.ahead > 0 else "behind"
        if apart - clocks.uncertain <= CLOCK_SKEW_WARNING:
            return ok(f"the database's clock is {_seconds(apart)} {way} this machine's")
        told = f"the database's clock is {_seconds(apart)} {way} this machine's"
        do = "synchronize the clocks of both machines (chrony, systemd-timesyncd)"
        return fail(told, do) if apart > MAX_CLOCK_SKEW else warn(told, do)

    def _open(self, url: str) -> AbstractAsyncContextManager[Database]:
        return open_database(
            url,
            pool_size=1,
            statement_timeout=self._settings.statement_timeout,
            connect_timeout=self._settings.connect_timeout,
        )

    async def _find_better_auth(self, database: Database) -> BetterAuthSessions:
        return await find_configured_better_auth(database, self._settings)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _browsers(browsers: Sequence[AlertTarget]) -> Finding | None:
    """A warning if most browsers fail, which is no fault of theirs: a single one may."""
    failing = [each for each in browsers if each.failures or each.given_up_at is not None]
    if len(failing) < MIN_FAILING_BROWSERS or len(failing) * 2 <= len(browsers):
        return None
    return warn(
        f"notifications reach {len(browsers) - len(failing)} of {len(browsers)} browsers only:"
        f" {failing[-1].last_error}",
        "let this machine reach the push services of browsers over HTTPS (push_services), and see"
        " that push_key is as it was",
    )
