"""Certificates of our own making."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Files:
    """A certificate and its key in files, and a client's trust in them."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.renew()

    def renew(self) -> None:
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        self.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())

    @property
    def arguments(self) -> list[str]:
        return ["--tls-certificate", str(self.chain), "--tls-key", str(self.key)]

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context
