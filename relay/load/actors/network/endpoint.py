"""The addresses of the relays under test, and the credentials for them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from relay.load.scenario.schema import ScenarioError

_CERTIFICATE = re.compile(
    r"-----BEGIN (TRUSTED |X509 |)CERTIFICATE-----.*?-----END \1CERTIFICATE-----", re.DOTALL
)


def is_encrypted(url: str) -> bool:
    return url.startswith(("wss:", "https:"))


def path_or_default(path: str, *, phone: bool) -> str:
    """The path of a target's URL; if it has none, the one for phones or for other clients."""
    if path != "/":
        return path
    return "/streams/register" if phone else "/streams/subscribe"


@frozen
class TlsVerification:
    """How the certificate of a `wss://` target is verified."""

    authorities: str = ""
    """Certificates (PEM) to trust in addition to the system's."""
    insecure: bool = False
    """Accept any certificate."""

    @classmethod
    def of(cls, ca: str | None, *, insecure: bool) -> TlsVerification:
        """Read the file with certificates to trust; `ScenarioError`."""
        if ca is None:
            return cls(insecure=insecure)
        try:
            text = Path(ca).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ScenarioError("tls.ca", f"cannot read {ca}: {error.strerror}") from None
        found = cls("".join(f"{each[0]}\n" for each in _CERTIFICATE.finditer(text)), insecure)
        try:
            if found.authorities and found.context():
                return found
        except ScenarioError:
            pass
        raise ScenarioError("tls.ca", f"{ca} holds no certificate")

    def context(self) -> ssl.SSLContext:
        """Names in certificates are verified too. `ScenarioError` for bad authorities."""
        context = ssl.create_default_context()
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif self.authorities:
            try:
                context.load_verify_locations(cadata=self.authorities)
            except (ssl.SSLError, ValueError, TypeError):
                raise ScenarioError("tls.ca", "it holds no certificate") from None
        return context

    def context_for(self, url: str) -> ssl.SSLContext | None:
        """The TLS context for a URL; None if the URL has no TLS."""
        return self.context() if is_encrypted(url) else None


def _by_name(urls: str | Mapping[str, str]) -> dict[str, str]:
    return {"": urls} if isinstance(urls, str) else dict(urls)


@frozen
class Endpoint:
    """The URLs of relays that use one database, with tokens that they accept."""

    urls: dict[str, str] = field(converter=_by_name)
    """By the name of the target, which is empty if it is the only one."""
    tokens: tuple[str, ...] = field(repr=False)
    service_tokens: tuple[str, ...] = field(repr=False, default=())
    tls_verification: TlsVerification = field(factory=TlsVerification)
    hostile_tokens: tuple[str, ...] = field(repr=False, default=())
    """Of a user who means no good; the others' if there are none."""

    def target(self, index: int) -> str:
        """The name of a target: they are numbered, and begin again after the last."""
        names = list(self.urls)
        return names[index % len(names)]

    def index(self, target: str) -> int:
        """The number of a target."""
        return list(self.urls).index(target)

    def token(self, number: int, *, service: bool = False) -> str:
        """The token of an actor: tokens are handed out in turn."""
        tokens = self.service_tokens if service and self.service_tokens else self.tokens
        return tokens[number % len(tokens)]

    def hostile_token(self, number: int) -> str:
        tokens = self.hostile_tokens or self.tokens
        return tokens[number % len(tokens)]
