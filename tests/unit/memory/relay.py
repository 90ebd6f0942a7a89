"""A whole relay over links in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field
from wsproto import events

from relay.audit.log import AuditLog
from relay.auth.consistent_verifier import ConsistentVerifier
from relay.auth.external_users import ExternalUsers
from relay.auth.login import Login
from relay.auth.registry import Registry
from relay.auth.session_watch import SessionWatch
from relay.auth.verifier import Verifier
from relay.concurrency.alarms import Alarms
from relay.connection.connection import Connection
from relay.connection.context import (
    ConnectionContext,
    Neighbours,
    SessionContext,
    StreamClaims,
    StreamDirectory,
    Timing,
)
from relay.connection.http_request import HttpRequest
from relay.connection.local_claims import LocalClaims
from relay.guard.guard import Guard
from relay.hub.hub import Hub
from relay.metrics import Metrics
from relay.operators.owner_watch import OwnerWatch
from relay.transport.budget import Budget
from relay.transport.stream import FrameStream
from relay.web.http import HttpServer
from tests.unit.memory.alerts import MemoryAlertStore, MemoryStreamOwners
from tests.unit.memory.audit import MemoryAuditStore
from tests.unit.memory.client import Client
from tests.unit.memory.link import SIZE, MemoryLink, link_pair
from tests.unit.memory.verifier import ANN, MemoryChangeFeed, MemoryVerifier


@define(eq=False)
class MemoryRelay:
    """The real connection code, guard and hub. Links, tables and tokens are in memory."""

    nursery: trio.Nursery
    verifier: MemoryVerifier = field(factory=MemoryVerifier)
    owners: MemoryStreamOwners = field(factory=MemoryStreamOwners)
    metrics: Metrics = field(factory=Metrics)
    timing: Timing = field(factory=lambda: Timing(10.0, 25.0, 120.0, 1 << 20))
    budget: Budget = field(factory=lambda: Budget(2 << 20))
    unread: Budget = field(factory=lambda: Budget(64 << 20))
    change_feed: MemoryChangeFeed = field(factory=MemoryChangeFeed)
    guard: Guard = field(factory=Guard)
    """Limits nothing, unless a test puts another here."""
    hub: Hub = field(init=False)
    alerts: MemoryAlertStore = field(init=False)
    external_users: ExternalUsers = field(init=False)
    watch: SessionWatch = field(init=False)
    owner_watch: OwnerWatch = field(init=False)
    connections: list[Connection] = field(factory=list)
    http_served: int = 0
    http: HttpServer | None = None
    """Answers plain requests, if a test puts one here."""
    layers_for_old_clients: bool = True
    audit_store: MemoryAuditStore = field(factory=MemoryAuditStore)
    audit: AuditLog = field(init=False)
    alarms: Alarms = field(factory=Alarms)
    claims: StreamClaims | None = None
    directory: StreamDirectory | None = None
    """As `claims`, of a node of a cluster."""
    neighbours: Neighbours | None = None
    """Other workers, if a test puts them here."""

    def __attrs_post_init__(self) -> None:
        self.hub = Hub(self.metrics, 5.0)
        self.alerts = MemoryAlertStore(self.owners, self.hub)
        self.audit = AuditLog(self.audit_store)
        self.external_users = ExternalUsers(self.verifier)
        self.owner_watch = OwnerWatch(self.hub, self.owners)
        self.watch = SessionWatch(
            Registry(),
            self.verifier,
            self.verifier,
            self.change_feed,
            self.change_feed,
            poll_interval=0.5,
            on_change=self.owner_watch.note,
        )

    async def _serve_http(self, request: HttpRequest) -> None:
        self.http_served += 1
        if self.http is None:
            await request.peer.stream.aclose()
        else:
            await self.http.answer(request)

    def session_context(self) -> SessionContext:
        """What sessions work with."""
        return SessionContext(
            self.hub,
            self.claims or LocalClaims(self.owner_watch),
            self.alerts,
            self.alerts,
            self.watch,
            self.metrics,
            lossless_bytes=64 * 1024,
            limits=self.guard.session_limits,
            layers_for_old_clients=self.layers_for_old_clients,
            directory=self.directory,
        )

    def make_login(self, verifier: Verifier | None = None) -> Login:
        """What verifies the tokens that `verifier` knows, within the limits of the guard."""
        consistent = ConsistentVerifier(
            verifier or self.verifier,
            self.external_users.complete,
            self.watch.registry,
            self.guard.round_limiter.wait,
        )
        return Login(
            consistent,
            self.guard.failed_auths,
            self.guard.renewal_rate,
            self.metrics,
            timeout=self.timing.auth_timeout,
        )

    def connection_context(self) -> ConnectionContext:
        """What connections need."""
        return ConnectionContext(
            *(self.make_login(), self.session_context(), self.timing, self.budget),
            *(self._serve_http, self.guard, self.audit, self.metrics),
            self.unread,
            self.alarms,
            self.neighbours,
        )

    def accept(self, link: MemoryLink, *, stall_timeout: float = 120.0) -> Connection:
        """Serve a link as a new connection."""
        context = self.connection_context()
        stream = FrameStream(link, stall_timeout)
        connection = Connection(len(self.connections) + 1, stream, context)
        self.connections.append(connection)
        deadline = trio.current_time() + self.timing.auth_timeout
        self.nursery.start_soon(connection.run, deadline)
        return connection

    def connect(
        self, capacity: int = SIZE, *, msgpack: bool = False, host: str = "192.0.2.1"
    ) -> Client:
        """A client whose link was just accepted."""
        server_end, client_end = link_pair(capacity)
        server_end.peer = f"{host}:50000"
        self.accept(server_end)
        return Client(client_end, msgpack=msgpack)

    async def open(self, capacity: int = SIZE, **options: Any) -> Client:
        """A client with an open WebSocket."""
        client = self.connect(capacity, **options)
        assert isinstance(await client.upgrade(), events.AcceptConnection)
        return client

    async def login(self, token: str = ANN, capacity: int = SIZE, **options: Any) -> Client:
        """A client that is authenticated."""
        client = await self.open(capacity, **options)
        reply = await client.ask({"type": "auth", "token": token})
        assert reply["type"] == "success", reply
        return client

    async def phone(
        self, stream_id: str = "front-door", token: str = ANN, *, msgpack: bool = False
    ) -> Client:
        """A client that has registered a stream, and has read all it was told."""
        client = await self.login(token, msgpack=msgpack)
        reply = await client.ask({"type": "register", "streamId": stream_id})
        assert reply["type"] == "success", reply
        await client.receive_type("status")
        return client

    async def viewer(
        self,
        stream_id: str = "front-door",
        token: str = ANN,
        capacity: int = SIZE,
        *,
        msgpack: bool = False,
        **options: Any,
    ) -> Client:
        """A client that has subscribed to a stream, and has read the reply."""
        client = await self.login(token, capacity, msgpack=msgpack)
        consumes = ["video-frame", "alert"]
        request = {"type": "subscribe", "streamId": stream_id, "consumes": consumes, **options}
        reply = await client.ask(request)
        assert reply["type"] == "success", reply
        await client.receive_type("status")
        return client


@asynccontextmanager
async def open_relay() -> AsyncIterator[MemoryRelay]:
    """A relay that ends with the block, and all its connections with it."""
    async with trio.open_nursery() as services:
        async with trio.open_nursery() as connections:
            relay = MemoryRelay(connections)
            await services.start(relay.hub.run)
            await services.start(relay.alarms.run)
            await services.start(relay.owner_watch.run)
            await services.start(relay.watch.run)
            await services.start(relay.external_users.batcher.run)
            yield relay
            connections.cancel_scope.cancel()
        services.cancel_scope.cancel()
