"""A way to Postgres that can catch a relay between the commit of alerts and hearing of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field
from psycopg.conninfo import conninfo_to_dict, make_conninfo

STORES, COMMIT = b"relay.store_alerts", b"commit\0"
LARGEST = 64 * 1024
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@define(eq=False)
class CommitTrap:
    """Passes on whatever comes, until it is armed. Then it keeps the answer to the next commit of
    alerts: these are stored, and their relay does not know."""

    url: str
    """For the relay."""
    _socket: str
    _armed: bool = False
    _caught: trio.Event = field(factory=trio.Event)

    async def catch(self) -> None:
        """Wait until a relay has committed alerts; it will not hear of it."""
        self._armed, self._caught = True, trio.Event()
        try:
            await self._caught.wait()
        finally:
            self._armed = False

    async def serve(self, client: trio.SocketStream) -> None:
        try:
            async with client, await trio.open_unix_socket(self._socket) as server:
                way = Way(self, client, server)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(way.there, nursery.cancel_scope)
                    nursery.start_soon(way.back, nursery.cancel_scope)
        except* GONE:
            pass

    def is_armed(self) -> bool:
        return self._armed

    def caught(self) -> None:
        self._caught.set()


@define(eq=False)
class Way:
    """One connection."""

    _trap: CommitTrap
    _client: trio.abc.Stream
    _server: trio.abc.Stream
    _before: bytes = b""
    _stores: bool = False
    """Whether its transaction has stored alerts."""
    _held: bool = False

    async def there(self, both: trio.CancelScope) -> None:
        while part := bytes(await self._client.receive_some(LARGEST)):
            if STORES in self._before + part:
                self._stores = True
            if part.endswith(COMMIT):
                self._held = self._stores and self._trap.is_armed()
                self._stores = False
            self._before = part[-len(STORES) :]
            await self._server.send_all(part)
        both.cancel()

    async def back(self, both: trio.CancelScope) -> None:
        while part := bytes(await self._server.receive_some(LARGEST)):
            if self._held:
                self._trap.caught()
                await trio.sleep_forever()
            await self._client.send_all(part)
        both.cancel()


@asynccontextmanager
async def open_commit_trap(database_url: str) -> AsyncIterator[CommitTrap]:
    """One in front of a Postgres that listens on a Unix socket, as the embedded one does."""
    database = conninfo_to_dict(database_url)
    socket = f"{database['host']}/.s.PGSQL.{database.get('port', 5432)}"
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    url = make_conninfo(database_url, host="127.0.0.1", port=port, sslmode="disable")
    trap = CommitTrap(url, socket)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, trap.serve, listeners)
        yield trap
        nursery.cancel_scope.cancel()
