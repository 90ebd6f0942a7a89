"""A relay without sockets: memory links, a client on wsproto, and a verifier that knows a few
tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import jsonschema
import msgpack
import trio
import wsproto
from attrs import define, evolve, field
from wsproto import events

from relay import policy
from relay.alerts.event import alert_event
from relay.audit import AuditLog
from relay.auth.doubt import CertainVerifier
from relay.auth.registry import Registry
from relay.auth.vouched import Vouched
from relay.auth.watch import SessionWatch
from relay.connection import Connection, Door, Timing
from relay.errors import StoreUnavailable
from relay.guard.address import ClientAddress
from relay.guard.guard import Guard
from relay.hub.hub import Hub
from relay.metrics import Metrics
from relay.model import Identity, NewAlert, Service, StoredAlert, User
from relay.postgres.alerts import History
from relay.postgres.audit import AuditEvent
from relay.postgres.changes import Change
from relay.protocol.schema import message_schema
from relay.services import Services
from relay.transport.budget import Budget
from relay.transport.link import UNSENT_LOW
from relay.transport.stream import FrameStream

ANN, BOB, SENTRY = "token-of-ann", "token-of-bob", "token-of-sentry"
SIZE = 64 * 1024
SERVER_MESSAGE = jsonschema.Draft202012Validator(
    {**message_schema(), "anyOf": [{"$ref": "#/$defs/ServerMessage"}]}
)
"""What every message of the server has to be."""


def user(name: str) -> User:
    return User(name, f"session-of-{name}", datetime.now(UTC) + timedelta(days=1))


@define(eq=False)
class Pipe:
    """Bytes one way, as many at once as a kernel's buffers would hold."""

    capacity: int = SIZE
    content: bytearray = field(factory=bytearray)
    ended: bool = False
    broken: bool = False
    changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def put(self, data: bytes | bytearray | memoryview) -> int:
        if self.broken or self.ended:
            raise BrokenPipeError
        room = self.capacity - len(self.content)
        if room <= 0:
            raise BlockingIOError
        self.content += data[:room]
        self.changed.unpark_all()
        return min(room, len(data))

    def get(self, most: int) -> bytes:
        if self.broken:
            raise ConnectionResetError
        if not self.content and not self.ended:
            raise BlockingIOError
        data = bytes(self.content[:most])
        del self.content[:most]
        self.changed.unpark_all()
        return data

    async def wait(self, ready: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not (ready() or self.ended or self.broken):
            await self.changed.park()

    def end(self, *, broken: bool = False) -> None:
        self.ended, self.broken = True, self.broken or broken
        self.changed.unpark_all()


@define(eq=False)
class MemoryLink:
    """One end of two pipes, as a `Link`."""

    incoming: Pipe
    outgoing: Pipe
    peer: str = "192.0.2.1:50000"
    knows_unsent: bool = True
    closed: bool = False
    was_reset: bool = False

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        if self.closed:
            raise OSError
        return self.outgoing.put(data)

    def send_if_low(self, data: bytes | bytearray | memoryview) -> int:
        unsent = self.unsent()
        if unsent is None or unsent >= UNSENT_LOW:
            raise BlockingIOError
        return self.send(data)

    def recv_into(self, buffer: memoryview) -> int:
        if self.closed:
            raise OSError
        data = self.incoming.get(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def unsent(self) -> int | None:
        if self.closed:
            raise OSError
        return len(self.outgoing.content) if self.knows_unsent else None

    async def wait_readable(self) -> None:
        await self.incoming.wait(lambda: self.closed or bool(self.incoming.content))
        if self.closed:
            raise trio.ClosedResourceError

    async def wait_writable(self) -> None:
        pipe = self.outgoing
        await pipe.wait(lambda: self.closed or len(pipe.content) < pipe.capacity)
        if self.closed:
            raise trio.ClosedResourceError

    def close(self) -> None:
        self.closed = True
        self.outgoing.end()
        self.incoming.changed.unpark_all()

    def reset(self) -> None:
        self.was_reset = True
        self.outgoing.end(broken=True)
        self.close()


def link_pair(capacity: int = SIZE) -> tuple[MemoryLink, MemoryLink]:
    """The server's end and the client's."""
    up, down = Pipe(SIZE), Pipe(capacity)
    return MemoryLink(up, down), MemoryLink(down, up)


class Closed(Exception):
    """The server ended the WebSocket; `args` are the code and the reason."""


@define(eq=False)
class Client:
    """A WebSocket client in the hands of a test."""

    link: MemoryLink
    protocol: wsproto.WSConnection = field(
        factory=lambda: wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    )
    msgpack: bool = False
    _content: str | bytes | None = None

    async def send_bytes(self, data: bytes) -> None:
        while data:
            await self.link.wait_writable()
            data = data[self.link.send(data) :]

    async def upgrade(self, target: str = "/streams/register", **options: Any) -> Any:
        """Ask for a WebSocket; returns the event that answers."""
        if self.msgpack:
            options.setdefault("subprotocols", ["relay.v1.msgpack"])
        request = events.Request(host="relay", target=target, **options)
        await self.send_bytes(self.protocol.send(request))
        return await self.event()

    async def event(self) -> Any:
        """The next event that is not a ping, which is answered."""
        while True:
            for event in self.protocol.events():
                if isinstance(event, events.Ping):
                    await self.send_bytes(self.protocol.send(event.response()))
                elif not isinstance(event, events.Pong):
                    return event
            await self.link.wait_readable()
            buffer = bytearray(SIZE)
            count = self.link.recv_into(memoryview(buffer))
            if self.protocol.state is wsproto.connection.ConnectionState.CLOSED:
                raise EOFError
            self.protocol.receive_data(bytes(buffer[:count]) or None)

    async def send(self, message: dict[str, Any] | str | bytes) -> None:
        if isinstance(message, dict):
            message = msgpack.packb(message) if self.msgpack else json.dumps(message)
        event: events.Event = (
            events.TextMessage(data=message)
            if isinstance(message, str)
            else events.BytesMessage(data=message)
        )
        await self.send_bytes(self.protocol.send(event))

    async def receive(self) -> dict[str, Any]:
        """The next message; `Closed` when a Close comes instead."""
        while True:
            event = await self.event()
            if isinstance(event, events.CloseConnection):
                raise Closed(event.code, event.reason)
            kind = events.BytesMessage if self.msgpack else events.TextMessage
            assert isinstance(event, kind), event
            data = event.data if isinstance(event.data, str) else bytes(event.data)
            self._content = data if self._content is None else self._content + data  # type: ignore[operator]
            if event.message_finished:
                content, self._content = self._content, None
                read = msgpack.unpackb if self.msgpack else json.loads
                message: dict[str, Any] = read(content)
                if not self.msgpack:
                    SERVER_MESSAGE.validate(message)
                return message

    async def receive_type(self, kind: str) -> dict[str, Any]:
        """The next message of a type; others are passed over."""
        while (message := await self.receive())["type"] != kind:
            pass
        return message

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request; returns the `success` or `error` that answers."""
        await self.send(message)
        while (reply := await self.receive())["type"] not in ("success", "error"):
            pass
        return reply

    async def closing(self) -> tuple[int, str]:
        """Wait for the Close; returns its code and reason."""
        try:
            while True:
                await self.receive()
        except Closed as closed:
            code, reason = closed.args
            return int(code), reason

    async def hear_end(self) -> tuple[dict[str, Any], tuple[int, str]]:
        """The last message before the Close, and the Close."""
        last: dict[str, Any] = {}
        try:
            while True:
                last = await self.receive()
        except Closed as closed:
            code, reason = closed.args
            return last, (int(code), reason)

    async def has_ended(self) -> None:
        """Wait until the server's end of the link is closed."""
        pipe = self.link.incoming
        while not pipe.ended:
            pipe.content.clear()
            await pipe.wait(lambda: bool(pipe.content))


@define(eq=False)
class Tokens:
    """A verifier that can be told to be late, or away. What it answers late it has read early."""

    identities: dict[str, Identity] = field(
        factory=lambda: {
            ANN: user("ann"),
            BOB: user("bob"),
            SENTRY: Service("sentry", frozenset({"*"}), alerts=True, operate=False),
        }
    )
    delay: float = 0.0
    away: bool = False
    broken: bool = False
    clock: Callable[[], datetime] | None = None
    """The database's."""
    readings: int = 0
    grants: dict[str, frozenset[str]] = field(factory=dict)
    """To those whom an issuer vouches for."""
    banned: set[str] = field(factory=set)
    reading_delay: float = 0.0

    async def verify(self, token: str) -> Identity | None:
        identity = self.identities.get(token)
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        if self.broken:
            raise RuntimeError("a bug in verification")
        return None if identity is None else self._at_this_moment(identity)

    def _at_this_moment(self, identity: Identity) -> Identity:
        if self.clock is None or not isinstance(identity, User):
            return identity
        left = (identity.expires_at - self.clock()).total_seconds()
        return evolve(identity, remaining=left)

    async def read(self, keys: Sequence[Any]) -> dict[Any, Any]:
        """The sessions of these ids, and the services of these hashes, that are left."""
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        self.readings += 1
        now: dict[Any, Identity] = {
            each.session_id if isinstance(each, User) else each.token_hash: each
            for each in map(self._at_this_moment, self.identities.values())
        }
        await trio.sleep(self.reading_delay)
        return {key: now[key] for key in keys if key in now}

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        return {
            user_id: self.grants.get(user_id, frozenset())
            for user_id in user_ids
            if user_id not in self.banned
        }


@define(eq=False)
class Rumours:
    """Notifications of changes, and the connection that hears them."""

    installed_: bool = True
    away: bool = False
    _put: trio.MemorySendChannel[Change | None] = field(init=False)
    _get: trio.MemoryReceiveChannel[Change | None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(1000)

    def tell(self, *changes: Change) -> None:
        for change in changes:
            self._put.send_nowait(change)

    def lose(self) -> None:
        """Lose the connection, and what is told until there is another."""
        self.away = True
        self._put.send_nowait(None)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Rumours]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        yield self

    async def hear(self) -> list[Change]:
        change = await self._get.receive()
        if change is None:
            raise StoreUnavailable
        return [change]

    async def hears(self) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def installed(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.installed_


@define(eq=False)
class Owners:
    """The owners of streams, in memory."""

    owners: dict[str, str] = field(factory=dict)
    delay: float = 0.0
    away: bool = False
    on_answer: Callable[[], object] = field(default=lambda: None)
    """Called in the moment of the answer."""

    async def claim(self, stream_id: str, user_id: str) -> str:
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        self.on_answer()
        return self.owners.setdefault(stream_id, user_id)


@define(eq=False)
class Alerts:
    """Takes alerts and delivers them, as the intake, the table and the dispatch do together."""

    owners: Owners
    hub: Hub
    away: bool = False
    delay: float = 0.0
    answer_delay: float = 0.0
    """Between reading the history and answering."""
    stored: list[StoredAlert] = field(factory=list)
    lagging: bool = False
    """Whether nothing is delivered before `catch_up`, as with a dispatch that lags behind."""
    _position: int = 0
    _known: dict[tuple[str, str, str], StoredAlert] = field(factory=dict)
    """What came with a key: by stream, sender and key."""

    def catch_up(self) -> None:
        """Deliver what is stored and was not delivered, in its order."""
        for alert in self.stored[self._position :]:
            self._position += 1
            self.hub.deliver(alert_event(alert), alert.owner_id)

    async def accept(self, alert: NewAlert) -> StoredAlert | None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        owner = self.owners.owners.get(alert.stream_id)
        if (
            owner is None
            or alert.by is None
            or not policy.may_alert(alert.by, alert.stream_id, owner)
        ):
            return None
        key = (alert.stream_id, alert.sender, alert.alert_key or "")
        if key in self._known:
            return self._known[key]
        stored = StoredAlert(
            len(self.stored) + 1,
            alert.stream_id,
            owner,
            alert.sender,
            alert.severity,
            alert.message,
            alert.timestamp,
            alert.metadata,
        )
        self.stored.append(stored)
        if alert.alert_key is not None:
            self._known[key] = stored
        if not self.lagging:
            self.catch_up()
        return stored

    async def history(
        self,
        reader: Identity,
        *,
        stream_id: str | None,
        after: int | None,
        last: int | None,
        limit: int,
    ) -> History | None:
        """As the table does it."""
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        alerts = [
            alert
            for alert in self.stored
            if stream_id in (None, alert.stream_id)
            and policy.may_watch(reader, alert.stream_id, alert.owner_id)
        ]
        await trio.sleep(self.answer_delay)
        if after and after not in [alert.alert_id for alert in alerts]:
            return None
        alerts = [alert for alert in alerts if alert.alert_id > (after or 0)]
        if last is not None:
            return History(alerts[-last:], more=False)
        return History(alerts[:limit], more=len(alerts) > limit)


@define(eq=False)
class AuditRows:
    """The table of the audit, in memory."""

    rows: list[AuditEvent] = field(factory=list)
    on_write: Callable[[Sequence[AuditEvent]], object] = field(default=lambda _events: None)
    delay: float = 0.0
    away: bool = False
    deaf: bool = False
    """It writes, and the answer is lost."""
    broken: bool = False
    old: int = 0
    pruned: list[tuple[timedelta, int]] = field(factory=list)

    async def write(self, events: Sequence[AuditEvent]) -> None:
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        if self.broken:
            raise RuntimeError("a bug in the audit")
        self.on_write(events)
        written = {row.event_id for row in self.rows}
        self.rows += [event for event in events if event.event_id not in written]
        if self.deaf:
            raise StoreUnavailable

    async def prune(self, older_than: timedelta, *, most: int) -> int:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        gone = min(most, self.old)
        self.old -= gone
        self.pruned.append((older_than, gone))
        return gone


@define(eq=False)
class Relay:
    """The real connection code with all that it leans on in memory."""

    nursery: trio.Nursery
    tokens: Tokens = field(factory=Tokens)
    owners: Owners = field(factory=Owners)
    metrics: Metrics = field(factory=Metrics)
    timing: Timing = field(factory=lambda: Timing(10.0, 25.0, 120.0, 1 << 20))
    budget: Budget = field(factory=lambda: Budget(2 << 20))
    rumours: Rumours = field(factory=Rumours)
    guard: Guard = field(factory=Guard)
    """Limits nothing, unless a test puts another here."""
    limits: dict[str, Any] = field(factory=dict)
    """More of `Services`."""
    hub: Hub = field(init=False)
    alerts: Alerts = field(init=False)
    vouched: Vouched = field(init=False)
    watch: SessionWatch = field(init=False)
    connections: list[Connection] = field(factory=list)
    http_served: int = 0
    audit_rows: AuditRows = field(factory=AuditRows)
    audit: AuditLog = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.hub = Hub(self.metrics, 5.0)
        self.alerts = Alerts(self.owners, self.hub)
        self.audit = AuditLog(self.audit_rows)
        self.vouched = Vouched(self.tokens)
        self.watch = SessionWatch(
            Registry(), self.tokens, self.tokens, self.rumours, self.rumours, poll_interval=0.5
        )

    async def _serve_http(self, stream: FrameStream, _address: ClientAddress) -> None:
        self.http_served += 1
        await stream.aclose()

    def accept(self, link: MemoryLink, *, stall_timeout: float = 120.0) -> Connection:
        """Serve a link as a new connection."""
        services = Services(
            self.hub,
            cast("Any", self.owners),
            cast("Any", self.alerts),
            cast("Any", self.alerts),
            self.metrics,
            lossless_bytes=64 * 1024,
            **self.limits,
        )
        verifier = CertainVerifier(
            *(self.tokens, self.vouched.complete, self.watch.registry, self.guard.turnstile.turn)
        )
        door = Door(
            *(verifier, services, self.timing, self.budget),
            *(self._serve_http, self.watch, self.guard, self.audit),
        )
        stream = FrameStream(link, stall_timeout)
        connection = Connection(len(self.connections) + 1, stream, door)
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
        **terms: Any,
    ) -> Client:
        """A client that has subscribed to a stream, and has read the reply."""
        client = await self.login(token, capacity, msgpack=msgpack)
        consumes = ["video-frame", "alert"]
        request = {"type": "subscribe", "streamId": stream_id, "consumes": consumes, **terms}
        reply = await client.ask(request)
        assert reply["type"] == "success", reply
        await client.receive_type("status")
        return client


@asynccontextmanager
async def open_relay() -> AsyncIterator[Relay]:
    """A relay that ends with the block, and all its connections with it."""
    async with trio.open_nursery() as services, trio.open_nursery() as connections:
        relay = Relay(connections)
        await services.start(relay.hub.run)
        await services.start(relay.watch.run)
        await services.start(relay.vouched.service.run)
        yield relay
        services.cancel_scope.cancel()
