"""Loads and reloads the TLS certificate of the server, or makes one for development."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import structlog
from attrs import define, field

from relay.errors import ConfigError

DEV_TLS_FOLDER = "dev-tls"
"""The folder within the data folder that keeps a development certificate."""

log = structlog.get_logger()


@define(eq=False, repr=False)
class Certificate:
    """A certificate chain and its key, in PEM files."""

    chain: Path
    key: Path
    context: ssl.SSLContext = field(init=False)
    """For connections accepted from now on."""

    def __attrs_post_init__(self) -> None:
        self.context = self._load()

    def reload(self) -> None:
        """Read the files again, for connections accepted from now on. When they are invalid, keep
        the old certificate and log the reason. Never raises."""
        try:
            self.context = self._load()
        except ConfigError as problem:
            log.error("certificate not reloaded", problem=str(problem))  # noqa: TRY400 (not a bug)
        else:
            log.info("certificate reloaded", chain=str(self.chain))

    def _load(self) -> ssl.SSLContext:
        """Raises `ConfigError`, which names the file and the problem."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        # Over HTTP/2, a WebSocket would bypass this server's own handling.
        context.set_alpn_protocols(["http/1.1"])
        for path in (self.chain, self.key):
            if not (os.access(path, os.R_OK) and path.is_file()):
                raise ConfigError(f"TLS: {path} cannot be read")
        try:
            # Never prompt for the password of an encrypted key.
            context.load_cert_chain(self.chain, self.key, password=_no_password)
        except ssl.SSLError as problem:
            why = problem.reason or problem
            raise ConfigError(
                f"TLS: {self.chain} and {self.key} are no certificate and its key: {why}"
            ) from None
        except OSError as problem:  # the file vanished in between
            raise ConfigError(
                f"TLS: {self.chain} or {self.key} cannot be read: {problem.strerror}"
            ) from None
        return context


def _no_password() -> str:
    raise ConfigError("TLS: the key is encrypted, and there is no way to give its password")


def make_development_certificate(folder: Path) -> tuple[Certificate, Path]:
    """Make a certificate for the names and addresses of this machine, and the authority that phones
    must trust.

    Both are made once and kept in the folder.
    """
    import trustme  # noqa: PLC0415, rarely needed

    chain, key, authority = (folder / name for name in ("chain.pem", "key.pem", "authority.pem"))
    if not (chain.exists() and key.exists() and authority.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        made = trustme.CA(organization_name="relay development")
        issued = made.issue_cert(*_names_of_this_machine())
        made.cert_pem.write_to_path(authority)
        chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.touch(mode=0o600)
        key.write_bytes(issued.private_key_pem.bytes())
    return Certificate(chain, key), authority


def _names_of_this_machine() -> list[str]:
    host = socket.gethostname()
    names = ["localhost", "127.0.0.1", "::1", host, f"{host}.local"]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    names += [str(address[4][0]) for address in found if "%" not in str(address[4][0])]
    # The address that others in the network see. Connecting a UDP socket sends nothing.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            names.append(probe.getsockname()[0])
        except OSError:
            pass
    return list(dict.fromkeys(names))
