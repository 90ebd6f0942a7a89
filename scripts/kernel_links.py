"""Thin links of the kernel's own: between two network namespaces, with a token bucket filter (tbf)
and its queue at either end. Only root on Linux can make them; for scripts/figures.py."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio
from attrs import define, field

NETWORKS = "198.18"
"""Of the addresses for measurements (RFC 2544), one network for each link."""
BURST_BYTES = 5000
QUEUE_BYTES = 4 * 1024 * 1024
CLONE_NEWNET = 0x40000000
CONGESTION_CONTROL = "cubic"
"""The usual one, which fills queues, whatever this machine has as its default."""


def why_not() -> str | None:
    """Why there can be no such links here; None if there can."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} would have to be installed (iproute2)"
    return None


class NoNamespaces(Exception):
    """The kernel refuses to make a namespace, or a link in it."""


@define(eq=False)
class KernelLink:
    """One link, to a server that listens on all addresses of its namespace."""

    number: int
    _namespaces: Namespaces

    def set_rate(self, rate: float, *, up: bool) -> None:
        """Bytes a second, of Ethernet frames, with at most `QUEUE_BYTES` in front."""
        name = self._namespaces.clients if up else self._namespaces.server
        device = f"{'up' if up else 'down'}{self.number}"
        limits = ["rate", f"{rate * 8:.0f}bit", "burst", str(BURST_BYTES)]
        limits += ["limit", str(QUEUE_BYTES)]
        _run("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf", *limits)

    async def connect(self, port: int) -> trio.SocketStream:
        return await self._namespaces.connect(f"{NETWORKS}.{self.number}.1", port)


@define(eq=False)
class Namespaces:
    """That of a server, and that of its clients."""

    server: str
    clients: str
    _links: list[KernelLink] = field(factory=list)

    def add_link(self) -> KernelLink:
        number = len(self._links)
        down, up = f"down{number}", f"up{number}"
        ends = ["add", down, "netns", self.server, "type", "veth"]
        _run("ip", "link", *ends, "peer", "name", up, "netns", self.clients)
        for name, device, host in ((self.server, down, 1), (self.clients, up, 2)):
            network = f"{NETWORKS}.{number}"
            _run("ip", "-n", name, "address", "add", f"{network}.{host}/30", "dev", device)
            _run("ip", "-n", name, "link", "set", device, "up")
            # Of a route: a namespace may only have what is allowed for all of the machine.
            route = f"{network}.0/30", "dev", device, "congctl", CONGESTION_CONTROL
            _run("ip", "-n", name, "route", "replace", *route)
        link = KernelLink(number, self)
        self._links.append(link)
        return link

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """Connect to the server by a link; on its own loopback, from its own namespace."""
        with _inside(self.server if host == "127.0.0.1" else self.clients):
            connecting = trio.socket.socket()
        await connecting.connect((host, port))
        return trio.SocketStream(connecting)


@contextmanager
def open_namespaces() -> Iterator[Namespaces]:
    """Both are gone at the end, and all links with them; `NoNamespaces`."""
    name = f"relay-figures-{os.getpid()}"
    namespaces = Namespaces(f"{name}-server", f"{name}-clients")
    with ExitStack() as stack:
        for name in (namespaces.server, namespaces.clients):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield namespaces


def prefix(namespace: str) -> list[str]:
    """What runs a command in a namespace; the process is that of the command."""
    return ["ip", "netns", "exec", namespace]


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Be in a namespace: a socket stays in the one in which it was made. `os.setns` is of 3.12."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    own, there = Path("/proc/thread-self/ns/net"), Path("/run/netns", namespace)
    with own.open("rb") as before, there.open("rb") as inside:
        if setns(inside.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {there}")
        try:
            yield
        finally:
            if setns(before.fileno(), CLONE_NEWNET):
                raise SystemExit("cannot leave a network namespace")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespaces(f"{' '.join(command[:6])}: {done.stderr.strip()}")
