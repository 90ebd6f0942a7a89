"""The push services of browsers that relay may send to.

A browser names the server that its messages go through, so anybody could name any server: only
those that the settings list are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from attrs import frozen

DEFAULT_PUSH_SERVICES = (
    "fcm.googleapis.com",  # Chrome, and most that are made of Chromium
    "updates.push.services.mozilla.com",  # Firefox
    "*.push.apple.com",  # Safari
    "*.notify.windows.com",  # Edge on Windows
)
PUSH_SERVICE_RULE = (
    "a host such as fcm.googleapis.com, *.push.apple.com for all hosts below one, or an origin such"
    " as https://push.example.org:8443"
)
NO_PUSH_SERVICES = "none"
"""In place of all entries: Web Push is off."""
PUSH_PORTS = {"https": 443, "http": 80}

_SERVICE = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<below>\*\.)?"
    r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_LABELS = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


@frozen
class PushService:
    """A host with a port, or all hosts below one."""

    scheme: str
    host: str
    port: int
    below: bool

    @classmethod
    def parse(cls, text: str) -> PushService | None:
        """An entry of the setting; None if it is not as `PUSH_SERVICE_RULE` says."""
        found = _SERVICE.fullmatch(text.lower())
        if found is None:
            return None
        scheme, host = found["scheme"] or "https", found["host"].strip("[]")
        port = int(found["port"] or PUSH_PORTS[scheme])
        below = found["below"] is not None
        if not 0 < port < 65536 or (below and "." not in host):  # not all hosts of `com`
            return None
        return cls(scheme, host, port, below)

    def covers(self, url: str) -> bool:
        """Whether a URL is of this service."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        port = PUSH_PORTS.get(parts.scheme, 0) if port is None else port
        if (parts.scheme, port) != (self.scheme, self.port):
            return False
        shown = f"[{host}]" if ":" in host else host
        if parts.netloc.lower() not in {shown, f"{shown}:{port}"}:  # nothing that parsers differ on
            return False
        if not self.below:
            return host == self.host
        name = host.removesuffix(f".{self.host}")
        return name != host and _LABELS.fullmatch(name) is not None


def push_services_of(texts: Iterable[str]) -> tuple[PushService, ...]:
    """The services of the setting, which has been checked."""
    found = (PushService.parse(text) for text in texts if text != NO_PUSH_SERVICES)
    return tuple(service for service in found if service is not None)
