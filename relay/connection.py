"""One connection's life: upgrade, authentication under one deadline, session, goodbye. Floor 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

import msgspec
import structlog
import trio
from attrs import define, field, frozen

from relay.audit import AuditLog, unless_token, who
from relay.auth.registry import Live
from relay.closing import Ending
from relay.errors import StoreUnavailable
from relay.expiry import Expiry
from relay.guard.address import ClientAddress
from relay.guard.guard import Guard
from relay.guard.throttle import Excess, Throttle
from relay.metrics import Limit
from relay.model import Identity, User
from relay.protocol.codec import CODECS, JSON, Codec, InvalidMessage
from relay.protocol.messages import (
    AUTH,
    Auth,
    ClientMessage,
    Error,
    ErrorCode,
    Notice,
    RequestId,
    ServerMessage,
    Success,
    VideoFrame,
)
from relay.session import Services, Session
from relay.transport import wire
from relay.transport.budget import Budget
from relay.transport.head import asks_for_upgrade
from relay.transport.mailbox import Mailbox
from relay.transport.outlet import Outlet
from relay.transport.proxy import NoProxyHeader
from relay.transport.splice import Message
from relay.transport.stream import FrameStream, HeadTooBig
from relay.transport.websocket import (
    Handshake,
    close_frame,
    keep_alive,
    read_handshake,
)

PATHS = ("/streams/register", "/streams/subscribe")
ELSEWHERE = f"There is nothing here. WebSockets are at {' and '.join(PATHS)}."
TOKEN_PARAMETERS = {"token", "access_token", "session_token"}
NOT_IN_URL = (
    "A token in the URL ends up in logs and histories. Connect without one and send"
    ' {"type": "auth", "token": ...} as the first message.'
)
FIRST_MESSAGES = 10
"""So many messages may come before authentication."""
FIRST_MESSAGE_SIZE = 16 * 1024
"""Bytes of such a message."""
INVALID_MESSAGES = 10
INVALID_WITHIN = 60.0
"""So many invalid messages in so many seconds end a connection."""
GOODBYE, ANSWER = 2.0, 1.0
"""Seconds in which the peer can take our goodbye, and of these in which it can answer."""

UNFORCED = {Ending.CLIENT_CLOSED, Ending.CLIENT_GONE, Ending.HTTP_ANSWERED, Ending.SHUTDOWN}
"""Endings that the relay did not bring upon this peer."""

GONE = (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)
"""What reading and writing raise when the peer is gone."""

log = structlog.get_logger()


class Verifier(Protocol):
    async def verify(self, token: str) -> Identity | None:
        """Whose token it is; `StoreUnavailable` when that cannot be told now."""


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
    address: ClientAddress = field(init=False)
    """The client's, as far as it is known."""
    codec: Codec = JSON
    outlet: Outlet = field(init=False)
    _mailbox: Mailbox = field(init=False)
    _session: Session | None = None
    _expiry: Expiry = field(init=False)
    _throttle: Throttle | None = None
    _upgraded: bool = False
    _in_the_way: bool = False
    """Whether there is no time for the peer to answer our goodbye."""
    _verifying: Auth | None = None
    _token: str | None = field(default=None, repr=False)
    """That it authenticated with: to know it again where it does not belong."""
    _authenticated: trio.Event = field(factory=trio.Event)
    _life: trio.CancelScope = field(factory=trio.CancelScope)
    _nursery: trio.Nursery = field(init=False)
    _first_messages: int = 0
    _invalid_at: list[float] = field(factory=list)
    """When the last invalid messages came, by Trio's clock."""

    def __attrs_post_init__(self) -> None:
        self.outlet = self._stream.outlet
        self._mailbox = Mailbox(self.outlet)
        self._expiry = Expiry(lambda: self._door.watch.look(self), self._announce_expiry)
        self.address = ClientAddress.of_peer(self._stream.link.peer)

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
        self._count(limit)
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
            stream_id=unless_token(stream_id, self._token),
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
                    await self._hear_proxy()
                    await self._stream.link.handshake()
                    upgrade = await self._enter(await self._stream.read_head())
                    if upgrade:
                        await self._authenticate(nursery)
                except (HeadTooBig, NoProxyHeader):
                    self.end(Ending.HANDSHAKE_REFUSED)
                except GONE:
                    self._lost()
            if auth.cancelled_caught:
                if self._upgraded:
                    self._log_auth("unavailable" if self._verifying else "timeout")
                self._end_late()
            elif upgrade:
                await self._expiry.run()
                self.end(self._expired())
            elif self.ending is None:
                await self._answer_http()

    async def _hear_proxy(self) -> None:
        """Ask a proxy that speaks PROXY protocol whose connection this is."""
        if self._door.guard.proxies.owe_header(self.address):
            client = await self._stream.read_proxy_header()
            if client is not None:
                self._come_from(ClientAddress.parse(client))

    async def _enter(self, head: bytes) -> bool:
        """Come in, with a request for a WebSocket or another; does not return when refused."""
        guard = self._door.guard
        await guard.turnstile.turn()
        self._come_from(guard.proxies.client_behind(self.address, head))
        upgrade = asks_for_upgrade(head)
        refusal = guard.judge(self, self.address, head, upgrade=upgrade)
        if refusal is None:
            return upgrade
        self._count(refusal.limit)
        await self._stream.send_all(refusal.response)
        self.end(refusal.ending)
        return await trio.sleep_forever()

    def _come_from(self, address: ClientAddress) -> None:
        if address != self.address:
            self.address = address
            self._door.guard.crowd.move(self, address.key)

    async def _answer_http(self) -> None:
        self._stream.on_end = lambda: None
        await self._door.serve_http(self._stream, self.address)
        self.end(Ending.HTTP_ANSWERED)

    async def _authenticate(self, nursery: trio.Nursery) -> None:
        self._stream.splice_after_handshake(
            max_message=FIRST_MESSAGE_SIZE,
            budget=self._door.budget,
            on_messages=self._receive,
            on_fault=self.end,
        )
        handshake = await read_handshake(nursery, self._stream)
        subprotocol = await self._judge(handshake)
        await handshake.accept(subprotocol)
        self._upgraded = True
        self._door.services.metrics.connections += 1
        self._door.services.metrics.connections_accepted += 1
        nursery.start_soon(self._write)
        nursery.start_soon(self._keep_alive)
        await self._authenticated.wait()

    async def _judge(self, handshake: Handshake) -> str | None:
        """The subprotocol to accept the handshake with; does not return when it is refused."""
        offered = handshake.subprotocols
        known = [name for name in offered if name in CODECS]
        if handshake.path not in PATHS:
            ending, status, why = Ending.NOT_FOUND, 404, ELSEWHERE
        elif handshake.query_names & TOKEN_PARAMETERS:
            ending, status, why = Ending.HANDSHAKE_REFUSED, 400, NOT_IN_URL
        elif offered and not known:
            why = f"None of the subprotocols offered is known: {', '.join(CODECS)}"
            ending, status = Ending.HANDSHAKE_REFUSED, 400
            log.info("subprotocols refused", offered=len(offered))
        else:
            if not known:
                return None
            self.codec = CODECS[known[0]]
            return known[0]
        await handshake.refuse(status, why)
        self.end(ending)
        return await trio.sleep_forever()

    def _end_late(self) -> None:
        if not self._upgraded:
            self.end(Ending.HANDSHAKE_TIMEOUT)
        elif self._verifying is None:
            self.end(Ending.AUTH_TIMEOUT)
        else:
            self.end(Ending.AUTH_UNAVAILABLE, request_id=self._verifying.id)

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

    # -- messages

    async def _receive(self, messages: list[Message]) -> None:
        """Handle messages, each when those before it are done; frames in a row go on together."""
        if self._throttle is not None:
            excess = self._throttle.take(messages, trio.current_time())
            if excess is not None:
                self._slow_down(excess)
                return
        frames: list[VideoFrame] = []
        for message in messages:
            request = self._read(message)
            if isinstance(request, VideoFrame) and self._session is not None:
                frames.append(request)
                continue
            if frames:
                await self._publish(frames)
                frames = []
            if self.ending is not None:
                return
            if isinstance(request, InvalidMessage):
                self._refuse(request)
            elif request is not None:
                await self._handle(request)
        if frames:
            await self._publish(frames)

    async def _publish(self, frames: list[VideoFrame]) -> None:
        assert self._session is not None
        if self._throttle is not None:
            excess = self._throttle.take_frames(len(frames), trio.current_time())
            if excess is not None:
                self._slow_down(excess)
                return
        await self._session.publish(frames)

    def _slow_down(self, excess: Excess) -> None:
        """Drop what is too much, say so now and then, and close when it goes on."""
        if self._session is not None:
            self._session.skip_frames()
        self._count(excess.limit)
        if excess.goes_on:
            self.end(Ending.RATE_LIMITED, retry_after=excess.retry_after)
        elif excess.tell:
            text = f"Too many {excess.limit} in too short a time; some were dropped"
            self.tell(
                Error(code=ErrorCode.RATE_LIMITED, message=text, retry_after=excess.retry_after)
            )

    def _read(self, message: Message) -> ClientMessage | InvalidMessage | None:
        """What a message says; None when it is not even looked at."""
        if self.ending is not None:
            return None
        if not self._upgraded:
            self.end(Ending.PROTOCOL_ERROR)  # nothing may come before our 101
            return None
        if self._session is None and not self._allow_first():
            return None
        codec = self.codec
        if (message.opcode == wire.BINARY) != codec.binary:
            kind = "binary" if codec.binary else "text"
            text = f"Messages of {codec.subprotocol} are {kind}"
            return InvalidMessage(ErrorCode.INVALID_MESSAGE, text)
        try:
            return codec.decode(message.payload)
        except InvalidMessage as problem:
            return problem

    async def _handle(self, request: ClientMessage) -> None:
        if isinstance(request, Auth):
            if not self._hold_off(request):
                await self._verify(request)
        elif self._session is None:
            self._require_auth(request.id)
        else:
            await self._session.handle(request)

    def _allow_first(self) -> bool:
        self._first_messages += 1
        if self._first_messages > FIRST_MESSAGES:
            self.end(Ending.AUTH_FLOOD)
        return self.ending is None

    def _refuse(self, problem: InvalidMessage) -> None:
        if self._session is None and not problem.is_auth:
            self._require_auth(problem.request_id)
            return
        self.tell(
            Error(
                code=problem.code,
                message=problem.message,
                id=problem.request_id,
                stream_id=problem.stream_id,
            )
        )
        now = trio.current_time()
        self._invalid_at = [*self._invalid_at[1 - INVALID_MESSAGES :], now]
        if len(self._invalid_at) == INVALID_MESSAGES and now - self._invalid_at[0] < INVALID_WITHIN:
            self.end(Ending.INVALID_MESSAGES)

    def _require_auth(self, request_id: RequestId) -> None:
        self.tell(
            Error(code=ErrorCode.AUTH_REQUIRED, message="Must authenticate first", id=request_id)
        )

    def _hold_off(self, request: Auth) -> bool:
        """Whether this token is not even looked up, because too many have failed."""
        attempts = self._door.guard.attempts
        wait = None if attempts is None else attempts.wait(self.address, request.token)
        if wait is None:
            return False
        self._count(Limit.FAILED_AUTHS)
        self._log_auth("limited")
        retry_after = max(1, round(wait * 1000))
        if self._session is None:
            self.end(Ending.RATE_LIMITED, request_id=request.id, retry_after=retry_after)
        else:
            text = "Too many attempts to authenticate have failed"
            code = ErrorCode.RATE_LIMITED
            self.tell(Error(code=code, message=text, id=request.id, retry_after=retry_after))
        return True

    def _remember(self, request: Auth, *, good: bool) -> None:
        attempts = self._door.guard.attempts
        if attempts is not None:
            note = attempts.succeeded if good else attempts.failed
            note(self.address, request.token)

    async def _verify(self, request: Auth) -> None:
        self._verifying = request
        try:
            identity = await self._door.verifier.verify(request.token)
        except StoreUnavailable:
            self._not_verified(request)
        else:
            if self._session is None:
                await self._door.guard.turnstile.turn()
            self._remember(request, good=identity is not None)
            if identity is None:
                self._log_auth("failed")
                self.end(Ending.AUTH_FAILED, request_id=request.id)
            elif self._session is None:
                self._begin(request, identity)
            else:
                self._renew(request, self._session, identity)
        finally:
            self._verifying = None

    def _not_verified(self, request: Auth) -> None:
        self._log_auth("unavailable")
        if self._session is None:
            self.end(Ending.AUTH_UNAVAILABLE, request_id=request.id)
            return
        goodbye = Ending.AUTH_UNAVAILABLE.value
        self.tell(
            Error(
                code=ErrorCode.AUTH_UNAVAILABLE,
                message=goodbye.message,
                id=request.id,
                retry_after=goodbye.retry_after,
            )
        )

    def _begin(self, request: Auth, identity: Identity) -> None:
        self._log_auth("succeeded", identity=identity)
        user_id = identity.user_id if isinstance(identity, User) else None
        if not self._door.guard.crowd.know(self, user_id):
            self.crowded_out(Limit.CONNECTIONS_OF_USER)
            return
        self._throttle = self._door.guard.throttle()
        self._session = Session(identity, self, self._door.services)
        self._token = request.token
        self._door.services.metrics.authenticated += 1
        self._stream.allow_messages_of(self._door.timing.max_message_size)
        self._authenticated.set()
        self._expiry.renew(identity, by_peer=True)
        self._door.watch.enter(self)
        self._welcome(request, identity)

    def _renew(self, request: Auth, session: Session, identity: Identity) -> None:
        if identity.sender != session.identity.sender:
            self._log_auth("refused", "the connection is another's", identity)
            self.tell(
                Error(
                    code=ErrorCode.UNAUTHORIZED,
                    message="This connection belongs to somebody else",
                    id=request.id,
                )
            )
            return
        self._expiry.renew(identity, by_peer=True)
        session.become(identity)
        self._door.watch.enter(self)
        self._token = request.token
        self._log_auth("succeeded", "renewal")
        self._welcome(request, identity)

    def _welcome(self, request: Auth, identity: Identity) -> None:
        welcome = Success(code="AUTHENTICATED", message="Authentication successful", id=request.id)
        if isinstance(identity, User):
            welcome = msgspec.structs.replace(
                welcome,
                user_id=identity.user_id,
                session_id=identity.session_id,
                expires_at=_milliseconds(identity.expires_at),
            )
        self.tell(welcome)

    def _log_auth(self, outcome: str, reason: str = "", identity: Identity | None = None) -> None:
        self._door.services.metrics.auth_attempts[outcome] += 1
        self.audit(AUTH, outcome=outcome, reason=reason, identity=identity)

    # -- what becomes of the identity

    @property
    def identity(self) -> Identity:
        assert self._session is not None
        return self._session.identity

    def become(self, identity: Identity) -> None:
        """Go on with what is known now of the same session or service."""
        if self._session is not None and self.ending is None:
            self._expiry.renew(identity, by_peer=False)
            self._session.become(identity)
            self._door.watch.enter(self)

    def revoked(self) -> None:
        """End, since the session or the service's token is no more. Nothing goes out from now on
        but the goodbye."""
        self.end(Ending.SESSION_REVOKED)
        if self._session is not None:
            self._session.close()

    def _announce_expiry(self, expires_at: datetime) -> None:
        self.tell(Notice(code="SESSION_EXPIRING", expires_at=_milliseconds(expires_at)))

    def _expired(self) -> Ending:
        """What it is when the session is over: cut short, it ended before its time."""
        return Ending.SESSION_REVOKED if self._expiry.cut_short else Ending.SESSION_EXPIRED

    def _count(self, limit: Limit) -> None:
        self._door.services.metrics.limits_hit[limit] += 1

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


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
