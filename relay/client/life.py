"""The life of a client that comes back: connection after connection. Floor 2.

The states, and all that leads from one to another:

    connecting  asks for a token, opens a WebSocket, sends `auth` and waits for the answer
    ready       authenticated; what was subscribed and published is asked for again
    waiting     the connection was lost or refused; the next attempt has its time
    paused      pause() was called: no connection, nothing forgotten
    closed      for good: the block was left, or the relay said that coming back is of no use

    connecting --AUTHENTICATED--> ready --lost, closed by the relay--> waiting --> connecting
    connecting --lost, refused--> waiting
    connecting, ready, waiting --pause()--> paused --resume()--> connecting
    any --leaving the block, or an ending without return--> closed

The loop in `run` is that drawing: one task goes through the states, and what a connection needs
lives in a nursery of its own and ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NoReturn

import trio
from attrs import define, field

from relay.client.clock import RelayClock
from relay.client.errors import ClientClosed, Disconnected, ServerError
from relay.client.events import Authenticated, Event, Notice, Problem
from relay.client.link import Answer, Link
from relay.client.manners import PASSING, Ending, Manners, Pauses, Reason, judge_ending
from relay.client.messages import JSON, MSGPACK, Fields, read
from relay.client.tokens import TokenRequest, TokenSource, TokenUnavailable, ask_for_token
from relay.client.unread import State, StateChange
from relay.client.wants import Wants
from relay.errors import RelayError
from relay.transport.dial import ABNORMAL_CLOSURE, DialFailed, WebSocket

Dial = Callable[[Sequence[str]], AbstractAsyncContextManager[WebSocket]]
"""Opens a WebSocket; offers these subprotocols."""
TRANSITIONS = {
    State.CONNECTING: {State.READY, State.WAITING, State.PAUSED, State.CLOSED},
    State.READY: {State.WAITING, State.PAUSED, State.CLOSED},
    State.WAITING: {State.CONNECTING, State.PAUSED, State.CLOSED},
    State.PAUSED: {State.CONNECTING, State.CLOSED},
    State.CLOSED: set[State](),
}


@define(eq=False, repr=False)
class Life:
    _dial: Dial
    _token: TokenSource
    _manners: Manners
    wants: Wants = field(init=False)
    state: State = State.CONNECTING
    session: Authenticated | None = None
    link: Link | None = None
    """The connection, from its `auth` to its end."""
    clock: RelayClock = field(factory=RelayClock)
    _pauses: Pauses = field(init=False)
    _reason: Reason = "connect"
    _refused_token: str | None = None
    _unopened: int = 0
    """Attempts since there was a session."""
    _closed: ClientClosed | None = None
    _attempts: trio.CancelScope = field(factory=trio.CancelScope)
    """Around all that `pause` gives up."""
    _paused: bool = False
    _changed: trio.Event = field(factory=trio.Event)
    """Set, and made anew, when the state or what is wanted of it changes."""
    _nudge: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.wants = Wants(self._manners)
        self._pauses = Pauses(self._manners)

    def demand_open(self) -> None:
        """`ClientClosed`, if it is."""
        if self._closed is not None:
            raise self._closed

    async def ready(self) -> Authenticated:
        """Wait until there is a session; `ClientClosed`."""
        await trio.lowlevel.checkpoint()
        while self.state is not State.READY or self.session is None:
            self.demand_open()
            await self._changed.wait()
        return self.session

    def pause(self) -> None:
        if self._closed is None:
            self._paused = True
            self._attempts.cancel()

    def resume(self) -> None:
        self._paused = False
        self._tell()

    def retry_now(self) -> None:
        self._nudge.set()

    async def run(self) -> None:
        """Connect, over and over, until that is of no use; `keep_client` starts it."""
        try:
            while True:
                with trio.CancelScope() as self._attempts:
                    if not self._paused:
                        await self._come_and_go()
                self._enter(State.PAUSED)
                while self._paused:
                    await self._changed.wait()
                self._pauses.reset()
        except ClientClosed as closed:
            self.close(closed)

    def close(self, closed: ClientClosed) -> None:
        """Nothing comes any more, and nothing goes."""
        if self._closed is not None:
            return
        self._closed = closed
        self.session = self._refused_token = None
        self.wants.close(closed)
        self._enter(State.CLOSED, closed)
        self.wants.unread.end(closed)

    async def _come_and_go(self) -> NoReturn:
        """Connection after connection; `ClientClosed`."""
        while True:
            self._enter(State.CONNECTING)
            try:
                token = await self._ask_for_token()
            except TokenUnavailable as unavailable:
                await self._wait(0.0, unavailable)
                continue
            began, failure = trio.current_time(), None
            try:
                ending = await self._stay(token)
            except DialFailed as failed:
                ending, failure = Ending(None, str(failed)), failed
            if self.state is State.READY and trio.current_time() - began > self._manners.steady:
                self._pauses.reset()
            word = ending.word if isinstance(ending.word, ServerError) else None
            verdict = judge_ending(ending)
            if not verdict.again:
                raise ClientClosed.after(ending.code, ending.reason, word)
            if verdict.reason != "connect":  # until there is a session, that is why
                self._reason = verdict.reason
            if verdict.reason == "refused":
                self._refused_token = token
            lost = Disconnected(ending.code or ABNORMAL_CLOSURE, ending.reason, word)
            await self._wait(verdict.after, failure or lost)

    async def _wait(self, after: float, error: RelayError) -> None:
        """Until the next attempt: no sooner than the relay asked for, but for `retry_now`."""
        delay = after + self._pauses.next()
        self._nudge = trio.Event()
        self._enter(State.WAITING, error, delay)
        with trio.move_on_after(delay):
            await self._nudge.wait()

    async def _ask_for_token(self) -> str:
        """`TokenUnavailable`, `ClientClosed`."""
        refused = self._refused_token if self._reason == "refused" else None
        request = TokenRequest(self._reason, refused=refused)
        token = await ask_for_token(self._token, request, within=self._manners.token_timeout)
        if not token:
            raise ClientClosed("NO_TOKEN", "there is no token to authenticate with")
        if token == self._refused_token:
            raise ClientClosed("AUTH_FAILED", "the relay refused the token, and there is no other")
        return token

    async def _stay(self, token: str) -> Ending:
        """One connection, from its first packet to its end; `DialFailed`."""
        deadline = trio.current_time() + self._manners.open_timeout
        with trio.CancelScope(deadline=deadline) as opening:
            # A proxy may stumble over subprotocols: without luck, each third attempt goes without.
            plain = self._unopened % 3 == 2
            self._unopened += 1
            async with self._dial(() if plain else (MSGPACK, JSON)) as socket:
                self.clock.begin_connection()
                link = Link(socket, self._manners, self._on_event, self.clock)

                def turn(answer: Answer) -> None:
                    if not isinstance(answer, ServerError):  # what follows that is a Close
                        opening.deadline = math.inf
                        self._on_ready(link, answer)

                self.link = link
                link.authenticate(token, turn)
                try:
                    return await link.run()
                finally:
                    self.link = None
                    self.wants.lose()
        return Ending(None, "the relay did not answer in time")

    def _on_ready(self, link: Link, session: Fields) -> None:
        link.ready = True
        self._unopened = 0
        self._reason, self._refused_token = "connect", None
        self._pauses.arrived()
        self._on_session(session)
        self._enter(State.READY)
        self.wants.begin(link)

    def _on_session(self, session: Fields) -> None:
        self.session = read(Authenticated, session)
        self.wants.unread.put(self.session)

    def _on_event(self, event: Event) -> None:
        self.wants.take(event)
        link = self.link
        if isinstance(event, Notice) and event.code == "SESSION_EXPIRING" and link is not None:
            link.start(partial(self._renew, link, event.expires_at))

    async def _renew(self, link: Link, expires_at: int | None) -> None:
        """Renew the session on the living connection; where that fails, it ends in time."""
        request = TokenRequest("expiring", expires_at)
        renew = partial(link.start, partial(self._renew, link, expires_at))
        try:
            token = await ask_for_token(self._token, request, within=self._manners.token_timeout)
        except TokenUnavailable:
            link.later(self._manners.retry, renew)
            return

        def turn(answer: Answer) -> None:
            if not isinstance(answer, ServerError):
                self._on_session(answer)
            elif answer.code in PASSING:
                link.later(self._manners.until_retry(answer), renew)
            else:
                self.wants.unread.put(Problem(answer.code, answer.message))

        if token:
            link.authenticate(token, turn)

    def _enter(
        self, state: State, error: RelayError | None = None, retry_in: float | None = None
    ) -> None:
        first = state is self.state is State.CONNECTING
        if not first and state not in TRANSITIONS[self.state]:
            raise AssertionError(f"no way from {self.state} to {state}")
        self.state = state
        self.wants.unread.put(StateChange(state, error, retry_in))
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
