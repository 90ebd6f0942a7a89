"""The lifecycle of a client that reconnects: connection after connection.

The states, and all that leads from one to another:

    connecting  asks for a token, opens a WebSocket, sends `auth` and waits for the answer
    ready       authenticated; what was subscribed and published is asked for again
    waiting     the connection was lost or refused; the next attempt is due later
    paused      pause() was called: no connection, nothing forgotten
    closed      for good: the block was left, or the relay said that reconnecting is of no use

    connecting --AUTHENTICATED--> ready --lost, closed by the relay--> waiting --> connecting
    connecting --lost, refused--> waiting
    connecting, ready, waiting --pause()--> paused --resume()--> connecting
    any --leaving the block, or a final ending--> closed

The loop in `run` is that drawing: one task goes through the states, and what a connection needs
lives in a nursery of its own and ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import NoReturn

import trio
from attrs import define, field

from relay.client.connection.clock import RelayClock
from relay.client.connection.connection import ClientConnection, open_connection
from relay.client.connection.liveness import watch_liveness
from relay.client.connection.messages import Fields, read
from relay.client.errors import ClientClosed, DialFailed, ServerError
from relay.client.events import Authenticated, Event, Notice, Problem
from relay.client.reconnect_policy import (
    TRANSIENT_ERRORS,
    ConnectionEnding,
    ReconnectPauses,
    ReconnectPolicy,
    TokenReason,
    judge_ending,
)
from relay.client.state.desired_state import DesiredState
from relay.client.state.event_queue import ClientState, StateChange
from relay.client.tokens import TokenRequest, TokenSource, TokenUnavailable, get_token
from relay.client.websocket import WebSocket
from relay.errors import RelayError
from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC

Dial = Callable[[Sequence[str]], AbstractAsyncContextManager[WebSocket]]
"""Opens a WebSocket; offers these subprotocols."""
SUBPROTOCOLS = (MSGPACK_CODEC.subprotocol, JSON_CODEC.subprotocol)
MAX_PROGRESS_INTERVAL = 3_600_000
"""ms; what the protocol allows."""
CLIENT_TRANSITIONS = {
    ClientState.CONNECTING: {
        ClientState.READY,
        ClientState.WAITING,
        ClientState.PAUSED,
        ClientState.CLOSED,
    },
    ClientState.READY: {ClientState.WAITING, ClientState.PAUSED, ClientState.CLOSED},
    ClientState.WAITING: {ClientState.CONNECTING, ClientState.PAUSED, ClientState.CLOSED},
    ClientState.PAUSED: {ClientState.CONNECTING, ClientState.CLOSED},
    ClientState.CLOSED: set[ClientState](),
}


@define(eq=False, repr=False)
class Lifecycle:
    """Goes from connection to connection, and keeps what outlives them."""

    _dial: Dial
    _token: TokenSource
    _policy: ReconnectPolicy
    desired: DesiredState = field(init=False)
    state: ClientState = ClientState.CONNECTING
    session: Authenticated | None = None
    connection: ClientConnection | None = None
    """The connection, from its `auth` to its end."""
    clock: RelayClock = field(factory=RelayClock)
    _pauses: ReconnectPauses = field(init=False)
    _reason: TokenReason = "connect"
    _refused_token: str | None = None
    _attempts: int = 0
    """Attempts to connect since there was a session."""
    _closed: ClientClosed | None = None
    _running: trio.CancelScope = field(factory=trio.CancelScope)
    """Around all that `pause` ends."""
    _paused: bool = False
    _changed: trio.Event = field(factory=trio.Event)
    """Set, and made anew, when the state changes, or when it should."""
    _retry: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.desired = DesiredState(self._policy)
        self._pauses = ReconnectPauses(self._policy)

    def check_open(self) -> None:
        """`ClientClosed`, if it is."""
        if self._closed is not None:
            raise self._closed

    async def ready(self) -> Authenticated:
        """Wait until there is a session; `ClientClosed`."""
        await trio.lowlevel.checkpoint()
        while self.state is not ClientState.READY or self.session is None:
            self.check_open()
            await self._changed.wait()
        return self.session

    def pause(self) -> None:
        if self._closed is None:
            self._paused = True
            self._running.cancel()

    def resume(self) -> None:
        self._paused = False
        self._tell()

    def retry_now(self) -> None:
        self._retry.set()

    def check_clock(self) -> None:
        """If our clock was set, ask for an answer that shows the relay's."""
        connection = self.connection
        stepped = self.clock.notice_step()
        if stepped and self.state is ClientState.READY and connection is not None:
            connection.start(self._ping, connection)

    async def run(self) -> None:
        """Connect, over and over, until that is of no use; `keep_client` starts it."""
        try:
            while True:
                with trio.CancelScope() as self._running:
                    if not self._paused:
                        await self._keep_connecting()
                self._enter(ClientState.PAUSED)
                while self._paused:
                    await self._changed.wait()
                self._pauses.reset()
        except ClientClosed as closed:
            self.close(closed)

    def close(self, closed: ClientClosed) -> None:
        """Close everything; the client receives and sends nothing any more."""
        if self._closed is not None:
            return
        self._closed = closed
        self.session = self._refused_token = None
        self.desired.close(closed)
        self._enter(ClientState.CLOSED, closed)
        self.desired.queue.end(closed)

    async def _keep_connecting(self) -> NoReturn:
        """Connection after connection; `ClientClosed`."""
        while True:
            self._enter(ClientState.CONNECTING)
            try:
                token = await self._token_to_connect()
            except TokenUnavailable as unavailable:
                await self._wait(0.0, unavailable)
                continue
            began, failure = trio.current_time(), None
            try:
                ending = await self._connect(token)
            except DialFailed as failed:
                ending, failure = ConnectionEnding(None, str(failed)), failed
            lasted = trio.current_time() - began
            if self.state is ClientState.READY and lasted > self._policy.stable_after:
                self._pauses.reset()
            verdict = judge_ending(ending)
            if not verdict.again:
                raise ClientClosed.after(ending.code, ending.reason, ending.error)
            if verdict.reason != "connect":  # it is the reason until there is a session
                self._reason = verdict.reason
            if verdict.reason == "refused":
                self._refused_token = token
            await self._wait(verdict.after, failure or ending.disconnected())

    async def _wait(self, after: float, error: RelayError) -> None:
        """Wait for the next attempt, at least `after` seconds unless `retry_now` is called."""
        delay = after + self._pauses.next()
        self._retry = trio.Event()
        self._enter(ClientState.WAITING, error, delay)
        with trio.move_on_after(delay):
            await self._retry.wait()

    async def _token_to_connect(self) -> str:
        """`TokenUnavailable`, `ClientClosed`."""
        refused = self._refused_token if self._reason == "refused" else None
        token = await self._get_token(TokenRequest(self._reason, refused=refused))
        if not token:
            raise ClientClosed("NO_TOKEN", "there is no token to authenticate with")
        if token == self._refused_token:
            raise ClientClosed("AUTH_FAILED", "the relay refused the token, and there is no other")
        return token

    async def _get_token(self, request: TokenRequest) -> str | None:
        with trio.move_on_after(self._policy.token_timeout):
            return await get_token(self._token, request)
        raise TokenUnavailable("the token did not come in time")

    async def _connect(self, token: str) -> ConnectionEnding:
        """One connection, from its first packet to its end; `DialFailed`."""
        with trio.move_on_after(self._policy.open_timeout) as opening:
            # Some proxies refuse subprotocols: each third attempt in a row goes without.
            offers = () if self._attempts % 3 == 2 else SUBPROTOCOLS
            self._attempts += 1
            async with (
                self._dial(offers) as socket,
                open_connection(socket, self._policy, self.clock) as connection,
            ):
                self.clock.begin_connection()
                self.connection = connection
                try:
                    connection.start(self._authenticate, connection, token, opening)
                    connection.start(watch_liveness, connection, self._policy)
                    async for event in connection:
                        self._receive(event, connection)
                finally:
                    self.connection = None
                    self.desired.lose()
            assert connection.ending is not None
            return connection.ending
        return ConnectionEnding(None, "the relay did not answer in time")

    async def _authenticate(
        self, connection: ClientConnection, token: str, opening: trio.CancelScope
    ) -> None:
        try:
            policy = self._policy
            interval = round(min(policy.silence_timeout, policy.ping_timeout) * 1000 / 4)
            session = await connection.authenticate(
                token, parts=True, progress_interval=min(max(1, interval), MAX_PROGRESS_INTERVAL)
            ).answer()
        except ServerError:
            return  # a Close follows
        opening.deadline = math.inf
        self._attempts = 0
        self._reason, self._refused_token = "connect", None
        self._pauses.connected()
        self._note_session(session)
        self._enter(ClientState.READY)
        self.desired.begin(connection)

    def _note_session(self, session: Fields) -> None:
        self.session = read(Authenticated, session)
        self.desired.queue.put(self.session)

    def _receive(self, event: Event, connection: ClientConnection) -> None:
        self.desired.receive(event)
        if isinstance(event, Notice) and event.code == "SESSION_EXPIRING":
            connection.start(self._renew, connection, event.expires_at)

    async def _renew(self, connection: ClientConnection, expires_at: int | None) -> None:
        """Renew the session on the live connection; where that fails, the session just expires."""
        while True:
            try:
                token = await self._get_token(TokenRequest("expiring", expires_at))
                if not token:
                    return
                session = await connection.authenticate(token).answer()
            except TokenUnavailable:
                delay = self._policy.retry_interval
            except ServerError as error:
                if error.code not in TRANSIENT_ERRORS:
                    self.desired.queue.put(Problem(error.code, error.message))
                    return
                delay = self._policy.until_retry(error)
            else:
                self._note_session(session)
                return
            await trio.sleep(delay)

    async def _ping(self, connection: ClientConnection) -> None:
        with suppress(ServerError):
            await connection.ping().answer()

    def _enter(
        self, state: ClientState, error: RelayError | None = None, retry_in: float | None = None
    ) -> None:
        first = state is self.state is ClientState.CONNECTING
        if not first and state not in CLIENT_TRANSITIONS[self.state]:
            raise AssertionError(f"no way from {self.state} to {state}")
        self.state = state
        self.desired.queue.put(StateChange(state, error, retry_in))
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
