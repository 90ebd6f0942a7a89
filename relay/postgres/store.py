"""Opens the database that the settings name, with all its tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen

from relay.errors import ConfigError
from relay.postgres.address import DatabaseAddress
from relay.postgres.database import Database, open_database
from relay.postgres.embedded.embedded import open_embedded
from relay.postgres.migrate import pending
from relay.postgres.notifications import (
    AlertNotifications,
    ChangeNotifications,
    StreamNotifications,
)
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.alerts.alert_bytes import AlertBytes, ByteLimits
from relay.postgres.tables.alerts.alert_pictures import AlertPictureTable
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.audit import AuditTable
from relay.postgres.tables.grants import Grants
from relay.postgres.tables.links import LinkTable
from relay.postgres.tables.live_streams import LiveStreamTable
from relay.postgres.tables.mqtt_streams import MqttStreamsTable
from relay.postgres.tables.nodes import NodeTable
from relay.postgres.tables.operator_requests import OperatorRequests
from relay.postgres.tables.push_subscriptions import PushSubscriptionTable
from relay.postgres.tables.service_tokens import ServiceTokenTable
from relay.postgres.tables.sessions.application_users import ApplicationUsers
from relay.postgres.tables.sessions.better_auth import AuthNames
from relay.postgres.tables.sessions.sessions import BetterAuthSessions, find_better_auth
from relay.postgres.tables.sessions.users import find_users
from relay.postgres.tables.stream_events import StreamEventTable
from relay.postgres.tables.stream_owners import StreamOwnershipTable
from relay.postgres.tables.streams import StreamTable
from relay.postgres.triggers import SessionTriggers
from relay.settings.columns import parse_columns
from relay.settings.pictures import wanted_by
from relay.settings.settings import Settings


@frozen
class NoTriggers:
    """Where Better Auth has no rows that could change unnoticed."""

    async def installed(self) -> bool:
        return True

    async def note_deletions(self) -> bool:
        return False


@frozen(eq=False, repr=False)
class Store:
    """All tables of one database, and what it notifies of."""

    database: Database
    is_embedded: bool
    sessions: BetterAuthSessions | ApplicationUsers
    service_tokens: ServiceTokenTable
    links: LinkTable
    grants: Grants
    streams: StreamTable
    stream_ownership: StreamOwnershipTable
    live_streams: LiveStreamTable
    nodes: NodeTable
    operator_requests: OperatorRequests
    alerts: AlertTable
    alert_pictures: AlertPictureTable
    alert_pruner: AlertPruner
    alert_targets: AlertTargetTable
    push_subscriptions: PushSubscriptionTable
    stream_events: StreamEventTable
    mqtt_streams: MqttStreamsTable
    audit: AuditTable
    changes: ChangeNotifications
    alert_notifications: AlertNotifications
    stream_notifications: StreamNotifications
    triggers: SessionTriggers | NoTriggers


@asynccontextmanager
async def open_store(settings: Settings, *, exclusive: bool = False) -> AsyncIterator[Store]:
    """Open the database, and find all tables.

    `ConfigError` when tables are missing, `StoreUnavailable` when the database does not answer;
    for `exclusive` see `open_configured_database`.
    """
    async with open_configured_database(settings, exclusive=exclusive) as database:
        await check_tables(database)
        sessions, triggers = await _find_sessions(database, settings)
        listen_address = _listen_address(settings, database)
        limits = ByteLimits(settings.alert_bytes, settings.alert_bytes_per_user)
        yield Store(
            database=database,
            is_embedded=settings.database_url is None,
            sessions=sessions,
            service_tokens=ServiceTokenTable(database, sessions.users),
            links=LinkTable(database, sessions),
            grants=Grants(database),
            streams=StreamTable(database),
            stream_ownership=StreamOwnershipTable(
                database,
                sessions.tables.user if isinstance(sessions, BetterAuthSessions) else None,
            ),
            live_streams=LiveStreamTable(database),
            nodes=NodeTable(database),
            operator_requests=OperatorRequests(database),
            alerts=AlertTable(database, AlertBytes(limits), wanted_by(settings)),
            alert_pictures=AlertPictureTable(database),
            alert_pruner=AlertPruner(database, limits),
            alert_targets=AlertTargetTable(database),
            push_subscriptions=PushSubscriptionTable(database, sessions),
            stream_events=StreamEventTable(database),
            mqtt_streams=MqttStreamsTable(database),
            audit=AuditTable(database),
            changes=ChangeNotifications(database, listen_address),
            alert_notifications=AlertNotifications(listen_address),
            stream_notifications=StreamNotifications(listen_address),
            triggers=triggers,
        )


@asynccontextmanager
async def open_configured_database(
    settings: Settings, *, exclusive: bool = False
) -> AsyncIterator[Database]:
    """Open the database of `database_url`, or the embedded one, which is started if need be.

    `exclusive`: `ConfigError` when another relay runs the embedded one, since it would end with
    that relay.
    """
    async with (
        open_database_url(settings, exclusive=exclusive) as url,
        open_database(
            url,
            pool_size=settings.database_pool,
            statement_timeout=settings.statement_timeout,
            connect_timeout=settings.connect_timeout,
        ) as database,
    ):
        yield database


async def _find_sessions(
    database: Database, settings: Settings
) -> tuple[BetterAuthSessions | ApplicationUsers, SessionTriggers | NoTriggers]:
    if settings.auth_session_url is not None:
        return ApplicationUsers(await find_users(database, _auth_names(settings))), NoTriggers()
    sessions = await find_configured_better_auth(database, settings)
    return sessions, SessionTriggers(database, sessions.tables)


def _auth_names(settings: Settings) -> AuthNames:
    return AuthNames(
        settings.auth_schema,
        settings.auth_user_table,
        settings.auth_session_table,
        parse_columns(settings.auth_user_columns),
        parse_columns(settings.auth_session_columns),
        settings.auth_time_zone,
    )


async def find_configured_better_auth(database: Database, settings: Settings) -> BetterAuthSessions:
    """Find Better Auth's tables where the settings say; `ConfigError` if they are not there."""
    return await find_better_auth(
        database,
        schema=settings.auth_schema,
        user_table=settings.auth_user_table,
        session_table=settings.auth_session_table,
        user_columns=parse_columns(settings.auth_user_columns),
        session_columns=parse_columns(settings.auth_session_columns),
        time_zone=settings.auth_time_zone,
        token_storage=settings.auth_token_storage,
    )


async def check_tables(database: Database) -> None:
    """`ConfigError` unless relay's own tables are as this version needs them."""
    if missing := await pending(database):
        tables = f"{len(missing)} migrations are missing, up to {missing[-1]}"
        raise ConfigError(f"the database is not ready: {tables}; run `relay db migrate`")


@asynccontextmanager
async def open_database_url(
    settings: Settings, *, exclusive: bool, connections: int = 0
) -> AsyncIterator[str]:
    """The URL of the database, which may be that of the embedded one; this one allows so many
    connections at least."""
    if settings.database_url is not None:
        yield settings.database_url
    else:
        async with open_embedded(
            settings.data_folder,
            postgres_bin=settings.postgres_bin,
            exclusive=exclusive,
            connections=connections,
        ) as url:
            yield url


def _listen_address(settings: Settings, database: Database) -> DatabaseAddress:
    if settings.listen_url is None:
        return database.address
    return DatabaseAddress.parse(settings.listen_url, connect_timeout=settings.connect_timeout)
