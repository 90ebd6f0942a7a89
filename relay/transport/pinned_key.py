"""A key whose other side knows its certificate byte by byte, so that no authority is needed.

`ssl` takes a private key only from a file: it gets it through a pipe, which no folder has an entry
for; where that does not work, from a file in a folder that only this user may enter, and that is
deleted at once.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

_LONG_AGO, _NEVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""A certificate is good as long as somebody pins it, whatever the clocks of machines say."""


class BadCertificate(Exception):
    """A text is no certificate."""


@frozen
class PinnedKey:
    """A certificate, with its private key."""

    certificate_pem: str
    _key: Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Sign with the private key; 64 bytes."""
        return self._key.sign(data)

    def server_context(self, peer_certificate: str) -> ssl.SSLContext:
        """For one handshake, with the one that has this certificate (PEM) and calls us; raises
        `BadCertificate`."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, peer_certificate)
        context.num_tickets = 0  # nobody resumes: the next handshake has a context of its own
        return context

    def client_context(self, peer_certificate: str) -> ssl.SSLContext:
        """For one handshake, with the one that has this certificate (PEM) and that we call; raises
        `BadCertificate`."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, peer_certificate)

    def with_private_key(self) -> bytes:
        """The private key and the certificate as PEM, for a file that only its owner may read."""
        return self._private_pem() + self.certificate_pem.encode()

    def _context(self, protocol: int, peer_certificate: str) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate itself is compared
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=der_of(peer_certificate))
        except ssl.SSLError as problem:
            raise BadCertificate from problem
        self._load_into(context)
        return context

    def _load_into(self, context: ssl.SSLContext) -> None:
        key, certificate = self._private_pem(), self.certificate_pem.encode()
        try:
            with _through_pipe(certificate) as chain, _through_pipe(key) as private:
                context.load_cert_chain(chain, private)
        except OSError:  # there is no /dev/fd
            with tempfile.TemporaryDirectory(prefix="relay-") as folder:  # its mode is 0700
                path = Path(folder, "key.pem")
                path.touch(mode=0o600)
                path.write_bytes(key + certificate)
                context.load_cert_chain(path)

    def _private_pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_pinned_key(common_name: str) -> PinnedKey:
    """Make a new key, and a certificate with this name."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_NEVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    return PinnedKey(certificate.public_bytes(Encoding.PEM).decode(), key)


def read_pinned_key(pem: bytes) -> PinnedKey:
    """Read what `with_private_key` gives; raises `BadCertificate`."""
    try:
        key = load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError) as problem:
        raise BadCertificate from problem
    if not isinstance(key, Ed25519PrivateKey) or certificate.public_key() != key.public_key():
        raise BadCertificate
    return PinnedKey(certificate.public_bytes(Encoding.PEM).decode(), key)


def read_certificate(certificate_pem: str) -> x509.Certificate:
    """Raises `BadCertificate`."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError as problem:
        raise BadCertificate from problem


def der_of(certificate_pem: str) -> bytes:
    """The bytes of a certificate; raises `BadCertificate`."""
    return read_certificate(certificate_pem).public_bytes(Encoding.DER)


@contextmanager
def _through_pipe(data: bytes) -> Iterator[str]:
    """A path from which the data can be read once; it is less than a pipe holds."""
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, data)
        finally:
            os.close(writing)
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
