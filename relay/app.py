"""The composition root: opens the store, the rooms and the listeners.

They are nested so that each outlives what depends on it: connections end before the tasks that
serve them, and those before the database.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol

import attrs
import structlog
import trio

from relay.alerts.setup import AlertParts, open_alerts
from relay.audit.log import AuditLog
from relay.audit.setup import open_audit
from relay.auth.setup import AuthParts, open_auth
from relay.clips.setup import ClipParts, open_storage
from relay.concurrency.activity import Activity
from relay.concurrency.alarms import Alarms
from relay.concurrency.supervisor import PROGRESS_TIMEOUT, Supervisor
from relay.connection.context import ConnectionContext, SessionContext, Timing
from relay.connection.local_claims import LocalClaims
from relay.errors import ConfigError, StoppedAtOnce
from relay.guard.failed_auths import CountedElsewhere
from relay.guard.guard import Guard
from relay.hub.frames.frame_budget import FrameBudget
from relay.hub.hub import Hub
from relay.logs.throttle import ThrottledWarning
from relay.metrics import Metrics
from relay.model.alerts.picture_link import PictureLinks
from relay.operators.setup import OperatorParts
from relay.postgres.address import DatabaseAddress
from relay.postgres.store import Store, open_database_url, open_store
from relay.process.rlimit import raise_open_file_limit
from relay.process.signals import handle_hangup, survive_restart_requests
from relay.renditions.setup import make_renderer
from relay.server import Server
from relay.settings.settings import Settings
from relay.tracing.setup import open_tracer
from relay.tracing.tracer import Tracer
from relay.transport.budget import Budget
from relay.transport.certificate import (
    DEV_TLS_FOLDER,
    Certificate,
    make_development_certificate,
)
from relay.transport.handed import HandedListener
from relay.transport.listener import ListeningSocket, TcpListener, listen
from relay.web.http import HttpServer
from relay.web.lazy import LazyWeb

if TYPE_CHECKING:
    from relay.cluster.setup import ClusterParts, NodePlace
    from relay.web.machine import AskWorkers, Machine
    from relay.web.setup import WebParts

__all__ = ["open_store", "serve"]

OPTIONAL_TASKS = frozenset(
    {
        *(
            "audit",
            "audit-lines",
            "alert-retention",
            "alert-outbox",
            "stream-events",
            "mqtt-streams",
            "session-table",
        ),
        *("operator", "stream-reclaim", "renditions", "clips", "picture-retention", "viewer-waker"),
    }
)
"""Without these, relay is ready all the same."""
MAX_QUERIES_PER_STEP = 4
"""Queries that a supervised task makes between two reports of progress, at most."""
THREAD_TURN = 0.001
"""Seconds for which a thread may go on while the event loop waits. By default it is 0.005."""
LISTENING_DATABASE_CONNECTIONS = 4
"""Connections to the database that a process has beside its pool: those that listen, and those that
are being replaced."""
OTHER_DATABASE_CONNECTIONS = 20
"""Connections to the database for commands, and for a worker that replaces another."""
SETTLE_TIMEOUT = 5.0
"""Seconds in which tasks come up before relay says that it listens, ready or not."""

log = structlog.get_logger()


class Seat(Protocol):
    """The place of a worker process on its machine."""

    def listen(self, stall_timeout: float, certificate: Certificate | None) -> HandedListener:
        """What gives the connections that the parent hands over."""

    @property
    def auths(self) -> CountedElsewhere:
        """How attempts to authenticate are counted for the machine."""

    @property
    def ask(self) -> AskWorkers:
        """How to ask all workers of the machine."""

    @property
    def place(self) -> NodePlace:
        """As a node of the cluster that the workers are."""

    def begin(
        self,
        server: Server,
        machine: Machine,
        cluster: ClusterParts | None,
        rotate: Callable[[], object] | None,
    ) -> object:
        """Note who does what the parent may order; `rotate` reads the certificate again."""


async def serve(
    settings: Settings,
    *,
    handle_signals: bool = True,
    seat: Seat | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a relay; started with its addresses, as `http://HOST:PORT`.

    With a seat it is a worker: it opens no addresses, and is told what to do by its parent instead
    of by signals. On SIGTERM or SIGINT it tells its peers, drains and returns; a second one raises
    `StoppedAtOnce`. When cancelled it ends at once, too.
    """
    sys.setswitchinterval(THREAD_TURN)
    raise_open_file_limit(settings.max_connections + settings.max_unauthenticated)
    certificate = load_certificate(settings)
    listeners: Sequence[TcpListener | HandedListener]
    if seat is None:
        listeners = await listen_as_set(settings, certificate)
    else:
        listeners = [seat.listen(settings.stall_timeout, certificate)]
        handle_signals = False
    try:
        metrics, activity = Metrics(), Activity()
        guard = Guard.build(settings, None if seat is None else seat.auths)
        budget = FrameBudget(settings.frame_buffer, settings.frame_buffer_per_user)
        renderer = make_renderer(settings, metrics)
        used = renderer if renderer.available else None
        hub = Hub(metrics, settings.offline_grace, budget, renderer=used)
        async with (
            open_tracer() as tracer,
            open_store(settings, exclusive=True) as store,
            _open_cluster(settings, store, hub, metrics, seat) as cluster,
            nullcontext(OperatorParts.build(settings, hub, store, _id_of(cluster))) as operators,
            open_auth(
                settings,
                metrics,
                guard,
                sessions=store.sessions,
                services=store.service_tokens,
                links=store.links,
                changes=store.changes,
                triggers=store.triggers,
                activity=activity,
                on_change=operators.note,
            ) as auth,
            open_storage(settings) as storage,
            nullcontext(
                ClipParts.build(
                    *(settings, hub, store.alert_pictures, metrics, activity),
                    storage=storage,
                    is_alone=cluster is None,
                )
            ) as clips,
            _read_picture_links(settings, store) as links,
            open_alerts(
                *(settings, store, hub, metrics, activity), links=links, tracer=tracer
            ) as alerts,
            trio.open_nursery() as nursery,
        ):
            store.database.on_failure = ThrottledWarning(
                "the database does not do what it is asked"
            ).warn
            hub.on_presence = alerts.stream_events.note
            audit = open_audit(settings, store.audit, _id_of(cluster))
            alarms = Alarms()
            supervisor = Supervisor(
                {
                    "alarms": alarms,
                    **({"renditions": renderer} if renderer.available else {}),
                    **auth.tasks,
                    **operators.tasks,
                    **alerts.tasks,
                    **clips.tasks,
                    **audit.tasks,
                    **({} if cluster is None else cluster.tasks),
                },
                optional=OPTIONAL_TASKS,
                timeout=PROGRESS_TIMEOUT
                + MAX_QUERIES_PER_STEP * (settings.connect_timeout + settings.statement_timeout),
            )
            server = _make_server(
                settings=settings,
                store=store,
                hub=hub,
                operators=operators,
                cluster=cluster,
                guard=guard,
                auth=auth,
                alerts=alerts,
                clips=clips,
                links=links,
                tracer=tracer,
                audit=audit.log,
                supervisor=supervisor,
                metrics=metrics,
                alarms=alarms,
                seat=seat,
                certificate=certificate,
            )
            if cluster is not None:
                server.on_drain = partial(nursery.start_soon, cluster.directory.drain)
            await nursery.start(hub.run)
            nursery.start_soon(store.database.keep_closing_unused)
            await nursery.start(supervisor.run)
            if handle_signals:
                await nursery.start(_drain_on_signal, server, settings.drain_timeout)
                await nursery.start(survive_restart_requests)
            if seat is None and (handle_signals or certificate is not None):
                await nursery.start(
                    handle_hangup, None if certificate is None else certificate.reload
                )
            with trio.move_on_after(SETTLE_TIMEOUT):
                await supervisor.settle()
            task_status.started([each.url for each in listeners if isinstance(each, TcpListener)])
            await server.run(listeners)
            if cluster is not None:
                await cluster.leave(settings.offline_grace)
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()


