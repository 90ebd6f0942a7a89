"""One connection's life: upgrade, authentication under one deadline, session, goodbye."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, field

from relay.connection.admission import Admission, Refused
from relay.connection.authentication import MAX_FIRST_MESSAGE_BYTES, Authentication, Granted
from relay.connection.context import ConnectionContext, Neighbours
from relay.connection.http_request import HttpRequest
from relay.connection.inbox import Inbox, InvalidMessages, read
from relay.connection.keep_alive import KeepAlive
from relay.connection.peer import Peer
from relay.connection.session.session import Session
from relay.connection.tasks import Tasks
from relay.guard.client_address import ClientAddress
from relay.metrics import Limit
from relay.model.access.identity import Identity, User
from relay.protocol.codec import CODECS, InvalidMessage
from relay.protocol.endings import Ending
from relay.protocol.messages import Auth, MessageProgress, Notice
from relay.protocol.states import State, Step
from relay.transport.framing.frame_parser import Message
from relay.transport.handshake.websocket import close_frame, read_handshake
from relay.transport.proxy import NoProxyHeader
from relay.transport.stream import FrameStream, ignore

if TYPE_CHECKING:
    from relay.connection.relocation import Relocation

LINGER_TIMEOUT = 10.0
"""Seconds in which the peer of a plain response can send the rest of its request and close its half
of the connection. Meanwhile it counts as unauthenticated, and gives way where there is no room."""
GOODBYE_TIMEOUT, ANSWER_TIMEOUT = 2.0, 1.0
"""Seconds for the peer to receive our goodbye, and the part of these for its answer."""

MIN_PROGRESS_INTERVAL = 0.05
"""Seconds between two `progress` messages, however often a client asks for them."""

UNFORCED = {Ending.CLIENT_CLOSED, Ending.CLIENT_GONE, Ending.HTTP_ANSWERED, Ending.SHUTDOWN}
"""Endings that the relay did not bring upon this peer."""

GONE = (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)
"""What reading and writing raise when the peer is gone."""

log = structlog.get_logger()


@define(eq=False, repr=False)
class Connection:
    """A peer that was accepted, from its first byte to its last: the order of events."""

    number: int
    """The number of the connection, in the order of acceptance."""
    _stream: FrameStream
    _context: ConnectionContext
    peer: Peer = field(init=False)
    _authentication: Authentication = field(init=False)
    _invalid: InvalidMessages = field(init=False)
    _session: Session | None = field(default=None, init=False)
    _tasks: Tasks = field(init=False)
    _keep_alive: KeepAlive | None = field(default=None, init=False)
    _asked: bool = field(default=False, init=False)
    """Whether there was a whole request head."""
    _answered: bool = field(default=False, init=False)
    """Whether the last word was a plain HTTP response."""
    _departure: Relocation | None = field(default=None, init=False)
    """Set when the connection is to go to another worker."""
    relocation: Relocation | None = field(default=None, init=False)
    """Set once it has ended here for that; the socket is open."""

    def __attrs_post_init__(self) -> None:
        context = self._context
        self.peer = Peer(self.number, self._stream, context.audit, context.metrics, context.unread)
        self._authentication = Authentication(self.peer, context.login, context.metrics)
        self._invalid = InvalidMessages(self.peer)

    async def run(self, deadline: float, arrived: Relocation | None = None) -> None:
        """Serve the peer to the end, which is logged and counted, or until it is to go to another
        worker: see `relocation`. Never raises.

        Needs a task of its own: whatever that and its children log carries the connection's number.
        The deadline, by Trio's clock, is for its authentication and all that comes before; one that
        has arrived from another worker has that behind it.
        """
        peer, connections = self.peer, self._context.guard.connections
        self._stream.on_end = peer.lost
        if arrived is None:
            connections.enter(peer, peer.address.key)
        structlog.contextvars.bind_contextvars(connection=self.number)
        try:
            try:
                async with trio.open_nursery() as nursery:
                    peer.life = nursery.cancel_scope
                    nursery.cancel_scope.deadline = deadline
                    await self._live(nursery, arrived)
                    if not nursery.cancel_scope.cancel_called:
                        nursery.cancel_scope.cancel()
                if peer.ending is None:
                    if self._departure is None:
                        self._run_out()
                    else:
                        self._depart(self._departure)
            except* Exception:  # the one boundary: a bug ends its own connection and no other
                peer.end(Ending.INTERNAL_ERROR)
                log.exception("connection failed")
            finally:
                self._leave()
            if self.relocation is None:
                await self._say_goodbye()
        finally:
            connections.leave(peer)
            self._stream.close()
            self._stream.forget_listeners()
            peer.mailbox.close()
            peer.advance(Step.END)

    def restart(self, retry_after: int) -> None:
        """Ask the peer to come back after so many milliseconds, and end."""
        if self.peer.state is not State.CONNECTING:
            self.peer.tell(Notice(code="SERVER_RESTARTING", retry_after=retry_after))
        self.peer.end(Ending.SERVER_RESTARTING)

    # -- the phases

    async def _live(self, nursery: trio.Nursery, arrived: Relocation | None) -> None:
        """Shake hands, or go on where another worker has stopped, and then read until the peer
        ends."""
        peer, self._tasks = self.peer, Tasks(nursery)
        try:
            if arrived is not None:
                await self._arrive(arrived)
                await self._stream.read_frames()
            elif await self._connect(nursery):
                await self._stream.read_frames()
            elif peer.ending is None:
                await self._answer_http()
        except Refused as refused:
            peer.end(refused.ending)
            self._answered = True
        except NoProxyHeader:
            peer.end(Ending.HANDSHAKE_REFUSED)
        except GONE:
            peer.lost()
        finally:
            self._tasks.end()

    def _run_out(self) -> None:
        """End, since the deadline is over."""
        if self.peer.state is State.CONNECTING:
            self.peer.end(Ending.HANDSHAKE_TIMEOUT)
        else:
            self._authentication.run_out()

    async def _connect(self, nursery: trio.Nursery) -> bool:
        """Establish the WebSocket; False if the request is for something else."""
        peer, context, stream = self.peer, self._context, self._stream
        admission = Admission(peer, context.guard, context.metrics)
        await admission.read_proxy_header()
        await stream.link.handshake()
        head = await self._read_head(admission)
        if not await admission.enter(head):
            return False
        if stream.early:
            peer.end(Ending.PROTOCOL_ERROR)  # nothing may come before our 101
            return False
        peer.codec = await admission.accept(await read_handshake(nursery, stream, head))
        context.metrics.connections_accepted += 1
        self._begin_frames()
        return True

    def _begin_frames(self) -> None:
        """Begin to exchange frames."""
        peer, context, stream = self.peer, self._context, self._stream
        peer.advance(Step.UPGRADE)
        context.metrics.connections += 1
        stream.begin_frames(
            max_message=MAX_FIRST_MESSAGE_BYTES,
            budget=context.budget,
            party=f"address:{peer.address.key}",
            on_messages=self._receive_first,
            on_overhead=ignore,
            on_fault=peer.end,
        )
        timing = context.timing
        stream.outlet.stall_timeout = timing.idle_timeout
        stream.outlet.open(self._start_writer)
        self._keep_alive = KeepAlive(
            peer, context.alarms, timing.ping_interval, timing.idle_timeout
        )
        self._keep_alive.start()

    async def _read_head(self, admission: Admission) -> bytes:
        head = await admission.read_head()
        self._asked = True
        return head

    async def _answer_http(self) -> None:
        self._lift_deadline()
        self._stream.on_end = ignore
        self._answered = True
        request = HttpRequest(self.peer, self._context.guard, self._context.metrics)
        try:
            await self._context.serve_http(request)
        finally:
            request.leave()
        self.peer.end(Ending.HTTP_ANSWERED)

    def _lift_deadline(self) -> None:
        if self.peer.life is not None:
            self.peer.life.deadline = math.inf

    def _start_writer(self) -> None:
        self._tasks.start_soon(self._write)

    async def _write(self) -> None:
        outlet = self._stream.outlet
        await outlet.run()
        if outlet.stalled:
            self.peer.end(Ending.IDLE_TIMEOUT)

    async def _receive_first(self, messages: list[Message]) -> None:
        """Handle messages until one authenticates the peer; they come one at a time."""
        peer, authentication = self.peer, self._authentication
        for message in messages:
            if peer.ending is not None:
                return
            if authentication.allow_message():
                request = read(peer, message)
                if isinstance(request, InvalidMessage) and request.is_auth:
                    self._invalid.refuse(request)
                elif isinstance(request, InvalidMessage):
                    authentication.require(request.request_id)
                elif isinstance(request, Auth):
                    outcome = await authentication.answer(request)
                    if isinstance(outcome, Granted):
                        self._agree(request)
                        self._begin(outcome)
                else:
                    authentication.require(request.id)

    def _agree(self, request: Auth) -> None:
        """Note what the client can do with long messages."""
        self.peer.takes_parts = bool(request.parts)
        if request.progress_interval is not None:
            interval = max(MIN_PROGRESS_INTERVAL, request.progress_interval / 1000)
            self._stream.report_progress(self._tell_progress, interval)

    def _tell_progress(self, received: int) -> None:
        if not self.peer.mailbox.in_line:  # what waits there is a sign of life, too
            self.peer.tell(MessageProgress(received=received))

    def _begin(self, granted: Granted) -> None:
        """Open the session of a user or service, and look whether another worker had better have
        it."""
        inbox = self._open_session(granted.identity, granted.token)
        if inbox is None:
            return
        if self._stream.acceptance is not None:
            self._stream.acceptance.authenticated()
        self._stream.hand_on_to(inbox.receive, inbox.count_overhead)
        if self._context.neighbours is not None and self._stream.is_plain:
            self._look_at_first(inbox, self._context.neighbours)
        self.peer.tell(granted.welcome)

    def _open_session(self, identity: Identity, token: str) -> Inbox | None:
        """Open the session of a user or service; None if they have too many connections."""
        peer, context = self.peer, self._context
        user_id = identity.user_id if isinstance(identity, User) else None
        if not context.guard.connections.authenticated(peer, user_id):
            peer.crowded_out(Limit.CONNECTIONS_OF_USER)
            return None
        peer.advance(Step.AUTHENTICATE)
        peer.identity, peer.token = identity, token
        sender = identity.sender
        peer.mailbox.count_for(sender)
        self._lift_deadline()
        start_soon = self._tasks.start_soon
        self._session = Session.open(peer, context.sessions, context.alarms, start_soon)
        self._stream.allow_messages_of(context.timing.max_message_size, sender)
        return Inbox(
            peer,
            self._session,
            self._authentication,
            self._invalid,
            context.guard.throttle(),
            context.metrics,
            start_soon,
        )

    # -- from one worker to another

    def _look_at_first(self, inbox: Inbox, neighbours: Neighbours) -> None:
        """Look whether the first request names a stream that another worker has."""
        from relay.connection.relocation import (  # noqa: PLC0415 (only workers need it)
            FirstRequest,
        )

        assert self._session is not None
        first = FirstRequest(
            *(self.peer, self._session, self._invalid, self._context.sessions.hub, neighbours),
            *(self._leave_for, inbox.receive, inbox.count_overhead),
        )
        self._stream.hand_on_to(first.receive, first.count_overhead)

    def _leave_for(self, relocation: Relocation) -> None:
        """End here, to go on at another worker."""
        self._departure = relocation
        if self._keep_alive is not None:
            self._keep_alive.stop()
        if self.peer.life is not None:
            self.peer.life.cancel()

    def _depart(self, relocation: Relocation) -> None:
        """Give the socket away. Nothing has been read or written since the `subscribe`."""
        relocation.connected = self._stream.detach()
        self._context.sessions.watch.enter(relocation)
        self.relocation = relocation

    async def _arrive(self, relocation: Relocation) -> None:
        """Go on where another worker has stopped."""
        peer, context, viewer = self.peer, self._context, relocation.viewer
        peer.accepted_at = viewer.accepted_at
        peer.address = ClientAddress.parse(viewer.address)
        peer.base_path, peer.codec = viewer.base_path, CODECS[viewer.subprotocol]
        self._asked = True
        self._lift_deadline()
        context.guard.connections.admit(peer, peer.address.key)
        self._begin_frames()
        peer.takes_parts = viewer.takes_parts
        if viewer.progress_interval is not None:
            self._stream.report_progress(self._tell_progress, viewer.progress_interval)
        inbox = self._open_session(relocation.identity_now, viewer.token)
        context.sessions.watch.leave(relocation)
        if inbox is None or self._session is None:
            return
        self._stream.hand_on_to(inbox.receive, inbox.count_overhead)
        self._catch_up(relocation, self._session)
        await inbox.receive([Message(viewer.opcode, viewer.payload)])

    def _catch_up(self, relocation: Relocation, session: Session) -> None:
        """Do what has happened to the peer while neither worker had it."""
        session.read_again()
        if relocation.is_revoked:
            session.revoked()
        elif relocation.is_ended:
            self.peer.end(Ending.ENDED_BY_OPERATOR)
        elif relocation.retry_after is not None:
            self.restart(relocation.retry_after)

    def revoke(self) -> None:
        """End, since the session was revoked while the peer came here."""
        if self._session is not None:
            self._session.revoked()

    # -- the end

    def _leave(self) -> None:
        peer, metrics = self.peer, self._context.metrics
        if peer.state is not State.CONNECTING:
            metrics.connections -= 1
        if self.relocation is None:
            self._note_ending()
        if self._keep_alive is not None:
            self._keep_alive.stop()
        if self._session is not None:
            self._session.close()

    def _note_ending(self) -> None:
        """Count the end, and log it."""
        peer = self.peer
        ending = peer.ending or Ending.SHUTDOWN
        self._context.metrics.endings[ending] += 1
        guard = self._context.guard
        if not self._asked:
            guard.count_without_request(peer.address)
        if ending not in UNFORCED:
            peer.record("close", outcome="forced", reason=ending.label)
        elif ending is not Ending.HTTP_ANSWERED and (peer.identity or guard.may_log(peer.address)):
            log.info("close", outcome="left", reason=ending.label)

    async def _say_goodbye(self) -> None:
        peer, stream = self.peer, self._stream
        if self._answered:
            with trio.move_on_after(LINGER_TIMEOUT), suppress(*GONE):
                await stream.linger()
            return
        goodbye = (peer.ending or Ending.SHUTDOWN).value
        if goodbye.code is None or peer.state is State.CONNECTING:
            return
        last = [close_frame(goodbye.code, goodbye.reason)]
        error = peer.goodbye()
        if error is not None:
            last.insert(0, peer.encode(error))
        with trio.move_on_after(GOODBYE_TIMEOUT):
            try:
                await stream.outlet.drain(peer.mailbox, *last)
                if peer.hurried:
                    return
                with trio.move_on_after(ANSWER_TIMEOUT):
                    await stream.discard_rest()
            except GONE:
                pass  # the peer did not wait for it
