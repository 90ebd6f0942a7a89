"""Web origins (RFC 6454), compared as what they mean and not as they are written."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

NULL_ORIGIN = "null"
"""The origin of a page that has none: a file, a sandboxed frame."""
MAX_ORIGIN_LENGTH = 1000
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s/?#@,:*\\\[\]]*)(?::([0-9]{1,5}))?/?",
    re.IGNORECASE,
)
_SAME_AS = {"ws": "http", "wss": "https"}
"""Some clients name the scheme of the connection instead of the page's."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def normal_origin(text: str) -> str | None:
    """Return the one way to write an origin; None if the text is not an origin.

    That is `null`, or a scheme with a host (`file://` has none), without a default port.
    """
    text = text.strip()
    if text.lower() == NULL_ORIGIN:
        return NULL_ORIGIN
    found = _ORIGIN.fullmatch(text) if len(text) <= MAX_ORIGIN_LENGTH else None
    if found is None:
        return None
    scheme, host, port = found[1].lower(), _normal_host(found[2].lower()), found[3]
    scheme = _SAME_AS.get(scheme, scheme)
    if host is None or (not host and (scheme in _DEFAULT_PORTS or port)):
        return None
    number = int(port) if port else None
    shown = "" if number is None or number == _DEFAULT_PORTS.get(scheme) else f":{number}"
    return f"{scheme}://{host}{shown}"


def is_same_host(origin: str, host: str) -> bool:
    """Whether a page of this origin, in its normal form, came from the server that a `Host` header
    names. The scheme is the page's: only a proxy in front may know the connection's."""
    scheme = origin.partition("://")[0]
    return scheme in _DEFAULT_PORTS and normal_origin(f"{scheme}://{host}") == origin


def _normal_host(host: str) -> str | None:
    if host.startswith("["):
        try:
            return f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return None
    return host.removesuffix(".")