def _make_server(
    *,
    settings: Settings,
    store: Store,
    hub: Hub,
    operators: OperatorParts,
    cluster: ClusterParts | None,
    guard: Guard,
    auth: AuthParts,
    alerts: AlertParts,
    clips: ClipParts,
    links: PictureLinks,
    tracer: Tracer,
    audit: AuditLog,
    supervisor: Supervisor,
    metrics: Metrics,
    alarms: Alarms,
    seat: Seat | None,
    certificate: Certificate | None,
) -> Server:
    """The connections and the HTTP server, with what they work with."""
    sessions = SessionContext(
        hub,
        LocalClaims(operators.owners) if cluster is None else cluster.claims,
        alerts.intake,
        store.alerts,
        auth.session_watch,
        metrics,
        settings.lossless_buffer,
        guard.session_limits,
        layers_for_old_clients=settings.layers_for_old_clients == "on",
        directory=None if cluster is None else cluster.directory,
    )
    unread = Budget(settings.reply_buffer)

    def make_web() -> WebParts:
        from relay.web import setup  # noqa: PLC0415 (5 MiB that WebSockets do not need)

        return setup.make_web(
            *(settings, store, server, sessions),
            auth=auth,
            alerts=alerts,
            storage=clips.storage,
            links=links,
            guard=guard,
            supervisor=supervisor,
            audit=audit,
            tracer=tracer,
            alarms=alarms,
            unread=unread,
            cluster=None if cluster is None else cluster.reports,
            ask=None if seat is None else seat.ask,
        )

    web = LazyWeb(make_web)
    hsts_max_age = None if settings.tls_certificate is None else settings.hsts_max_age
    http = HttpServer(web, hsts_max_age, Budget(settings.send_buffer))
    timing = Timing(
        auth_timeout=settings.auth_timeout,
        ping_interval=settings.ping_interval,
        idle_timeout=settings.idle_timeout,
        max_message_size=settings.max_message_size,
    )
    budget = Budget(settings.receive_buffer)
    context = ConnectionContext(
        *(auth.login, sessions, timing, budget),
        *(http.answer, guard, audit, metrics),
        unread,
        alarms,
        # With TLS of relay's own, the state of that would have to go along.
        neighbours=None if seat is None or cluster is None or certificate else cluster.directory,
    )
    server = Server(context)
    operators.connect(auth.session_watch.registry.end_user, server.end)
    if seat is not None and (machine := web.parts.machine) is not None:
        rotate = None if certificate is None else certificate.reload
        seat.begin(server, machine, cluster, rotate)
    return server


