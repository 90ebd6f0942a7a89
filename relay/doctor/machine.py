"""Checks of the machine: open files, the port, the certificate and the disk.

Checks that use the file system run in threads, which are abandoned at the deadline: a disk that
hangs must not delay the other checks.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio
from attrs import frozen
from cryptography import x509

from relay.auth.methods.keys import read_public_key
from relay.doctor.checks import DoctorCheck, Finding, fail, ok, warn
from relay.guard.client_address import ClientAddress, Proxies, parse_networks
from relay.postgres.embedded.folder import DataFolder
from relay.process.rlimit import SPARE_FILES
from relay.settings.settings import BindAddress, Settings
from relay.settings.tokens import algorithms_of
from relay.transport.certificate import DEV_TLS_FOLDER, Certificate

RENEW_WITHIN = timedelta(days=14)
LOW_DISK, MIN_DISK = 1 << 30, 100 << 20
"""Free bytes below which there is a warning, and a failure."""
MAX_HEALTH_BYTES = 64 * 1024
HEALTHY = b'{"status":"ok"}'
HEALTH_TIMEOUT = 3.0
"""Seconds for whatever listens on the port, without TLS and again with it."""
LOOPBACK = parse_networks(["127.0.0.0/8", "::1"])


@frozen
class MachineChecks:
    """The checks of this machine."""

    _settings: Settings

    def checks(self) -> list[DoctorCheck]:
        settings = self._settings
        checks = [
            DoctorCheck(
                "files", in_thread(self._files), ("max_connections", "max_unauthenticated")
            ),
            DoctorCheck("port", self._port, ("bind", "trusted_proxies", "proxy_protocol")),
            DoctorCheck(
                "tls",
                in_thread(self._tls),
                ("tls_certificate", "tls_key", "dev_tls", "bind", "trusted_proxies"),
                "set tls_certificate and tls_key to a certificate and its key (PEM), which the user"
                " of relay must be able to read",
            ),
        ]
        if settings.jwt_public_key is not None:
            checks.append(
                DoctorCheck(
                    "jwt-key",
                    in_thread(self._jwt_key),
                    ("jwt_public_key", "jwt_algorithms"),
                    "set jwt_public_key to the public key of the issuer (PEM)",
                )
            )
        if settings.database_url is None or settings.dev_tls:
            do = "check that data_dir is accessible"
            checks.append(DoctorCheck("disk", in_thread(self._disk), ("data_dir",), do))
        return checks

    def _files(self) -> Finding:
        wanted = self._settings.max_connections + self._settings.max_unauthenticated + SPARE_FILES
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or hard >= wanted:
            allowed = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard}"
            return ok(f"the limit of open files is {allowed}, and relay needs at most {wanted}")
        return warn(
            f"the limit of open files is {hard}, and max_connections and max_unauthenticated need"
            f" {wanted}",
            f"raise the hard limit (LimitNOFILE={wanted} in a systemd unit, ulimit -Hn in a shell),"
            " or lower max_connections",
        )

    async def _port(self) -> Finding:
        """Whether relay can listen on its addresses, or already does."""
        told: list[str] = []
        for address in self._settings.addresses:
            problem = await try_to_bind(address)
            where = host_port(address)
            if problem is None:
                told.append(f"{where} is free" if address.port else f"{where}: any free port")
            elif problem.errno == errno.EADDRINUSE:
                if not await self.relay_answers(address):
                    return fail(
                        f"{where} is in use by another program",
                        "stop that program (ss -ltnp or lsof -i finds it), or change bind",
                    )
                told.append(f"a relay answers at {where}")
            elif problem.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                told.append(f"this machine does not have the address {address.host}")
                if len(self._settings.addresses) == 1:
                    return fail(told[0], "set bind to an address of this machine, or to 0.0.0.0")
            elif problem.errno == errno.EACCES:
                return fail(
                    f"this user may not listen on {where}",
                    "use a port above 1023, or give relay CAP_NET_BIND_SERVICE (Linux)",
                )
            else:
                return fail(f"{where}: {problem.strerror}", "change bind")
        return ok(", ".join(told))

    async def relay_answers(self, address: BindAddress) -> bool:
        """Whether a relay answers there, with or without TLS."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 (asked, not bound)
        proxies = Proxies(
            parse_networks(self._settings.trusted_proxies), self._settings.proxy_protocol
        )
        header = b"PROXY UNKNOWN\r\n" if proxies.owe_header(ClientAddress.parse(host)) else b""
        for encrypted in (False, True):
            with trio.move_on_after(HEALTH_TIMEOUT):
                try:
                    answer = await _get_health(host, address.port, header, encrypted=encrypted)
                except (OSError, trio.BrokenResourceError):
                    continue
                if answer.startswith(b"HTTP/1.1 200") and answer.endswith(HEALTHY):
                    return True
                if b'"UNAUTHORIZED"' in answer:  # its access lists reject this machine
                    return True
        return False

    def _tls(self) -> Finding:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return self._without_certificate()
        Certificate(
            settings.tls_certificate, settings.tls_key
        )  # raises an error that says what is wrong
        try:
            chain = x509.load_pem_x509_certificates(settings.tls_certificate.read_bytes())
        except ValueError:
            return fail(
                f"{settings.tls_certificate} contains something that is not a certificate",
                "correct the file",
            )
        now = datetime.now(UTC)
        first = min(chain, key=lambda each: each.not_valid_after_utc)
        until, since = first.not_valid_after_utc, max(each.not_valid_before_utc for each in chain)
        if since > now:
            return fail(
                f"the certificate is not valid before {since:%Y-%m-%d %H:%M} UTC",
                "wait until then, or check the clock",
            )
        left = until - now
        told = f"the certificate matches its key and is valid until {until:%Y-%m-%d}"
        if left <= timedelta():
            return fail(
                f"the certificate expired on {until:%Y-%m-%d}",
                "renew it, then send SIGHUP to relay",
            )
        if left < RENEW_WITHIN:
            do = "renew it, then send SIGHUP to relay; check why it was not renewed automatically"
            return warn(f"{told}, for {left.days} more days", do)
        return ok(told)

    def _without_certificate(self) -> Finding:
        settings = self._settings
        if settings.dev_tls:
            return ok("TLS with a development certificate, which devices must be told to trust")
        if all(ClientAddress.parse(each.host).is_in(LOOPBACK) for each in settings.addresses):
            return ok("no TLS, and only this machine can connect")
        if settings.trusted_proxies:
            return ok("no TLS; the trusted proxies must provide it")
        return warn(
            "no TLS, and other machines can connect: tokens are sent unencrypted",
            "set tls_certificate and tls_key, or put a TLS proxy in front and list it in"
            " trusted_proxies",
        )

    def _jwt_key(self) -> Finding:
        assert self._settings.jwt_public_key is not None
        read_public_key(self._settings.jwt_public_key, algorithms_of(self._settings))
        return ok("jwt_public_key fits jwt_algorithms")

    def _disk(self) -> Finding:
        folder = self._settings.data_folder
        for written in self._written_folders(folder):
            there = nearest_folder(written)
            if not os.access(there, os.W_OK | os.X_OK):
                return fail(
                    f"this user may not write to {there}, and relay keeps its data in {written}",
                    "set data_dir to a folder that relay may write to",
                )
        free = shutil.disk_usage(nearest_folder(folder)).free
        told = f"{size_in_words(free)} free for {folder}"
        do = "free disk space, or move data_dir: alerts cannot be stored on a full disk"
        if free < MIN_DISK:
            return fail(told, do)
        return warn(told, do) if free < LOW_DISK else ok(told)

    def _written_folders(self, folder: Path) -> Iterator[Path]:
        yield folder
        if self._settings.dev_tls:
            yield folder / DEV_TLS_FOLDER
        if self._settings.database_url is None:
            yield DataFolder(folder.resolve()).socket.parent


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest of its parents that is there."""
    while not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    return folder


def in_thread(look: Callable[[], Finding]) -> Callable[[], Awaitable[Finding]]:
    """Make a check of a function that uses the file system."""

    async def run() -> Finding:
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    return run


async def try_to_bind(address: BindAddress) -> OSError | None:
    """Bind a socket without listening; returns the error, or None."""
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, name = found[0]
        with trio.socket.socket(family, kind, protocol) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await bound.bind(name)
    except OSError as problem:
        return problem
    return None


async def _get_health(host: str, port: int, header: bytes, *, encrypted: bool) -> bytes:
    async with await trio.open_tcp_stream(host, port) as tcp:
        stream: trio.abc.Stream = tcp
        await tcp.send_all(header)
        if encrypted:
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = (
                False,
                ssl.CERT_NONE,
            )  # no secret is sent
            stream = trio.SSLStream(tcp, trusting, server_hostname=host)
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
        answer = bytearray()
        while len(answer) < MAX_HEALTH_BYTES:
            try:
                data = await stream.receive_some()
            except trio.BrokenResourceError:
                break  # the TLS connection was not closed properly
            if not data:
                break
            answer += data
        return bytes(answer)


def host_port(address: BindAddress) -> str:
    """The address as `HOST:PORT`."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def size_in_words(count: int) -> str:
    """A number of bytes, such as `1.5 GiB`."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
