"""The connections behind the listeners, and how both are stopped. Floor 4."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

import structlog
import trio
from attrs import define, field

from relay.connection import Connection, Door
from relay.transport.listener import Listener
from relay.transport.stream import FrameStream

LEAST_SPREAD = 1000
SPREAD_EACH = 10
"""Milliseconds over which clients are asked to spread their return: at least, and per
connection."""

log = structlog.get_logger()


@define(eq=False)
class Server:
    """Accepts connections and serves each to its end."""

    door: Door
    draining: bool = False
    _connections: set[Connection] = field(factory=set)
    _numbers: count[int] = field(factory=lambda: count(1))
    _serving: trio.CancelScope = field(factory=trio.CancelScope)
    _accepting: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self, listeners: Sequence[Listener]) -> None:
        """Serve until drained or cancelled; the listeners are closed then."""
        with self._serving:
            async with trio.open_nursery() as nursery:
                with self._accepting:
                    await trio.serve_listeners(self.serve, list(listeners), handler_nursery=nursery)

    async def serve(self, stream: FrameStream) -> None:
        """Serve one connection to its end. Never raises."""
        deadline = trio.current_time() + self.door.timing.auth_timeout
        if self.draining:
            stream.abort()
            return
        connection = Connection(next(self._numbers), stream, self.door)
        self._connections.add(connection)
        try:
            await connection.run(deadline)
        finally:
            self._connections.discard(connection)

    def drain(self, timeout: float) -> None:
        """Stop accepting and ask all peers to come back later; `run` returns when they have left,
        or after so many seconds."""
        self.draining = True
        log.info("draining", connections=len(self._connections))
        spread = LEAST_SPREAD + SPREAD_EACH * len(self._connections)
        for connection in list(self._connections):
            connection.restart(random.randrange(spread))  # noqa: S311, no secret
        self._serving.deadline = trio.current_time() + timeout
        self._accepting.cancel()
