"""The composition root: opens the store, the services, the hub and the listeners. Floor 5.

They are nested so that each outlives what leans on it: connections end before the services that
answer them, and those before the database.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import structlog
import trio
from attrs import define, frozen

from relay.alerts.dispatch import AlertDispatch
from relay.alerts.event import alert_event
from relay.alerts.intake import AlertIntake
from relay.alerts.retention import Retention
from relay.alerts.webhooks import Webhooks
from relay.audit import AuditLog
from relay.auth.chain import Verification, open_verification
from relay.auth.doubt import CertainVerifier
from relay.auth.registry import Registry
from relay.auth.vouched import Vouched
from relay.auth.watch import SessionWatch
from relay.complaints import Complaint
from relay.connection import Door, Timing
from relay.courier import Courier, open_courier
from relay.errors import ConfigError, StoppedAtOnce, StoreUnavailable
from relay.guard.files import allow_files
from relay.guard.guard import Guard
from relay.guard.rates import Rate
from relay.hangup import heed_hangup
from relay.hub.hub import Hub
from relay.metrics import Metrics
from relay.model import StoredAlert
from relay.postgres.address import Address as DatabaseAddress
from relay.postgres.alert_retention import AlertRetention
from relay.postgres.alerts import AlertTable
from relay.postgres.audit import AuditTable
from relay.postgres.changes import ALERTS, Changes
from relay.postgres.database import Database, open_database
from relay.postgres.embedded import open_embedded
from relay.postgres.grants import Grants
from relay.postgres.migrate import pending
from relay.postgres.services import ServiceTokens
from relay.postgres.sessions import BetterAuthSessions, find_better_auth
from relay.postgres.streams import StreamOwners
from relay.postgres.triggers import SessionTriggers
from relay.postgres.webhooks import WebhookTable
from relay.server import Server
from relay.services import Services
from relay.settings import Settings
from relay.supervisor import PATIENCE, Supervisor
from relay.transport.budget import Budget
from relay.transport.certificate import Certificate, make_development_certificate
from relay.transport.listener import listen
from relay.web.api import Api
from relay.web.app import Reports, make_app
from relay.web.exposition import Exposition
from relay.web.http import HttpServer

QUESTIONS = 4
"""To the store, in one turn of a service at most."""
READY_PATIENCE = 2.0
"""Seconds in which the store has to answer for relay to be ready."""
SETTLE_PATIENCE = 5.0
"""Seconds in which services come up before relay says that it listens, ready or not."""

log = structlog.get_logger()


@frozen
class Store:
    """Everything that is kept in Postgres."""

    database: Database
    embedded: bool
    sessions: BetterAuthSessions
    services: ServiceTokens
    streams: StreamOwners
    alerts: AlertTable
    grants: Grants
    changes: Changes
    alert_news: Changes
    triggers: SessionTriggers
    audit: AuditTable
    webhooks: WebhookTable


@asynccontextmanager
async def open_database_of(settings: Settings, *, lasting: bool = False) -> AsyncIterator[Database]:
    """The database that the settings name, or the embedded one, which is started if need be.

    `lasting`: not that of another relay's, with which it would end.
    """
    async with (
        _database_url(settings, lasting=lasting) as url,
        open_database(
            url,
            pool_size=settings.database_pool,
            statement_timeout=settings.statement_timeout,
            connect_timeout=settings.connect_timeout,
        ) as database,
    ):
        yield database


async def check_tables(database: Database) -> None:
    """`ConfigError` unless relay's own tables are as this version needs them."""
    if missing := await pending(database):
        tables = f"{len(missing)} migrations are missing, up to {missing[-1]}"
        raise ConfigError(f"the database is not ready: {tables}; run `relay db migrate`")


@asynccontextmanager
async def open_store(settings: Settings, *, lasting: bool = False) -> AsyncIterator[Store]:
    """The database with all its tables found.

    `ConfigError` when they are missing, `StoreUnavailable` when it cannot be asked.
    """
    async with open_database_of(settings, lasting=lasting) as database:
        await check_tables(database)
        sessions = await find_better_auth(
            database,
            schema=settings.auth_schema,
            user_table=settings.auth_user_table,
            session_table=settings.auth_session_table,
        )
        listen_address = _listen_address(settings, database)
        yield Store(
            database,
            settings.database_url is None,
            sessions,
            ServiceTokens(database),
            StreamOwners(database),
            AlertTable(database),
            Grants(database),
            Changes(database, listen_address),
            Changes(database, listen_address, ALERTS),
            SessionTriggers(database, sessions.tables),
            AuditTable(database),
            WebhookTable(database),
        )


def _listen_address(settings: Settings, database: Database) -> DatabaseAddress:
    if settings.listen_url is None:
        return database.address
    return DatabaseAddress.parse(settings.listen_url, connect_timeout=settings.connect_timeout)


