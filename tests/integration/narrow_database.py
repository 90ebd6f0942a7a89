"""A way to Postgres whose answers take longer the larger they are, as if it had much to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import trio
from attrs import define
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.integration.cut_proxy import GONE
from tests.integration.relay_process import PATIENCE

LARGEST = 64 * 1024


@define(eq=False)
class NarrowDatabase:
    """What tests hold of it; it is served by a thread."""

    url: str
    """For the relay."""
    socket: str
    rate: float = 1e9
    """Bytes a second of each connection that come back."""

    async def serve(self, relay: trio.SocketStream) -> None:
        async with (
            relay,
            await trio.open_unix_socket(self.socket) as database,
            trio.open_nursery() as nursery,
        ):
            both, rate = nursery.cancel_scope, lambda: self.rate
            nursery.start_soon(self._pass, relay, database, both)
            nursery.start_soon(self._pass, database, relay, both, rate)

    async def _pass(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        both: trio.CancelScope,
        rate: Callable[[], float] = lambda: 1e9,
    ) -> None:
        try:
            while part := await source.receive_some(LARGEST):
                await trio.sleep(len(part) / rate())
                await sink.send_all(part)
        except GONE:
            pass
        both.cancel()


@contextmanager
def open_narrow_database(database_url: str) -> Iterator[NarrowDatabase]:
    """Open a way to a Postgres that listens on a Unix socket; it is wide at first."""
    known = conninfo_to_dict(database_url)
    socket = f"{known['host']}/.s.PGSQL.{known.get('port', 5432)}"
    opened: Future[tuple[NarrowDatabase, Callable[[], None]]] = Future()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            url = make_conninfo(database_url, host="127.0.0.1", port=port, sslmode="disable")
            way = NarrowDatabase(url, socket)
            await nursery.start(trio.serve_listeners, way.serve, [listener])
            token = trio.lowlevel.current_trio_token()
            opened.set_result((way, partial(token.run_sync_soon, nursery.cancel_scope.cancel)))

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(trio.run, run)
        way, close = opened.result(PATIENCE)
        try:
            yield way
        finally:
            close()
            ended.result()
