from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.transport.proxy import (
    MAX_V1_BYTES,
    MAX_V2_BLOCK_BYTES,
    V2_SIGNATURE,
    NoProxyHeader,
    ProxyHeader,
)

NEXT = b"\x16\x03\x01GET / HTTP/1.1\r\n"
"""What comes behind the header and is not to be touched."""


def block(command: int, family: int, addresses: bytes, extensions: bytes = b"") -> bytes:
    body = addresses + extensions
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


IPV4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 4711, 443)
IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + struct.pack("!HH", 4711, 443)
)
GOOD = {
    b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n": "192.0.2.1",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n": "1.1.1.1",
    b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n": "2001:db8::1",
    b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b"ffff:" * 7 + b"ffff",) * 2): ("ffff:" * 8)[:-1],
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff:f::f ffff:f::f 65535 65535\r\n": None,
    block(0x21, 0x11, IPV4): "192.0.2.1",
    block(0x21, 0x21, IPV6): "2001:db8::1",
    block(0x21, 0x11, IPV4, b"\x20\x00\x05\x01\0\0\0\0" * 100): "192.0.2.1",
    block(0x20, 0x00, b""): None,
    block(0x20, 0x11, IPV4): None,
    block(0x21, 0x00, b""): None,
    block(0x21, 0x31, bytes(216)): None,
}
BAD = [
    b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    b"PROXY\r\n" + bytes(50),
    b"PROXY TCP4\r\n" + bytes(50),
    b"PROXY TCP5 192.0.2.1 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n",
    b"PROXY TCP4 192.0.2.256 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 192.0.2.01 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 2001:db8::1 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 192.0.2.1 2001:db8::1 4711 443\r\n",
    b"PROXY TCP6 192.0.2.1 ::1 4711 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 4711 443\r\n",
    b"PROXY TCP4  192.0.2.1 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 192.0.2.1 10.0.0.1 -1 443\r\n",
    b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443 \r\n",
    b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\n" + bytes(50),
    b"proxy TCP4 192.0.2.1 10.0.0.1 4711 443\r\n",
    b"PROXY UNKNOWN " + b"x" * 200,
    b"PROXY UNKNOWN \r x\r\n",
    V2_SIGNATURE[:-1] + b"\r" + bytes(50),
    block(0x11, 0x11, IPV4),
    block(0x22, 0x11, IPV4),
    block(0x21, 0x11, IPV4[:-1]),
    block(0x21, 0x21, IPV4),
    block(0x21, 0x11, b""),
    block(0x21, 0x11, IPV4, bytes(MAX_V2_BLOCK_BYTES)),
]


def read(data: bytes, step: int = 1 << 20) -> tuple[str | None, int]:
    """The source, and how many bytes the header took."""
    header, at = ProxyHeader(), 0
    while header.missing:
        take = min(step, header.missing, len(data) - at)
        if not take:
            raise EOFError
        header.feed(memoryview(data)[at : at + take])
        at += take
    return header.source, at


@pytest.mark.parametrize("step", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("good", GOOD)
def test_a_header_names_the_source_and_not_a_byte_more_is_read(good: bytes, step: int) -> None:
    assert read(good + NEXT, step) == (GOOD[good], len(good))


@pytest.mark.parametrize("step", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_header_is_found_out(bad: bytes, step: int) -> None:
    with pytest.raises(NoProxyHeader):
        read(bad, step)


@pytest.mark.parametrize("good", GOOD)
def test_a_header_that_is_cut_off_has_no_source(good: bytes) -> None:
    for length in range(len(good)):
        with pytest.raises(EOFError):
            read(good[:length])


@given(
    st.sampled_from(
        [b"", b"PROXY ", b"PROXY TCP4 1.1.1.1 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21\x11"]
    ),
    st.binary(max_size=300),
)
def test_any_bytes_are_a_header_of_bounded_size_or_none(begin: bytes, rest: bytes) -> None:
    data = begin + rest
    try:
        _, size = read(data)
    except NoProxyHeader:
        return
    except EOFError:
        assert len(data) < len(V2_SIGNATURE) + 4 + MAX_V2_BLOCK_BYTES
        return
    assert size <= (MAX_V1_BYTES if data.startswith(b"P") else len(data))
