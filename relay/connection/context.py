"""The parts of the relay that connections and sessions use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import field, frozen

from relay.audit.log import AuditLog
from relay.auth.login import Login
from relay.auth.registry import WatchedConnection
from relay.concurrency.alarms import Alarms
from relay.connection.http_request import HttpRequest
from relay.guard.guard import Guard, SessionLimits
from relay.hub.hub import Hub
from relay.hub.remote import Epoch
from relay.hub.stream_page import AllStreams, StreamLists
from relay.metrics import Metrics
from relay.model.access.identity import Identity
from relay.model.alerts.alert import History, NewAlert, StoredAlert
from relay.model.cluster import ClaimOutcome, ClaimRequest
from relay.transport.budget import Budget


class Watch(Protocol):
    """Tells live sessions what changes about their identity."""

    def enter(self, live: WatchedConnection) -> object:
        """Watch a session, or go on watching it under a new identity."""

    def leave(self, live: WatchedConnection) -> object: ...

    async def reread(self, live: WatchedConnection) -> object:
        """Read the session again at once."""


@frozen
class Claimed:
    """Whether a connection may produce a stream."""

    owner_id: str
    """The first user who registered the id, until an operator decides otherwise."""
    outcome: ClaimOutcome
    epoch: Epoch | None = None
    """In which it begins or goes on, where there are other nodes."""
    before: str | None = None
    """The node that had it, if it is another one."""


class StreamClaims(Protocol):
    """Who may produce which stream."""

    async def claim(self, request: ClaimRequest) -> Claimed:
        """The answer to a connection that registers a stream, which belongs to its user from now on
        if it had no owner; `StoreUnavailable`, `StoreRejects`."""

    def settle(self, stream_id: str) -> object:
        """Note that the answer has been made use of, or will not be."""


class StreamDirectory(AllStreams, Protocol):
    """The live streams of all nodes."""

    async def find(self, stream_id: str) -> object:
        """Let the hub know of a stream that may be live on another node; takes a moment at most."""


class AlertStore(Protocol):
    """Stores alerts, as `relay.alerts.intake` does."""

    async def accept(self, alert: NewAlert) -> StoredAlert | None:
        """The alert as committed; None when its sender may not send it; `StoreUnavailable`,
        `AlertsFull`."""


class AlertHistory(Protocol):
    """The stored alerts, the earliest first."""

    async def history(
        self,
        reader: Identity,
        *,
        stream_id: str | None,
        after: int | None,
        last: int | None,
        limit: int,
    ) -> History | None:
        """A page of the alerts that a reader may see: those after the alert `after`, or the `last`
        newest. None when `after` is no alert that the reader may see; `StoreUnavailable`."""


class Neighbours(Protocol):
    """The other workers of this machine."""

    def is_near(self, node_id: str) -> bool:
        """Whether a connection could go to a node now, since that is another worker of this
        machine, or may be."""


@frozen(eq=False, repr=False)
class SessionContext:
    """What sessions work with, and the limits on each."""

    hub: Hub
    claims: StreamClaims
    alerts: AlertStore
    history: AlertHistory
    watch: Watch
    metrics: Metrics
    lossless_bytes: int
    """Bytes that may wait for a consumer that must not miss a frame."""
    limits: SessionLimits = field(factory=SessionLimits)
    layers_for_old_clients: bool = True
    """Whether a consumer that says nothing of layers gets smaller ones on a slow link."""
    directory: StreamDirectory | None = None
    """None where there are no other nodes."""

    @property
    def lists(self) -> StreamLists:
        """Lists the live streams of all nodes."""
        return StreamLists(self.hub, self.directory)


@frozen
class Timing:
    """Seconds and bytes that the settings give."""

    auth_timeout: float
    ping_interval: float
    idle_timeout: float
    max_message_size: int


@frozen(eq=False, repr=False)
class ConnectionContext:
    """What a new connection needs of the relay."""

    login: Login
    sessions: SessionContext
    timing: Timing
    budget: Budget
    """Bounds the incomplete messages of all connections."""
    serve_http: Callable[[HttpRequest], Awaitable[None]]
    """Answers one plain HTTP request, whose head the stream still has."""
    guard: Guard
    audit: AuditLog
    metrics: Metrics
    unread: Budget
    """Bounds the replies and alerts that all clients together have not read."""
    alarms: Alarms
    """Run by somebody else."""
    neighbours: Neighbours | None = None
    """None where there are no other workers."""
