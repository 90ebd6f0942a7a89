"""Parses the PROXY protocol header, versions 1 and 2. No I/O.

It never asks for a byte beyond the header, so that what follows, such as TLS, stays unread.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address

from attrs import define, field

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""The first bytes of version 2."""
MAX_V1_BYTES = 107
"""Bytes of version 1, including the line end."""
MAX_V2_BLOCK_BYTES = 2048
"""Bytes of addresses and extensions accepted behind the first 16 of version 2."""

_V1_PREFIX = b"PROXY "
_V2_FIXED_BYTES = 16
_MIN_V1_BYTES = len(b"PROXY UNKNOWN\r\n")
_V1_LINE = re.compile(
    rb"PROXY (?:TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f:.]+) (?P<target>[0-9A-Fa-f:.]+)"
    rb" [0-9]{1,5} [0-9]{1,5}|UNKNOWN(?: [^\r\n]*)?)\r\n"
)
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_V2_SOURCES = {0x11: (IPv4Address, 4, 12), 0x21: (IPv6Address, 16, 36)}
"""By family and transport: the type of address, its size, and that of both addresses and ports."""


class NoProxyHeader(Exception):
    """The connection begins without a PROXY header, or with an invalid one."""


@define(eq=False, repr=False)
class ProxyHeader:
    """A header while it is read."""

    missing: int = _MIN_V1_BYTES
    """Bytes of the header that are certain to follow; 0 when it is complete."""
    source: str | None = None
    """The client's address from a complete header; None when the proxy itself is the client."""
    _read: bytearray = field(factory=bytearray)

    def feed(self, data: bytes | memoryview) -> None:
        """Parse at most `missing` bytes; raises `NoProxyHeader` as soon as they are invalid."""
        read = self._read
        read += data
        begin = bytes(read[: len(V2_SIGNATURE)])
        if begin.startswith(_V1_PREFIX):
            self._go_on_with_line(bytes(read))
        elif begin == V2_SIGNATURE:
            self._go_on_with_block(bytes(read))
        elif V2_SIGNATURE.startswith(begin) or _V1_PREFIX.startswith(begin):
            self.missing = _MIN_V1_BYTES - len(read)
        else:
            raise NoProxyHeader

    def _go_on_with_line(self, line: bytes) -> None:
        if line.endswith(b"\r\n"):
            self.missing = 0
            self.source = _source_in_line(line)
        elif len(line) >= MAX_V1_BYTES or b"\n" in line:
            raise NoProxyHeader
        elif len(line) < _MIN_V1_BYTES:
            self.missing = _MIN_V1_BYTES - len(line)
        else:
            self.missing = 1 if line.endswith(b"\r") else 2
            self.missing = min(self.missing, MAX_V1_BYTES - len(line))

    def _go_on_with_block(self, read: bytes) -> None:
        if len(read) < _V2_FIXED_BYTES:
            self.missing = _V2_FIXED_BYTES - len(read)
            return
        command, family, size = struct.unpack_from("!BBH", read, len(V2_SIGNATURE))
        if command not in (_V2_LOCAL, _V2_PROXY) or size > MAX_V2_BLOCK_BYTES:
            raise NoProxyHeader
        self.missing = _V2_FIXED_BYTES + size - len(read)
        if not self.missing and command == _V2_PROXY and family in _V2_SOURCES:
            kind, length, least = _V2_SOURCES[family]
            if size < least:
                raise NoProxyHeader
            self.source = str(kind(read[_V2_FIXED_BYTES : _V2_FIXED_BYTES + length]))


def _source_in_line(line: bytes) -> str | None:
    found = _V1_LINE.fullmatch(line)
    if found is None:
        raise NoProxyHeader
    if found["family"] is None:
        return None
    kind = IPv4Address if found["family"] == b"4" else IPv6Address
    try:
        kind(found["target"].decode())
        return str(kind(found["source"].decode()))
    except ValueError:
        raise NoProxyHeader from None
