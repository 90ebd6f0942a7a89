"""The doors for other nodes: a Unix socket for those of this machine, a port for the others.

A stranger learns nothing here. Who has not proven to be a node gets a short time and few bytes, is
one of few at a time, and is closed without a word.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field

from relay.cluster.links.handshake import LINK_STALL_TIMEOUT, Lookup, accept_node
from relay.cluster.links.identity import NodeIdentity
from relay.cluster.links.proof import LinkRefused, Preface
from relay.errors import ConfigError, RelayError
from relay.guard.client_address import ClientAddress
from relay.guard.rates import RateLimiter
from relay.logs.throttle import REPEAT_INTERVAL, ThrottledWarning
from relay.model.cluster import Node
from relay.transport.listener import BACKLOG, ListeningSocket, listening_sockets
from relay.transport.stream import FrameStream

PROOF_TIMEOUT = 2.0
"""Seconds from accepting a connection to its proof."""
MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS = 64, 8
"""Connections that have proven nothing yet."""
LOOKUP_RATE = "20/second"
"""Of questions to the database about nodes that are not known."""
MAX_SOCKET_PATH_BYTES = 103
"""Of the path of a Unix socket on macOS; Linux allows four more."""
MAX_SOCKET_NAME_BYTES = 21
"""Of the name of such a socket in its folder."""
FOLDER_PREFIX = "relay-"

T = TypeVar("T")
OnLink = Callable[[Node, FrameStream], Awaitable[object]]
"""Serves a link up to its end, and never raises; the link is closed then."""


@define(eq=False)
class Gate:
    """Bounds connections that have proven nothing, for one process."""

    whose: str = "cluster"
    """Begins its lines in the log."""
    _strangers: Counter[str] = field(init=False, factory=Counter)
    """By address."""
    _refused: ThrottledWarning = field(init=False)

    def __attrs_post_init__(self) -> None:
        event = f"{self.whose}: a connection was refused"
        self._refused = ThrottledWarning(event, min_interval=REPEAT_INTERVAL)

    async def admit(
        self, connection: socket.socket, prove: Callable[[socket.socket], Awaitable[T]]
    ) -> T | None:
        """Return what `prove` makes of a connection, if that is in time and there is room; else
        None, and the connection is closed."""
        address = _address_of(connection)
        try:
            with self._room_for(address):
                with trio.fail_after(PROOF_TIMEOUT):
                    return await prove(connection)
        except trio.TooSlowError:
            self._refuse(connection, address, f"no proof within {PROOF_TIMEOUT:g} s")
        except (LinkRefused, RelayError, OSError) as problem:
            self._refuse(connection, address, str(problem))
        except BaseException:
            _close(connection)
            raise
        return None

    @contextmanager
    def _room_for(self, address: str) -> Iterator[None]:
        strangers = self._strangers
        if strangers.total() >= MAX_STRANGERS or (
            address and strangers[address] >= MAX_STRANGERS_PER_ADDRESS
        ):
            raise LinkRefused("too many connections prove nothing")
        strangers[address] += 1
        try:
            yield
        finally:
            strangers[address] -= 1
            if not strangers[address]:
                del strangers[address]

    def _refuse(self, connection: socket.socket, address: str, why: str) -> None:
        _close(connection)
        self._refused.warn(f"{address or 'this machine'}: {why}")


@define(eq=False)
class ClusterDoors:
    """Accepts links from other nodes, for one node."""

    identity: NodeIdentity
    lookup: Lookup
    """Reads the database, at most 20 times a second."""
    tls: bool
    """Whether links over TCP are encrypted, as they are at all nodes."""
    known: Callable[[str], Node | None] = lambda _node_id: None
    """Finds a node without the database, if it can."""
    stall_timeout: float = LINK_STALL_TIMEOUT
    gate: Gate = field(factory=Gate)
    _lookups: RateLimiter = field(init=False, factory=lambda: RateLimiter(LOOKUP_RATE))

    async def run(self, listeners: Sequence[ListeningSocket], on_link: OnLink) -> None:
        """Accept links until cancelled; the listeners are closed then. `on_link` is called in a
        task for each."""
        await accept_sockets(listeners, partial(self.receive, on_link=on_link))

    async def receive(
        self, connection: socket.socket, preface: Preface | None = None, *, on_link: OnLink
    ) -> None:
        """Serve one accepted socket; with what was read of it already, where another process has
        accepted it and read the preface."""
        accepted = await self.gate.admit(connection, partial(self._accept, preface))
        if accepted is None:
            return
        node, stream = accepted
        try:
            await on_link(node, stream)
        finally:
            stream.close()

    async def _accept(
        self, preface: Preface | None, connection: socket.socket
    ) -> tuple[Node, FrameStream]:
        return await accept_node(
            connection,
            self.identity,
            self._find,
            tls=self.tls and connection.family != socket.AF_UNIX,
            preface=preface,
            stall_timeout=self.stall_timeout,
        )

    async def _find(self, node_id: str) -> Node | None:
        node = self.known(node_id)
        if node is None and self._lookups.hit("all") is None:
            node = await self.lookup(node_id)
        return node


async def accept_sockets(
    listeners: Sequence[ListeningSocket], serve: Callable[[socket.socket], Awaitable[object]]
) -> None:
    """Serve each connection in a task of its own, and close the listeners at the end. It is for
    those who pass connections on to other processes, too."""
    try:
        async with trio.open_nursery() as nursery:
            for each in listeners:
                nursery.start_soon(_accept_from, each, serve, nursery)
    finally:
        for each in listeners:
            with trio.move_on_after(1, shield=True):
                await each.aclose()


async def _accept_from(
    listener: ListeningSocket,
    serve: Callable[[socket.socket], Awaitable[object]],
    nursery: trio.Nursery,
) -> None:
    while True:
        connection, _ = await listener.accept_socket()
        connection.setblocking(False)  # noqa: FBT003 (positional only)
        nursery.start_soon(serve, connection)


async def listen_for_nodes(addresses: Sequence[tuple[str, int]]) -> list[ListeningSocket]:
    """Listen on pairs of host and port; raises `ConfigError`."""
    return [ListeningSocket(each) for each in await listening_sockets(addresses, "cluster_bind")]


def listen_here(folder: Path, node_id: str) -> tuple[ListeningSocket, str]:
    """Listen on a Unix socket in a folder that only this user may enter; its path, too."""
    path = str(folder / f"{node_id[: MAX_SOCKET_NAME_BYTES - 5]}.sock")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)  # noqa: FBT003 (positional only)
        bound.bind(path)
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return ListeningSocket(bound), path


@contextmanager
def socket_folder(preferred: Path | None = None) -> Iterator[Path]:
    """A new folder for Unix sockets that only this user may enter, in the preferred one if paths in
    it are short enough and it can be written to. Raises `ConfigError` where there is no place."""
    for parent in (preferred, Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm")):  # noqa: S108 (mkdtemp is safe there)
        if parent is None or not _is_short(parent):
            continue
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))  # its mode is 0700
            break
    else:
        raise ConfigError("there is no folder for the sockets of nodes: set TMPDIR to a short path")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_short(parent: Path) -> bool:
    """Whether there may be sockets in a folder there."""
    random_bytes, slashes = 8, 2
    name = len(FOLDER_PREFIX) + random_bytes + slashes + MAX_SOCKET_NAME_BYTES
    return len(os.fsencode(parent)) + name <= MAX_SOCKET_PATH_BYTES


def _address_of(connection: socket.socket) -> str:
    """As limits count it; empty for a process of this machine."""
    if connection.family == socket.AF_UNIX:
        return ""
    with suppress(OSError):  # it may be gone already
        return ClientAddress.parse(connection.getpeername()[0]).key
    return "unknown"


def _close(connection: socket.socket) -> None:
    if connection.fileno() >= 0:
        trio.lowlevel.notify_closing(connection)
        connection.close()
