"""Accepts connections, serves them, and stops both."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, NoReturn, Protocol

import structlog
import trio
from attrs import define, field

from relay.connection.connection import Connection
from relay.connection.context import ConnectionContext
from relay.guard.client_address import ClientAddress
from relay.metrics import Limit
from relay.model.access.identity import Identity, User
from relay.protocol.endings import Ending
from relay.transport.acceptance import Acceptance
from relay.transport.input_lag import watch_input
from relay.transport.link import SocketLink
from relay.transport.stream import FrameStream

if TYPE_CHECKING:
    from relay.connection.relocation import Relocation

MIN_RETURN_SPREAD = 1000
RETURN_SPREAD_PER_CONNECTION = 10
"""Milliseconds over which clients are asked to spread their return when the server restarts: the
minimum, and for each connection."""

log = structlog.get_logger()


class Relocations(Protocol):
    """Asks the parent where viewers are served."""

    def send(self, relocation: Relocation) -> object:
        """Have the parent decide whether another worker serves a viewer, and settle it then."""

    def note_left(self, relocation: Relocation) -> object:
        """Note that this process does not serve a viewer, perhaps since it is about to end. What
        has happened to it here meanwhile concerns the worker that does."""


@define(eq=False, repr=False)
class Server:
    """Accepts connections and serves each until it ends."""

    context: ConnectionContext
    draining: bool = False
    on_drain: Callable[[], object] = field(default=lambda: None)
    """Called when it begins to drain."""
    relocations: Relocations | None = None
    """Takes viewers to other workers; None where there are none."""
    _connections: dict[int, Connection] = field(factory=dict)
    """By number."""
    _undecided: dict[int, Relocation] = field(factory=dict)
    """Viewers of which it is not decided whether they are served here, by number."""
    _nursery: trio.Nursery | None = None
    """Of the connections, while they are served."""
    _numbers: count[int] = field(factory=lambda: count(1))
    _serving: trio.CancelScope = field(factory=trio.CancelScope)
    _accepting: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self, listeners: Sequence[trio.abc.Listener[FrameStream]]) -> None:
        """Serve until drained or cancelled, and close the listeners."""
        with watch_input(), self._serving:
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    with self._accepting:
                        async with trio.open_nursery() as accepting:
                            for listener in listeners:
                                accepting.start_soon(self._accept, listener, nursery)
            finally:
                self._nursery = None

    async def _accept(
        self, listener: trio.abc.Listener[FrameStream], nursery: trio.Nursery
    ) -> NoReturn:
        """Accept connections, and serve them in the nursery. Closes the listener."""
        async with listener:
            while True:
                nursery.start_soon(self.serve, await listener.accept())

    async def serve(self, stream: FrameStream) -> None:
        """Serve one connection to its end, and close it. Never raises."""
        acceptance = stream.acceptance
        accepted_at = stream.last_received if acceptance is None else acceptance.accepted_at
        number = next(self._numbers) if acceptance is None else acceptance.number
        relocation = None
        try:
            if self.draining:
                stream.abort()
                return
            connection = self._connections[number] = Connection(number, stream, self.context)
            await connection.run(accepted_at + self.context.timing.auth_timeout)
            relocation = connection.relocation
        finally:
            self._connections.pop(number, None)
            if relocation is not None and acceptance is not None:
                self._send_away(relocation, acceptance)
            elif acceptance is not None:
                acceptance.left()

    def end(self, number: int, user_id: str | None = None) -> bool:
        """End the connection of this number, if it is of this user where one is named; whether
        there is one."""
        relocation = self._undecided.get(number)
        if relocation is not None and _is_user(relocation.identity, user_id):
            relocation.is_ended = True
            return True
        connection = self._connections.get(number)
        if connection is None or not _is_user(connection.peer.identity, user_id):
            return False
        connection.peer.end(Ending.ENDED_BY_OPERATOR)
        return True

    def revoke(self, number: int) -> None:
        """End a connection whose session was revoked while it came here."""
        relocation, connection = self._undecided.get(number), self._connections.get(number)
        if relocation is not None:
            relocation.revoked()
        elif connection is not None:
            connection.revoke()

    # -- viewers that go to another worker, or come from one

    def _send_away(self, relocation: Relocation, acceptance: Acceptance) -> None:
        """Ask the parent to have a viewer served by another worker."""
        assert self._nursery is not None
        assert self.relocations is not None
        self._undecided[relocation.number] = relocation
        self._nursery.start_soon(self._await_decision, relocation, acceptance)
        self.relocations.send(relocation)

    def receive(self, relocation: Relocation, acceptance: Acceptance) -> bool:
        """Be ready to serve a viewer of another worker, once the parent has decided; False if it
        cannot be served here."""
        if self.draining or self._nursery is None or not self._has_room_for(relocation):
            return False
        self._undecided[relocation.number] = relocation
        self.context.sessions.watch.enter(relocation)
        self._nursery.start_soon(self._await_decision, relocation, acceptance)
        return True

    def settle(self, number: int, *, ours: bool) -> None:
        """Go on with a viewer, or leave it to another worker, as the parent has decided."""
        relocation = self._undecided.get(number)
        if relocation is not None:
            relocation.settle(ours=ours)

    def abandon_relocations(self) -> None:
        """Leave all viewers to other workers of which nothing will be decided any more: the parent
        is gone, and may have given them away."""
        for relocation in self._undecided.values():
            relocation.settle(ours=False)

    def _has_room_for(self, relocation: Relocation) -> bool:
        """Whether this worker's limits would let a viewer in as those of its own would."""
        identity, guard = relocation.identity, self.context.guard
        user_id, key = _user_id(relocation), _address_key(relocation)
        coming = [(_address_key(each), _user_id(each)) for each in self._undecided.values()]
        if not guard.connections.has_room_for(key, user_id, coming):
            return False
        most = guard.session_limits.max_subscriptions_of_user
        of_user = sum(user == user_id for _, user in coming)
        return (
            most is None
            or user_id is None
            or self.context.sessions.hub.count_subscriptions_of(identity) + of_user < most
        )

    async def _await_decision(self, relocation: Relocation, acceptance: Acceptance) -> None:
        """Wait until the parent has decided where a viewer is served, and serve it if it is
        here."""
        number = relocation.number
        try:
            await relocation.decided.wait()
            if relocation.is_ours:
                # The other worker may stand still, and close its copy much later.
                link = SocketLink(
                    *(relocation.pick_up(), relocation.viewer.peer),
                    has_options=True,
                    is_shared=True,
                )
                stream = FrameStream(link, self.context.timing.idle_timeout, acceptance=acceptance)
                connection = self._connections[number] = Connection(number, stream, self.context)
                del self._undecided[number]
                await connection.run(math.inf, relocation)
        finally:
            self._connections.pop(number, None)
            self._undecided.pop(number, None)
            self.context.sessions.watch.leave(relocation)
            relocation.close()
            if relocation.is_ours:
                acceptance.left()
            elif self.relocations is not None:
                self.relocations.note_left(relocation)

    def crowd_out(self, number: int) -> None:
        """End the connection of this number, since too many of the machine are unauthenticated."""
        connection = self._connections.get(number)
        if connection is not None and connection.peer.identity is None:
            connection.peer.crowded_out(Limit.UNAUTHENTICATED)

    def drain(self, timeout: float) -> None:
        """Stop accepting and ask all peers to come back later. `run` returns when they have left,
        or after `timeout` seconds."""
        self.draining = True
        self.on_drain()
        log.info("draining", connections=len(self._connections))
        spread = MIN_RETURN_SPREAD + RETURN_SPREAD_PER_CONNECTION * len(self._connections)
        for connection in list(self._connections.values()):
            connection.restart(random.randrange(spread))  # noqa: S311, no secret
        for relocation in self._undecided.values():
            relocation.retry_after = random.randrange(spread)  # noqa: S311, no secret
        self._serving.deadline = trio.current_time() + timeout
        self._accepting.cancel()


def _address_key(relocation: Relocation) -> str:
    """What limits count a viewer's address by."""
    return ClientAddress.parse(relocation.viewer.address).key


def _user_id(relocation: Relocation) -> str | None:
    """The user that a viewer is; None for a service."""
    identity = relocation.identity
    return identity.user_id if isinstance(identity, User) else None


def _is_user(identity: Identity | None, user_id: str | None) -> bool:
    """Whether an identity is that of this user, where one is named."""
    return user_id is None or (isinstance(identity, User) and identity.user_id == user_id)