@asynccontextmanager
async def _read_picture_links(settings: Settings, store: Store) -> AsyncIterator[PictureLinks]:
    """What signs links to what is kept with alerts."""
    base = (settings.public_url or settings.base_path or "").rstrip("/")
    yield PictureLinks(await store.alert_pictures.key(), base)


def _id_of(cluster: ClusterParts | None) -> str | None:
    return None if cluster is None else cluster.node_id


@asynccontextmanager
async def _open_cluster(
    settings: Settings, store: Store, hub: Hub, metrics: Metrics, seat: Seat | None
) -> AsyncIterator[ClusterParts | None]:
    """Be a node of a cluster, if that is set, or if there are other workers."""
    if seat is None and not settings.cluster_addresses:
        yield None
        return
    from relay.cluster.setup import (  # noqa: PLC0415 (10 MiB that one process does not need)
        ClusterTables,
        open_cluster,
    )

    tables = ClusterTables(store.live_streams, store.nodes, store.stream_notifications)
    if seat is not None:
        async with open_cluster(settings, tables, hub, metrics, place=seat.place) as parts:
            yield parts
    else:
        async with (
            open_place(settings) as (place, doors),
            open_cluster(settings, tables, hub, metrics, place=place, doors=doors) as parts,
        ):
            yield parts


@asynccontextmanager
async def open_place(
    settings: Settings,
) -> AsyncIterator[tuple[NodePlace, Sequence[ListeningSocket]]]:
    """Make room for the nodes of this machine, and listen for those of others; `ConfigError`."""
    from relay.cluster import setup as cluster_setup  # noqa: PLC0415 (see above)

    url = settings.database_url
    address = None if url is None else DatabaseAddress.parse(url, connect_timeout=1.0)
    host = None if address is None else address.host
    async with cluster_setup.open_place(settings, host) as opened:
        yield opened


async def listen_as_set(settings: Settings, certificate: Certificate | None) -> list[TcpListener]:
    """Listen where the settings say; `ConfigError`."""
    addresses = [(address.host, address.port) for address in settings.addresses]
    return await listen(addresses, stall_timeout=settings.stall_timeout, certificate=certificate)


@asynccontextmanager
async def open_shared_database(settings: Settings, processes: int) -> AsyncIterator[Settings]:
    """Open the database for several processes, and check it; the settings that each of them needs.

    `ConfigError`, `StoreUnavailable`. An embedded PostgreSQL ends with the block.
    """
    connections = OTHER_DATABASE_CONNECTIONS + processes * (
        settings.database_pool + LISTENING_DATABASE_CONNECTIONS
    )
    async with open_database_url(settings, exclusive=True, connections=connections) as url:
        shared = attrs.evolve(settings, database_url=url)
        async with open_store(shared):
            pass  # it has what relay needs
        yield shared


async def _drain_on_signal(
    server: Server, drain_timeout: float, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
        server.drain(drain_timeout)
        await anext(signals)
        raise StoppedAtOnce


def load_certificate(settings: Settings) -> Certificate | None:
    """The certificate of the settings; `ConfigError`. None without TLS."""
    chain, key = settings.tls_certificate, settings.tls_key
    if (chain is None) != (key is None):
        raise ConfigError("TLS needs both tls_certificate and tls_key")
    if chain is not None and key is not None:
        return Certificate(chain, key)
    if settings.dev_tls:
        folder = settings.data_folder / DEV_TLS_FOLDER
        try:
            certificate, authority = make_development_certificate(folder)
        except OSError as error:
            raise ConfigError(
                f"dev_tls cannot keep its certificate in {folder} ({error.strerror}): set data_dir"
                " to a folder that relay may write to"
            ) from None
        log.warning("TLS for development: devices must trust its authority", file=str(authority))
        return certificate
    return None
