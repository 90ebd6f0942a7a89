"""Checks of what relays need that serve together: their port, their addresses, and each other."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import trio
from attrs import frozen

from relay.cluster.setup import advertised
from relay.doctor.checks import DoctorCheck, Finding, fail, ok, skip, warn
from relay.doctor.machine import LOOPBACK, MachineChecks, host_port, in_thread, try_to_bind
from relay.errors import StoreForbids, StoreLacks
from relay.guard.client_address import ClientAddress
from relay.model.cluster import SeenNode
from relay.postgres.address import DatabaseAddress
from relay.postgres.database import Database
from relay.postgres.tables.nodes import NodeTable
from relay.settings.settings import BindAddress, Settings
from relay.transport.link import UNIX_SEND_BUFFER_BYTES

NODE_CONNECT_TIMEOUT = 1.0
"""Seconds for a connection to another node."""
WMEM_MAX = Path("/proc/sys/net/core/wmem_max")
"""The largest send buffer that a socket may ask for, on Linux."""
CLUSTER_SETTINGS = ("bind", "trusted_proxies", "cluster_bind", "cluster_advertise", "database_url")


@frozen
class ClusterChecks:
    """The checks of this machine as one of several, or of its workers; none where it is alone."""

    _settings: Settings

    def checks(self) -> list[DoctorCheck]:
        checks = []
        if self._settings.cluster_addresses:
            checks.append(DoctorCheck("cluster-port", self._port, CLUSTER_SETTINGS))
        if self._settings.workers > 1:
            checks.append(DoctorCheck("sockets", in_thread(look_at_buffers), ("workers",)))
        return checks

    async def _port(self) -> Finding:
        """Whether relay can listen for other nodes, and what it tells them."""
        told = []
        for address in self._settings.cluster_addresses:
            where, problem = host_port(address), await try_to_bind(address)
            if problem is None:
                told.append(f"{where} is free" if address.port else f"{where}: any free port")
            elif problem.errno != errno.EADDRINUSE:
                return fail(f"{where}: {problem.strerror}", "change cluster_bind")
            elif not await self._relay_runs():
                return fail(
                    f"{where} is in use by another program",
                    "stop that program (ss -ltnp or lsof -i finds it), or change cluster_bind",
                )
            else:
                told.append(f"{where} is in use, and a relay runs here")
        return await self._look_at_address(", ".join(told), self._settings.cluster_addresses[0])

    async def _relay_runs(self) -> bool:
        machine = MachineChecks(self._settings)
        for address in self._settings.addresses:
            if await machine.relay_answers(address):
                return True
        return False

    async def _look_at_address(self, told: str, bound: BindAddress) -> Finding:
        """Whether other machines are told an address that may lead here."""
        url = self._settings.database_url
        host = None if url is None else DatabaseAddress.parse(url, connect_timeout=1.0).host
        address = await trio.to_thread.run_sync(
            advertised, self._settings, (bound.host, bound.port), host, abandon_on_cancel=True
        )
        told = f"{told}; other relays are told {address}"
        if not _is_loopback(address) or _is_loopback(host_port(bound)):
            return ok(told)
        return warn(
            f"{told}, which leads them to themselves",
            "set cluster_advertise to an address that other machines can reach, or let database_url"
            " name the database by an address of the inner network",
        )


def look_at_buffers() -> Finding:
    """Whether a socket between workers may have as much room as it should."""
    try:
        most = int(WMEM_MAX.read_text("ascii"))
    except (OSError, ValueError):
        return ok("this system does not say how large a socket's buffer may be")
    if most >= UNIX_SEND_BUFFER_BYTES:
        return ok(f"sockets between workers may have {most} bytes of buffer")
    return warn(
        f"sockets between workers may have {most} bytes of buffer, so workers that are busy lose"
        " frames for each other's viewers",
        f"sysctl -w net.core.wmem_max={UNIX_SEND_BUFFER_BYTES}, and the same in /etc/sysctl.d",
    )


async def look_at_nodes(database: Database) -> Finding:
    """Whether this machine reaches the other nodes, and they are of one version."""
    try:
        seen = [each for each in await NodeTable(database).seen() if each.state != "silent"]
    except (StoreLacks, StoreForbids):
        return skip("not checked: see tables")
    if not seen:
        return ok("no relay serves together with others now")
    told = f"{len(seen)} nodes on {len({each.node.machine for each in seen})} machines"
    if unreachable := await _unreachable(seen):
        return fail(
            f"{told}; this machine cannot connect to {', '.join(unreachable)}",
            "let each machine connect to the cluster_bind of the others (firewalls), and see that"
            " `relay nodes` shows addresses that lead there (cluster_advertise)",
        )
    versions = sorted({each.node.version for each in seen})
    if len(versions) > 1:
        return warn(f"{told}, of the versions {', '.join(versions)}", "finish the upgrade")
    return ok(f"{told}, all of version {versions[0]}; this one can connect to them")


async def _unreachable(seen: Sequence[SeenNode]) -> list[str]:
    """The addresses of nodes that do not accept a connection."""
    addresses = sorted({each.node.address for each in seen if each.node.address is not None})
    failed = []

    async def connect(address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            with trio.fail_after(NODE_CONNECT_TIMEOUT):
                await (await trio.open_tcp_stream(host.strip("[]"), int(port))).aclose()
        except (OSError, ValueError, trio.TooSlowError):
            failed.append(address)

    async with trio.open_nursery() as nursery:
        for each in addresses:
            nursery.start_soon(connect, each)
    return sorted(failed)


def _is_loopback(address: str | None) -> bool:
    if address is None:
        return False
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or ClientAddress.parse(host).is_in(LOOPBACK)