async def serve(
    settings: Settings,
    *,
    handle_signals: bool = True,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a relay; started with its addresses, as `http://HOST:PORT`.

    On SIGTERM or SIGINT it tells its peers, drains and returns; a second one raises
    `StoppedAtOnce`. When cancelled it ends at once, too.
    """
    addresses = [(address.host, address.port) for address in settings.addresses]
    allow_files(settings.max_connections + settings.max_unauthenticated)
    certificate = _certificate(settings)
    listeners = await listen(
        addresses, stall_timeout=settings.stall_timeout, certificate=certificate
    )
    try:
        metrics = Metrics()
        async with (
            open_store(settings, lasting=True) as store,
            open_verification(settings, store.sessions, store.services, metrics) as verification,
            open_courier(settings.webhook_networks) as courier,
            trio.open_nursery() as nursery,
        ):
            store.database.on_failure = Complaint("the database does not do what it is asked").say
            relay = Relay.build(settings, store, verification, courier, metrics)
            await relay.dispatch.begin()
            await nursery.start(relay.hub.run)
            await nursery.start(relay.supervisor.run)
            if handle_signals:
                await nursery.start(_drain_on_signal, relay, settings.drain_timeout)
            if handle_signals or certificate is not None:
                await nursery.start(heed_hangup, certificate)
            with trio.move_on_after(SETTLE_PATIENCE):
                await relay.supervisor.settle()
            task_status.started([listener.url for listener in listeners])
            await relay.server.run(listeners)
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()


@define(eq=False)
class Relay:
    """The parts of a running relay, put together."""

    hub: Hub
    dispatch: AlertDispatch
    supervisor: Supervisor
    server: Server

    @classmethod
    def build(
        cls,
        settings: Settings,
        store: Store,
        verification: Verification,
        courier: Courier,
        metrics: Metrics,
    ) -> Relay:
        hub = Hub(metrics, settings.offline_grace)
        registry, vouched = Registry(), Vouched(store.sessions)
        guard = Guard.build(settings)
        certain = CertainVerifier(
            verification.verifier, vouched.complete, registry, guard.turnstile.turn
        )
        watch = SessionWatch(
            registry,
            store.sessions,
            store.services,
            store.changes,
            store.triggers,
            settings.session_poll,
            forget=verification.verifier.forget,
        )
        webhooks = Webhooks(store.webhooks, courier, metrics)

        def deliver(alert: StoredAlert) -> None:
            webhooks.wake()
            hub.deliver(alert_event(alert), alert.owner_id)

        dispatch = AlertDispatch(store.alerts, deliver, store.alert_news)
        retention = Retention(
            AlertRetention(store.database),
            metrics,
            timedelta(days=settings.alert_days),
            settings.alerts_per_stream,
        )
        intake = AlertIntake(store.alerts, metrics, dispatch.wake)
        audit = AuditLog(
            store.audit if settings.audit else None, timedelta(days=settings.audit_days)
        )
        supervisor = Supervisor(
            {
                **verification.services,
                "vouched-users": vouched.service,
                "session-watch": watch,
                "alert-intake": intake.service,
                "alert-dispatch": dispatch,
                "alert-retention": retention,
                "webhooks": webhooks,
                **({"audit": audit} if settings.audit else {}),
            },
            dispensable=frozenset({"audit", "alert-retention", "webhooks"}),
            patience=PATIENCE + QUESTIONS * (settings.connect_timeout + settings.statement_timeout),
        )
        timing = Timing(
            auth_timeout=settings.auth_timeout,
            ping_interval=settings.ping_interval,
            idle_timeout=settings.idle_timeout,
            max_message_size=settings.max_message_size,
        )

        async def ready() -> dict[str, Any]:
            database = "unavailable"
            with suppress(StoreUnavailable), trio.move_on_after(READY_PATIENCE):
                await store.database.check()
                database = "ok"
            services = {name: each.state for name, each in supervisor.services.items()}
            return {
                "ready": supervisor.ready and not server.draining and database == "ok",
                "draining": server.draining,
                "database": database,
                "services": services,
            }

        def stats() -> dict[str, Any]:
            ledger, waiting = hub.ledger()
            frames = {
                "accepted": ledger.accepted,
                "written": ledger.written,
                "dropped": dict(ledger.dropped),
                "waiting": waiting,
            }
            return metrics.totals() | {
                "profile": settings.profile,
                "unauthenticated": guard.crowd.unauthenticated,
                "streams": hub.count(),
                "frames_to_consumers": frames,
            }

        limited = settings.profile != "load"
        if not limited:
            log.warning("PROFILE LOAD: no rates and no caps; never where strangers can connect")
        budget = Budget(settings.receive_buffer)
        alert_rate = Rate(settings.alert_rate) if limited else None
        exposition = Exposition(metrics, hub, supervisor, audit)
        api = Api(
            certain,
            hub,
            intake,
            store.alerts,
            settings.auth_timeout,
            guard.attempts,
            alert_rate,
            audit,
            metrics,
        )
        http = HttpServer(make_app(Reports(ready, stats, exposition.encode), api))
        services = Services(
            hub,
            store.streams,
            intake,
            store.alerts,
            metrics,
            settings.lossless_buffer,
            max_subscriptions=settings.max_subscriptions if limited else None,
            max_streams=settings.max_streams_per_user if limited else None,
            register_rate=Rate(settings.register_rate) if limited else None,
            alert_rate=alert_rate,
        )
        door = Door(certain, services, timing, budget, http.serve, watch, guard, audit)
        server = Server(door)
        return cls(hub, dispatch, supervisor, server)


async def _drain_on_signal(
    relay: Relay, drain_timeout: float, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
        relay.server.drain(drain_timeout)
        await anext(signals)
        raise StoppedAtOnce


def _certificate(settings: Settings) -> Certificate | None:
    chain, key = settings.tls_certificate, settings.tls_key
    if (chain is None) != (key is None):
        raise ConfigError("TLS needs both tls_certificate and tls_key")
    if chain is not None and key is not None:
        return Certificate(chain, key)
    if settings.dev_tls:
        certificate, authority = make_development_certificate(settings.data_folder / "dev-tls")
        log.warning("TLS for development: devices must trust its authority", file=str(authority))
        return certificate
    return None


@asynccontextmanager
async def _database_url(settings: Settings, *, lasting: bool) -> AsyncIterator[str]:
    if settings.database_url is not None:
        yield settings.database_url
    else:
        async with open_embedded(
            settings.data_folder, postgres_bin=settings.postgres_bin, alone=lasting
        ) as url:
            yield url
