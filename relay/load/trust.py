"""Whom a load test trusts at a `wss://` target. Floor 6."""

from __future__ import annotations

import ssl
from pathlib import Path

from attrs import frozen

from relay.load.schema import ScenarioError


@frozen
class Trust:
    ca: str | None = None
    """A file with certificates, beside those that the system trusts."""
    insecure: bool = False
    """Whoever answers."""

    def context(self) -> ssl.SSLContext:
        """`ScenarioError` when the file cannot be read. The names of certificates are checked."""
        context = ssl.create_default_context()
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif self.ca is not None:
            try:
                context.load_verify_locations(cafile=Path(self.ca))
            except ssl.SSLError:
                raise ScenarioError("tls.ca", f"{self.ca} holds no certificate") from None
            except OSError as error:
                words = f"cannot read {self.ca}: {error.strerror}"
                raise ScenarioError("tls.ca", words) from None
        return context
