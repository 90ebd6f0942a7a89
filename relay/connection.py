"""One connection's life: upgrade, authentication under one deadline, session, goodbye. Floor 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

import structlog
import trio
from attrs import define, field, frozen

from relay.admission import Admission, Refused
from relay.audit import AuditLog, unless_token, who
from relay.auth.registry import Live
from relay.authentication import FIRST_MESSAGE_SIZE, Authentication, Verifier
from relay.closing import Ending
from relay.expiry import Expiry
from relay.guard.address import ClientAddress
from relay.guard.guard import Guard
from relay.inbox import Inbox
from relay.metrics import Limit
from relay.model import Identity, User, milliseconds
from relay.protocol.codec import JSON, Codec
from relay.protocol.messages import Error, Notice, RequestId, ServerMessage
from relay.services import Services
from relay.session import Session
from relay.transport import wire
from relay.transport.budget import Budget
from relay.transport.mailbox import Mailbox
from relay.transport.outlet import Outlet
from relay.transport.proxy import NoProxyHeader
from relay.transport.stream import FrameStream, HeadTooBig
from relay.transport.websocket import close_frame, keep_alive, read_handshake

GOODBYE, ANSWER = 2.0, 1.0
"""Seconds in which the peer can take our goodbye, and of these in which it can answer."""

UNFORCED = {Ending.CLIENT_CLOSED, Ending.CLIENT_GONE, Ending.HTTP_ANSWERED, Ending.SHUTDOWN}
"""Endings that the relay did not bring upon this peer."""

GONE = (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)
"""What reading and writing raise when the peer is gone."""

log = structlog.get_logger()


class Watch(Protocol):
    """Tells live connections what changes about their identity."""

    def enter(self, live: Live) -> object:
        """Begin with a connection, or go on with its other identity."""

    def leave(self, live: Live) -> object: ...

    async def look(self, live: Live) -> object:
        """See at once whether something has changed."""


@frozen
class Timing:
    """Seconds and bytes that the settings give."""

    auth_timeout: float
    ping_interval: float
    idle_timeout: float
    max_message_size: int


@frozen
class Door:
    """What a new connection needs of the relay."""

    verifier: Verifier
    services: Services
    timing: Timing
    budget: Budget
    """For what all connections together have half received."""
    serve_http: Callable[[FrameStream, ClientAddress], Awaitable[None]]
    """Answers one plain HTTP request, whose head the stream still has."""
    watch: Watch
    guard: Guard
    audit: AuditLog


@define(eq=False)
class Connection:
    """A peer that was accepted, from its first byte to its last."""

    accepted: int
    """Its number in the order of being accepted."""
    _stream: FrameStream
    _door: Door
    ending: Ending | None = None
    _ended_by: RequestId = None
    _retry_after: int | None = None
    codec: Codec = JSON
    address: ClientAddress = field(init=False)
    """The client's, as far as it is known."""
    outlet: Outlet = field(init=False)
    _mailbox: Mailbox = field(init=False)
    _session: Session | None = None
    _expiry: Expiry = field(init=False)
    _admission: Admission = field(init=False)
    _authentication: Authentication = field(init=False)
    _inbox: Inbox = field(init=False)
    _upgraded: bool = False
    _in_the_way: bool = False
    """Whether there is no time for the peer to answer our goodbye."""
    _authenticated: trio.Event = field(factory=trio.Event)
    _life: trio.CancelScope = field(factory=trio.CancelScope)
    _nursery: trio.Nursery = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outlet = self._stream.outlet
        self._mailbox = Mailbox(self.outlet)
        self._expiry = Expiry(lambda: self._door.watch.look(self), self._announce_expiry)
        self.address = ClientAddress.of_peer(self._stream.link.peer)
        door, metrics = self._door, self._door.services.metrics
        self._admission = Admission(self._stream, door.guard, metrics, self)
        self._authentication = Authentication(
            self, door.verifier, door.guard, metrics, door.timing.auth_timeout
        )
        self._inbox = Inbox(self, self._authentication, metrics)

    async def run(self, deadline: float) -> None:
        """Serve the peer to the end, which is logged and counted. Never raises.

        Wants a task of its own: whatever that and its children log carries the connection's number.
        The deadline, by Trio's clock, is for its authentication and all that comes before.
        """
        self._stream.on_end = self._lost
        self._door.guard.crowd.enter(self, self.address.key)
        structlog.contextvars.bind_contextvars(connection=self.accepted)
        try:
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await self._live(nursery, deadline)
                    nursery.cancel_scope.cancel()
            except* Exception:  # the one boundary: a bug ends its own connection and no other
                self.end(Ending.INTERNAL_ERROR)
                log.exception("connection failed")
            finally:
                self._leave()
            await self._say_goodbye()
        finally:
            self._door.guard.crowd.leave(self)
            await self._stream.aclose()
            self._take_apart()

    def end(
        self, ending: Ending, *, request_id: RequestId = None, retry_after: int | None = None
    ) -> None:
        """End the connection; the first reason given is the one that counts.

        The request, if one caused it, is named in the goodbye, and the milliseconds to wait, if
        they differ from what the ending says.
        """
        if self.ending is None:
            self.ending, self._ended_by, self._retry_after = ending, request_id, retry_after
            self._life.cancel()

    def crowded_out(self, limit: Limit) -> None:
        """There are too many connections, and this one has to go."""
        self._door.services.metrics.limits_hit[limit] += 1
        self._in_the_way = self._session is None
        if self.ending is None:
            self.end(Ending.TOO_MANY_CONNECTIONS)
        else:
            self._stream.abort()  # its goodbye takes too long

    def tell(self, message: ServerMessage) -> None:
        """Send a message, ahead of video, unless the connection has ended; a peer that lets too
        many wait is too slow. Never waits."""
        if self.ending is None and not self._mailbox.post(self._encode(message)):
            self.end(Ending.TOO_SLOW)

    def start_soon(self, task: Callable[[], Awaitable[object]]) -> None:
        self._nursery.start_soon(task)

    def restart(self, retry_after: int) -> None:
        """Ask the peer to come back after so many milliseconds, and end."""
        if self._upgraded:
            self.tell(Notice(code="SERVER_RESTARTING", retry_after=retry_after))
        self.end(Ending.SERVER_RESTARTING)

    def audit(
        self,
        what: str,
        *,
        outcome: str,
        reason: str = "",
        stream_id: str | None = None,
        identity: Identity | None = None,
    ) -> None:
        """Record what this peer did or met; an identity is given where it is not the session's."""
        if identity is None and self._session is not None:
            identity = self._session.identity
        self._door.audit.record(
            what,
            outcome=outcome,
            reason=reason,
            address=self.address.text,
            stream_id=unless_token(stream_id, self._authentication.token),
            connection=self.accepted,
            **who(identity),
        )

    def _encode(self, message: ServerMessage) -> bytes:
        opcode = wire.BINARY if self.codec.binary else wire.TEXT
        return wire.frame(opcode, self.codec.encode(message))

    # -- the phases

    async def _live(self, nursery: trio.Nursery, deadline: float) -> None:
        with self._life:
            upgrade = False
            with trio.CancelScope(deadline=deadline) as auth:
                try:
                    await self._admission.hear_proxy()
                    await self._stream.link.handshake()
                    upgrade = await self._admission.enter(await self._stream.read_head())
                    if upgrade:
                        await self._authenticate(nursery)
                except Refused as refused:
                    self.end(refused.ending)
                except (HeadTooBig, NoProxyHeader):
                    self.end(Ending.HANDSHAKE_REFUSED)
                except GONE:
                    self._lost()
            if auth.cancelled_caught:
                if self._upgraded:
                    self._authentication.run_out()
                else:
                    self.end(Ending.HANDSHAKE_TIMEOUT)
            elif upgrade:
                await self._expiry.run()
                self.end(self._expired())
            elif self.ending is None:
                await self._answer_http()

    async def _answer_http(self) -> None:
        self._stream.on_end = lambda: None
        await self._door.serve_http(self._stream, self.address)
        self.end(Ending.HTTP_ANSWERED)

    async def _authenticate(self, nursery: trio.Nursery) -> None:
        self._stream.splice_after_handshake(
            max_message=FIRST_MESSAGE_SIZE,
            budget=self._door.budget,
            on_messages=self._inbox.receive,
            on_noise=self._inbox.count_noise,
            on_fault=self.end,
        )
        self.codec = await self._admission.accept(await read_handshake(nursery, self._stream))
        self._upgraded = True
        self._inbox.open(self.codec)
        self._door.services.metrics.connections += 1
        self._door.services.metrics.connections_accepted += 1
        nursery.start_soon(self._write)
        nursery.start_soon(self._keep_alive)
        await self._authenticated.wait()

    async def _write(self) -> None:
        self.outlet.stall_timeout = self._door.timing.idle_timeout
        await self.outlet.run()
        if self.outlet.stalled:
            self.end(Ending.IDLE_TIMEOUT)

    async def _keep_alive(self) -> None:
        timing = self._door.timing
        try:
            await keep_alive(self._stream, every=timing.ping_interval, idle=timing.idle_timeout)
            self.end(Ending.IDLE_TIMEOUT)
        except GONE:
            self._lost()

    # -- what becomes of the identity

    @property
    def identity(self) -> Identity:
        assert self._session is not None
        return self._session.identity

    def begin(self, identity: Identity) -> bool:
        """Open the session of a user or service; False when they have too many connections, and
        this one has ended."""
        guard, services = self._door.guard, self._door.services
        user_id = identity.user_id if isinstance(identity, User) else None
        if not guard.crowd.know(self, user_id):
            self.crowded_out(Limit.CONNECTIONS_OF_USER)
            return False
        self._session = Session.open(identity, self, services)
        self._inbox.serve(self._session, guard.throttle())
        services.metrics.authenticated += 1
        self._stream.allow_messages_of(self._door.timing.max_message_size)
        self._authenticated.set()
        self._expiry.renew(identity, by_peer=True)
        self._door.watch.enter(self)
        return True

    def renew(self, identity: Identity) -> None:
        """Go on as the same user or service, who has proved it again."""
        self._go_on(identity, by_peer=True)

    def become(self, identity: Identity) -> None:
        """Go on with what is known now of the same session or service."""
        if self._session is not None and self.ending is None:
            self._go_on(identity, by_peer=False)

    def _go_on(self, identity: Identity, *, by_peer: bool) -> None:
        assert self._session is not None
        self._expiry.renew(identity, by_peer=by_peer)
        self._session.become(identity)
        self._door.watch.enter(self)

    def revoked(self) -> None:
        """End, since the session or the service's token is no more. Nothing goes out from now on
        but the goodbye."""
        self.end(Ending.SESSION_REVOKED)
        if self.ending is Ending.SESSION_REVOKED:
            self._mailbox.clear()
        if self._session is not None:
            self._session.close()

    def _announce_expiry(self, expires_at: datetime) -> None:
        self.tell(Notice(code="SESSION_EXPIRING", expires_at=milliseconds(expires_at)))

    def _expired(self) -> Ending:
        """What it is when the session is over: cut short, it ended before its time."""
        return Ending.SESSION_REVOKED if self._expiry.cut_short else Ending.SESSION_EXPIRED

    # -- the end

    def _lost(self) -> None:
        self.end(Ending.CLIENT_CLOSED if self._stream.peer_closed else Ending.CLIENT_GONE)

    def _leave(self) -> None:
        ending = self.ending or Ending.SHUTDOWN
        metrics = self._door.services.metrics
        metrics.endings[ending] += 1
        if self._upgraded:
            metrics.connections -= 1
        if ending not in UNFORCED:
            self.audit("close", outcome="forced", reason=ending.label)
        elif ending is not Ending.HTTP_ANSWERED:
            log.info("close", outcome="left", reason=ending.label)
        if self._session is not None:
            metrics.authenticated -= 1
            self._door.watch.leave(self)
            self._session.close()

    def _take_apart(self) -> None:
        """Let go of the parts, which know their connection. Such circles only the garbage collector
        frees, and while it looks for those of a flood of short connections every frame waits."""
        self._stream.forget_listeners()
        del self._nursery, self._inbox, self._authentication, self._admission, self._expiry
        self._session = None

    async def _say_goodbye(self) -> None:
        goodbye = (self.ending or Ending.SHUTDOWN).value
        if goodbye.code is None or not self._upgraded:
            return
        last = [close_frame(goodbye.code, goodbye.reason)]
        if goodbye.error is not None:
            error = Error(
                code=goodbye.error,
                message=goodbye.message,
                id=self._ended_by,
                retry_after=self._retry_after or goodbye.retry_after,
            )
            last.insert(0, self._encode(error))
        with trio.move_on_after(GOODBYE):
            try:
                await self.outlet.drain(self._mailbox, *last)
                if self._in_the_way:
                    return
                with trio.move_on_after(ANSWER):
                    await self._stream.discard_rest()
            except GONE:
                pass  # the peer did not wait for it
