"""Accepts connections, serves them, and stops both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count

import structlog
import trio
from attrs import define, field

from relay.connection.connection import Connection
from relay.connection.context import ConnectionContext
from relay.connection.peer import Peer
from relay.metrics import Limit
from relay.model.identity import User
from relay.protocol.endings import Ending
from relay.transport.input_lag import watch_input
from relay.transport.stream import FrameStream

MIN_RETURN_SPREAD = 1000
RETURN_SPREAD_PER_CONNECTION = 10
"""Milliseconds over which clients are asked to spread their return when the server restarts: the
minimum, and for each connection."""

log = structlog.get_logger()


@define(eq=False)
class Server:
    """Accepts connections and serves each until it ends."""

    context: ConnectionContext
    draining: bool = False
    on_drain: Callable[[], object] = field(default=lambda: None)
    """Called when it begins to drain."""
    _connections: dict[int, Connection] = field(factory=dict)
    """By number."""
    _numbers: count[int] = field(factory=lambda: count(1))
    _serving: trio.CancelScope = field(factory=trio.CancelScope)
    _accepting: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self, listeners: Sequence[trio.abc.Listener[FrameStream]]) -> None:
        """Serve until drained or cancelled, and close the listeners."""
        with watch_input(), self._serving:
            async with trio.open_nursery() as nursery:
                with self._accepting:
                    await trio.serve_listeners(self.serve, list(listeners), handler_nursery=nursery)

    async def serve(self, stream: FrameStream) -> None:
        """Serve one connection to its end. Never raises."""
        acceptance = stream.acceptance
        accepted_at = trio.current_time() if acceptance is None else acceptance.accepted_at
        number = next(self._numbers) if acceptance is None else acceptance.number
        try:
            if self.draining:
                stream.abort()
                return
            connection = self._connections[number] = Connection(number, stream, self.context)
            await connection.run(accepted_at + self.context.timing.auth_timeout)
        finally:
            self._connections.pop(number, None)
            if acceptance is not None:
                acceptance.left()

    def end(self, number: int, user_id: str | None = None) -> bool:
        """End the connection of this number, if it is of this user where one is named; whether
        there is one."""
        connection = self._connections.get(number)
        if connection is None or not _is_of(connection.peer, user_id):
            return False
        connection.peer.end(Ending.ENDED_BY_OPERATOR)
        return True

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
        self._serving.deadline = trio.current_time() + timeout
        self._accepting.cancel()


def _is_of(peer: Peer, user_id: str | None) -> bool:
    identity = peer.identity
    return user_id is None or (isinstance(identity, User) and identity.user_id == user_id)
