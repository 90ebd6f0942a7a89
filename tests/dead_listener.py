"""An address that answers no connection attempt, as behind a firewall that drops packets."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import trio

FILL = 8
"""More connections than any system queues for a listener that asked for none."""
Address = tuple[str, int]


@contextmanager
def open_dead_listener(host: str = "127.0.0.1", port: int = 0) -> Iterator[Address]:
    """A listener with a full queue: the kernel drops what else wants to connect."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen(0)
        where = listener.getsockname()[:2]
        for _ in range(FILL):
            caller = sockets.enter_context(socket.socket(family, socket.SOCK_STREAM))
            caller.setblocking(False)
            caller.connect_ex(where)
        yield where


class Names(trio.abc.HostnameResolver):
    """One name, with these addresses in this order."""

    def __init__(self, name: str, addresses: Sequence[Address]) -> None:
        self._name = name.encode()
        self._addresses = addresses

    async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> Any:
        assert host == self._name
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port),
            )
            for address, port in self._addresses
        ]

    async def getnameinfo(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@contextmanager
def named(name: str, addresses: Sequence[Address]) -> Iterator[None]:
    """Let Trio find these addresses under this name."""
    before = trio.socket.set_custom_hostname_resolver(Names(name, addresses))
    try:
        yield
    finally:
        trio.socket.set_custom_hostname_resolver(before)
