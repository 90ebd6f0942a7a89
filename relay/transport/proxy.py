"""The header with which a proxy begins a connection: PROXY protocol, versions 1 and 2. Floor 1, no
I/O.

It never asks for a byte that may not be the header's, so that whatever comes next, TLS above all,
is left where it was.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address

from attrs import define, field

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""What version 2 begins with."""
LONGEST_LINE = 107
"""Bytes of version 1, with its end."""
LONGEST_BLOCK = 2048
"""Bytes of addresses and extensions that are taken behind the first 16 of version 2."""

_WORD = b"PROXY "
_FIXED = 16
_SHORTEST_LINE = len(b"PROXY UNKNOWN\r\n")
_LINE = re.compile(
    rb"PROXY (?:TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f:.]+) (?P<target>[0-9A-Fa-f:.]+)"
    rb" [0-9]{1,5} [0-9]{1,5}|UNKNOWN(?: [^\r\n]*)?)\r\n"
)
_LOCAL, _PROXY = 0x20, 0x21
_SOURCES = {0x11: (IPv4Address, 4, 12), 0x21: (IPv6Address, 16, 36)}
"""By family and transport: the kind of address, its bytes, and those of both with their ports."""


class NoProxyHeader(Exception):
    """The connection does not begin with a PROXY header, or with a broken one."""


@define(eq=False)
class ProxyHeader:
    """A header that is being read."""

    missing: int = _SHORTEST_LINE
    """So many bytes are still the header's; 0 when it is whole."""
    source: str | None = None
    """The client's address, once the header is whole; None when the proxy speaks for itself."""
    _read: bytearray = field(factory=bytearray)

    def feed(self, data: bytes | memoryview) -> None:
        """Take at most `missing` bytes; `NoProxyHeader` as soon as it can be none."""
        read = self._read
        read += data
        begin = bytes(read[: len(SIGNATURE)])
        if begin.startswith(_WORD):
            self._go_on_with_line(bytes(read))
        elif begin == SIGNATURE:
            self._go_on_with_block(bytes(read))
        elif SIGNATURE.startswith(begin) or _WORD.startswith(begin):
            self.missing = _SHORTEST_LINE - len(read)
        else:
            raise NoProxyHeader

    def _go_on_with_line(self, line: bytes) -> None:
        if line.endswith(b"\r\n"):
            self.missing = 0
            self.source = _source_in_line(line)
        elif len(line) >= LONGEST_LINE or b"\n" in line:
            raise NoProxyHeader
        elif len(line) < _SHORTEST_LINE:
            self.missing = _SHORTEST_LINE - len(line)
        else:
            self.missing = 1 if line.endswith(b"\r") else 2
            self.missing = min(self.missing, LONGEST_LINE - len(line))

    def _go_on_with_block(self, read: bytes) -> None:
        if len(read) < _FIXED:
            self.missing = _FIXED - len(read)
            return
        command, family, size = struct.unpack_from("!BBH", read, len(SIGNATURE))
        if command not in (_LOCAL, _PROXY) or size > LONGEST_BLOCK:
            raise NoProxyHeader
        self.missing = _FIXED + size - len(read)
        if not self.missing and command == _PROXY and family in _SOURCES:
            kind, length, least = _SOURCES[family]
            if size < least:
                raise NoProxyHeader
            self.source = str(kind(read[_FIXED : _FIXED + length]))


def _source_in_line(line: bytes) -> str | None:
    found = _LINE.fullmatch(line)
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
