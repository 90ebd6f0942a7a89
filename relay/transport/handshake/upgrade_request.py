"""Reads upgrade requests as nearly all clients write them. No I/O.

It is stricter than a library for HTTP, on purpose: a request with anything unusual is `None` here,
and is left to such a library, which knows what it means or what is wrong with it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1

from attrs import frozen

MAX_HOST_BYTES = 260
"""A name has 253 characters at most, and its port 6."""
MAX_LIST_COMMAS = 16
"""Commas at which a list in a header is split: to take thousands apart would cost more here than in
a library."""

_REQUEST_LINE = re.compile(rb"GET (/[!-~]*) HTTP/1\.1\r\n")
_PLAIN_TEXT = bytes((*b"\t\r\n", *range(0x20, 0x7F)))
"""Printable ASCII, tabs and ends of lines."""
_HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_LABEL = rb"(?!xn--)[a-z0-9_-]{1,63}"
_HOST_NAME = re.compile(rb"%b(\.%b)*(:[0-9]{1,5})?" % (_LABEL, _LABEL), re.IGNORECASE).fullmatch
"""A name in ASCII or an IPv4 address, perhaps with a port."""
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch
"""16 bytes in base64 (RFC 6455, section 4.1)."""
_PROTOCOLS = b"sec-websocket-protocol"
_ONCE = {
    *(b"host", b"upgrade", b"connection", b"sec-websocket-version", b"sec-websocket-key"),
    _PROTOCOLS,
}
_BODY = (b"content-length", b"transfer-encoding", b"expect")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ACCEPTANCE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)


@frozen
class UpgradeRequest:
    """A request for a WebSocket that can be accepted."""

    target: str
    subprotocols: tuple[str, ...]
    """Those that the client offers, in its order."""
    _key: bytes

    @classmethod
    def parse(cls, head: bytes) -> UpgradeRequest | None:
        """Read a whole request head; None if it asks for something else, or in an unusual way."""
        line = _REQUEST_LINE.match(head)
        if line is None or not head.endswith(b"\r\n\r\n") or not _is_plain_text(head):
            return None
        values: dict[bytes, bytes] = {}
        for each in head[line.end() : -4].split(b"\r\n"):
            name, colon, value = each.partition(b":")
            if not (colon and _HEADER_NAME(name)):
                return None
            name = name.lower()
            if name in _ONCE and name in values:
                return None
            values[name] = value.strip(b" \t")
        host, key = values.get(b"host", b""), values.get(b"sec-websocket-key", b"")
        names = values.get(_PROTOCOLS)
        offered = [] if names is None else _list(names)
        if not (
            len(host) <= MAX_HOST_BYTES
            and _HOST_NAME(host)
            and values.get(b"upgrade", b"").lower() == b"websocket"
            and b"upgrade" in _list(values.get(b"connection", b"").lower())
            and values.get(b"sec-websocket-version") == b"13"
            and _KEY(key)
            and all(map(_HEADER_NAME, offered))
            and values.keys().isdisjoint(_BODY)
        ):
            return None
        return cls(line[1].decode(), tuple(each.decode() for each in offered), key)

    def acceptance(self, subprotocol: str | None) -> bytes:
        """Build the response that opens the WebSocket."""
        digest = b64encode(sha1(self._key + _GUID, usedforsecurity=False).digest())
        chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        return _ACCEPTANCE % (digest, chosen.encode())


def _is_plain_text(head: bytes) -> bool:
    """Whether it is printable ASCII, in lines that all end in CRLF."""
    # A regular expression takes ten times as long for a large head.
    if head.translate(None, _PLAIN_TEXT):
        return False
    return head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n")


def _list(value: bytes) -> list[bytes]:
    """Split a list. If it is long, its rest stays in one piece, which is no name."""
    return [each.strip(b" \t") for each in value.split(b",", MAX_LIST_COMMAS)]
