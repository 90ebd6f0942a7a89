"""Request heads are read in time that grows with their size, whatever stands in them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from relay.transport.handshake.head import asks_for_upgrade, header_values
from relay.transport.stream import MAX_HEAD_BYTES
from relay.web.http import asks_for_http2

READERS: list[Callable[[bytes], object]] = [
    lambda head: header_values(head, "Origin"),
    asks_for_upgrade,
    asks_for_http2,
]
BLANKS = [
    b"Origin: x%by",
    b"Origin%by",
    b"Origin:%by",
    b"Upgrade%by",
    b"Upgrade:%by",
    b"Upgrade: websocket%by",
    b"%by",
]


@pytest.mark.parametrize(
    ("head", "values"),
    [
        (b"GET / HTTP/1.1\r\nOrigin: a\r\norigin:b \t\r\n\r\n", ["a", "b"]),
        (b"GET / HTTP/1.1\nORIGIN \t:\t a b\nHost: x\n\n", ["a b"]),
        (b"GET / HTTP/1.1\r\nOrigin:\r\nX-Origin: a\r\n Origin: b\r\nOrigin\r\n\r\n", [""]),
        (b"GET / HTTP/1.1\r\nOrigin: \xe9: \r\n\r\n", ["\xe9:"]),
        (b"GET /Origin: HTTP/1.1\r\n\r\n", []),
    ],
)
def test_the_values_of_a_header_are_found_without_the_blanks_around_them(
    head: bytes, values: list[str]
) -> None:
    assert header_values(head, "Origin") == values


@pytest.mark.parametrize("read", READERS, ids=["header", "upgrade", "http2"])
@pytest.mark.parametrize("line", BLANKS)
@pytest.mark.parametrize("blank", [b" ", b"\t", b"\r", b"\n", b"Upgrade: ", b"Origin: x\n"])
def test_no_head_takes_long_to_read(
    read: Callable[[bytes], object], line: bytes, blank: bytes
) -> None:
    head = b"GET / HTTP/1.1\r\n" + line % (blank * (MAX_HEAD_BYTES // len(blank))) + b"\r\n\r\n"
    begun = time.process_time()
    read(head)
    assert time.process_time() - begun < 0.2  # seconds, where a walk back took some
