"""Puts together what answers plain HTTP requests; loaded with the first of them, see `lazy.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import frozen
from starlette.types import ASGIApp

from relay.alerts.setup import AlertParts
from relay.audit.log import AuditLog
from relay.auth.setup import AuthParts
from relay.clips.made_clips import MadeClips
from relay.clips.mp4 import Mp4Maker
from relay.clips.storage import PictureStorage
from relay.concurrency.alarms import Alarms
from relay.concurrency.supervisor import Supervisor
from relay.connection.context import SessionContext
from relay.guard.guard import Guard
from relay.model.alerts.picture_link import PictureLinks
from relay.settings.settings import Settings
from relay.tracing.tracer import Tracer
from relay.transport.budget import Budget
from relay.web.api import Api, NewestAlerts
from relay.web.app import make_app
from relay.web.exposition import Exposition
from relay.web.machine import AskWorkers, Machine
from relay.web.operate import EndRequests, OperateApi, StreamOwnership, Users
from relay.web.pictures.alert_pictures import KeptPictures, KeptWithAlerts
from relay.web.pictures.setup import LinkStore, Pictures
from relay.web.push import PushApi, SubscriptionsOfUsers
from relay.web.reports import Reports

if TYPE_CHECKING:  # one process alone does not load it
    from relay.cluster.reports import ClusterReports


class CheckedDatabase(Protocol):
    """The database."""

    async def check(self) -> object:
        """`StoreUnavailable` when it does not answer."""


class WebTables(Protocol):
    """The tables that requests are answered from."""

    @property
    def database(self) -> CheckedDatabase: ...

    @property
    def sessions(self) -> Users: ...

    @property
    def links(self) -> LinkStore: ...

    @property
    def stream_ownership(self) -> StreamOwnership: ...

    @property
    def operator_requests(self) -> EndRequests: ...

    @property
    def alerts(self) -> NewestAlerts: ...

    @property
    def alert_pictures(self) -> KeptPictures: ...

    @property
    def push_subscriptions(self) -> SubscriptionsOfUsers: ...


class RunningServer(Protocol):
    """The server of the connections."""

    @property
    def draining(self) -> bool:
        """Whether it takes no new ones."""

    def end(self, number: int) -> bool:
        """End a connection by its number; returns whether there is one."""


@frozen(eq=False, repr=False)
class WebParts:
    """What `make_web` gives."""

    application: ASGIApp
    machine: Machine | None
    """What all worker processes say about themselves; None where there is one process."""


def make_web(
    settings: Settings,
    tables: WebTables,
    server: RunningServer,
    sessions: SessionContext,
    *,
    auth: AuthParts,
    alerts: AlertParts,
    storage: PictureStorage,
    links: PictureLinks,
    guard: Guard,
    supervisor: Supervisor,
    audit: AuditLog,
    tracer: Tracer,
    alarms: Alarms,
    unread: Budget,
    cluster: ClusterReports | None,
    ask: AskWorkers | None,
) -> WebParts:
    """The application. `unread` counts what clients have not read; `ask` asks all workers of the
    machine, if there are several."""
    hub, metrics = sessions.hub, sessions.metrics
    api = Api(
        *(auth.login, hub, sessions.lists, alerts.intake, tables.alerts, sessions.limits, audit),
        *(metrics, auth.revocations.revoke, tracer),
    )
    api.cluster = cluster
    exposition = Exposition(metrics, hub, supervisor, audit, unread, cluster)
    reports = Reports(
        *(metrics, hub, supervisor, guard, settings.profile),
        check_database=tables.database.check,
        is_draining=lambda: server.draining,
    )
    machine = None
    if ask is not None:
        machine = api.machine = Machine(
            reports,
            exposition,
            figures=api.encode_figures,
            revoke=auth.revocations.revoke,
            end=server.end,
            ask=ask,
        )
    pictures = Pictures.build(
        *(api, sessions, settings.idle_timeout, tables.links, auth.link_login),
        kept=KeptWithAlerts(
            *(tables.alert_pictures, storage, links, Mp4Maker.find(), MadeClips(alarms))
        ),
    )
    operate = OperateApi(
        *(api, tables.stream_ownership, tables.sessions, tables.operator_requests, audit),
        end_connection=server.end,
    )
    application = make_app(
        *(reports, exposition, api, operate, machine),
        pictures=pictures,
        push=PushApi(api, tables.push_subscriptions, alerts.push),
        frame_ancestors=settings.frame_ancestors,
    )
    return WebParts(application, machine)
