"""Accepts connections, serves them, and stops both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

import structlog
import trio
from attrs import define, field

from relay.connection.connection import Connection
from relay.connection.context import ConnectionContext
from relay.connection.peer import Peer
from relay.model.identity import User
from relay.protocol.endings import Ending
from relay.transport.input_lag import watch_input
from relay.transport.listener import TcpListener
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
    _connections: set[Connection] = field(factory=set)
    _numbers: count[int] = field(factory=lambda: count(1))
    _serving: trio.CancelScope = field(factory=trio.CancelScope)
    _accepting: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self, listeners: Sequence[TcpListener]) -> None:
        """Serve until drained or cancelled, and close the listeners."""
        with watch_input(), self._serving:
            async with trio.open_nursery() as nursery:
                with self._accepting:
                    await trio.serve_listeners(self.serve, list(listeners), handler_nursery=nursery)

    async def serve(self, stream: FrameStream) -> None:
        """Serve one connection to its end. Never raises."""
        deadline = trio.current_time() + self.context.timing.auth_timeout
        if self.draining:
            stream.abort()
            return
        connection = Connection(next(self._numbers), stream, self.context)
        self._connections.add(connection)
        try:
            await connection.run(deadline)
        finally:
            self._connections.discard(connection)

    def end(self, number: int, user_id: str | None = None) -> bool:
        """End the connection of this number, if it is of this user where one is named; whether
        there is one."""
        for connection in self._connections:
            peer = connection.peer
            if peer.number == number and _is_of(peer, user_id):
                peer.end(Ending.ENDED_BY_OPERATOR)
                return True
        return False

    def drain(self, timeout: float) -> None:
        """Stop accepting and ask all peers to come back later. `run` returns when they have left,
        or after `timeout` seconds."""
        self.draining = True
        log.info("draining", connections=len(self._connections))
        spread = MIN_RETURN_SPREAD + RETURN_SPREAD_PER_CONNECTION * len(self._connections)
        for connection in list(self._connections):
            connection.restart(random.randrange(spread))  # noqa: S311, no secret
        self._serving.deadline = trio.current_time() + timeout
        self._accepting.cancel()


def _is_of(peer: Peer, user_id: str | None) -> bool:
    identity = peer.identity
    return user_id is None or (isinstance(identity, User) and identity.user_id == user_id)
