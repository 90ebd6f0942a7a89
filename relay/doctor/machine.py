"""The machine: files, the port, the certificate, and the disk. Floor 6.

What asks the file system runs in a thread that is given up at the deadline: a disk that hangs must
not hang the rest.
"""

from __future__ import annotations

import errno
import resource
import shutil
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import trio
from attrs import frozen
from cryptography import x509

from relay.auth.keys import read_public_key
from relay.doctor.checks import Check, Finding, fail, ok, warn
from relay.guard.address import ClientAddress, Proxies, parse_networks
from relay.guard.files import SPARE
from relay.settings import Address, Settings
from relay.token_settings import algorithms_of
from relay.transport.certificate import Certificate

RENEW_WITHIN = timedelta(days=14)
LITTLE, TOO_LITTLE = 1 << 30, 100 << 20
"""Bytes that are free."""
MOST_ANSWER = 64 * 1024
HEALTHY = b'{"status":"ok"}'
ANSWER_PATIENCE = 3.0
"""Seconds for what listens on our port, in plain and again over TLS."""
LOOPBACK = parse_networks(["127.0.0.0/8", "::1"])


@frozen
class MachineChecks:
    """The checks of what is here."""

    _settings: Settings

    def checks(self) -> list[Check]:
        settings = self._settings
        checks = [
            Check("files", _in_thread(self._files), ("max_connections", "max_unauthenticated")),
            Check("port", self._port, ("bind", "trusted_proxies", "proxy_protocol")),
            Check(
                "tls",
                _in_thread(self._tls),
                ("tls_certificate", "tls_key", "dev_tls", "bind", "trusted_proxies"),
                "let tls_certificate and tls_key name a certificate and its key in PEM, readable"
                " for the user that relay runs as",
            ),
        ]
        if settings.jwt_public_key is not None:
            checks.append(
                Check(
                    "jwt-key",
                    _in_thread(self._jwt_key),
                    ("jwt_public_key", "jwt_algorithms"),
                    "let jwt_public_key name the issuer's public key in PEM",
                )
            )
        if settings.database_url is None:
            do = "see whether data_dir can be reached"
            checks.append(Check("disk", _in_thread(self._disk), ("data_dir",), do))
        return checks

    def _files(self) -> Finding:
        wanted = self._settings.max_connections + self._settings.max_unauthenticated + SPARE
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or hard >= wanted:
            allowed = "any number of" if hard == resource.RLIM_INFINITY else f"{hard}"
            return ok(f"{allowed} files may be open here, and relay wants {wanted} at most")
        return warn(
            f"{hard} files may be open here, and max_connections and max_unauthenticated want"
            f" {wanted}",
            f"raise the hard limit (LimitNOFILE={wanted} in a unit of systemd, ulimit -Hn in a"
            " shell), or lower max_connections",
        )

    async def _port(self) -> Finding:
        """Whether relay could listen where it should, or does already."""
        told: list[str] = []
        for address in self._settings.addresses:
            problem = await _try_to_bind(address)
            where = _written(address)
            if problem is None:
                told.append(f"{where} is free" if address.port else f"{where} is any free port")
            elif problem.errno == errno.EADDRINUSE:
                if not await self._relay_answers(address):
                    return fail(
                        f"{where} is in use, by something that does not answer as a relay",
                        "end what listens there (ss -ltnp, lsof -i), or choose another bind",
                    )
                told.append(f"a relay answers at {where}")
            elif problem.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                told.append(f"this machine has no {address.host}")
                if len(self._settings.addresses) == 1:
                    return fail(told[0], "let bind name an address of this machine, or 0.0.0.0")
            elif problem.errno == errno.EACCES:
                return fail(
                    f"{where} may not be used by this user",
                    "choose a port from 1024 on, or give relay CAP_NET_BIND_SERVICE (Linux)",
                )
            else:
                return fail(f"{where}: {problem.strerror}", "see what bind says")
        return ok(", ".join(told))

    async def _relay_answers(self, address: Address) -> bool:
        """Whether what listens there says what a relay says, in plain or over TLS."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 (asked, not bound)
        proxies = Proxies(
            parse_networks(self._settings.trusted_proxies), self._settings.proxy_protocol
        )
        header = b"PROXY UNKNOWN\r\n" if proxies.owe_header(ClientAddress.parse(host)) else b""
        for encrypted in (False, True):
            with trio.move_on_after(ANSWER_PATIENCE):
                try:
                    answer = await _get_health(host, address.port, header, encrypted=encrypted)
                except (OSError, trio.BrokenResourceError):
                    continue
                if answer.startswith(b"HTTP/1.1 200") and answer.endswith(HEALTHY):
                    return True
                if b'"UNAUTHORIZED"' in answer:  # its lists leave this machine out
                    return True
        return False

    def _tls(self) -> Finding:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return self._without_certificate()
        Certificate(settings.tls_certificate, settings.tls_key)  # or it says what is wrong
        try:
            chain = x509.load_pem_x509_certificates(settings.tls_certificate.read_bytes())
        except ValueError:
            return fail(f"{settings.tls_certificate} has what is no certificate", "mend the file")
        now = datetime.now(UTC)
        first = min(chain, key=lambda each: each.not_valid_after_utc)
        until, since = first.not_valid_after_utc, max(each.not_valid_before_utc for each in chain)
        if since > now:
            return fail(
                f"the certificate holds from {since:%Y-%m-%d %H:%M} UTC on",
                "wait, or see whether the clock is right",
            )
        left = until - now
        told = f"the certificate and its key belong together; it holds until {until:%Y-%m-%d}"
        if left <= timedelta():
            return fail(
                f"the certificate ended on {until:%Y-%m-%d}", "renew it, then send relay SIGHUP"
            )
        if left < RENEW_WITHIN:
            do = "renew it, then send relay SIGHUP; and see why that did not happen by itself"
            return warn(f"{told}, which is in {left.days} days", do)
        return ok(told)

    def _without_certificate(self) -> Finding:
        settings = self._settings
        if settings.dev_tls:
            return ok("TLS with a certificate for development, which devices must trust")
        if all(ClientAddress.parse(each.host).is_in(LOOPBACK) for each in settings.addresses):
            return ok("no TLS, and only this machine can connect")
        if settings.trusted_proxies:
            return ok("no TLS here; the trusted proxies have to speak it")
        return warn(
            "no TLS, and other machines can connect: tokens cross the network in the clear",
            "set tls_certificate and tls_key, or put a proxy that speaks TLS in front and name it"
            " in trusted_proxies",
        )

    def _jwt_key(self) -> Finding:
        assert self._settings.jwt_public_key is not None
        read_public_key(self._settings.jwt_public_key, algorithms_of(self._settings))
        return ok("jwt_public_key is a key for jwt_algorithms")

    def _disk(self) -> Finding:
        folder = self._settings.data_folder
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        free = shutil.disk_usage(there).free
        told = f"{_size(free)} are free for {folder}"
        do = "make room, or move data_dir: without room no alert can be stored"
        if free < TOO_LITTLE:
            return fail(told, do)
        return warn(told, do) if free < LITTLE else ok(told)


def _in_thread(look: Callable[[], Finding]) -> Callable[[], Awaitable[Finding]]:
    async def in_thread() -> Finding:
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    return in_thread


async def _try_to_bind(address: Address) -> OSError | None:
    """What keeps a socket from being bound there; it is not listened on."""
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
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # nothing is told
            stream = trio.SSLStream(tcp, trusting, server_hostname=host)
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
        answer = bytearray()
        while len(answer) < MOST_ANSWER:
            try:
                data = await stream.receive_some()
            except trio.BrokenResourceError:
                break  # the end of TLS without a goodbye
            if not data:
                break
            answer += data
        return bytes(answer)


def _written(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
