"""Which upgrade requests are accepted without a library, beside h11 and wsproto: never one that
these refuse, and never with another meaning."""

from __future__ import annotations

import itertools
import re
from random import Random

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.utilities import RemoteProtocolError

from relay.transport.handshake.head import asks_for_upgrade, header_values, plain_upgrade
from relay.transport.handshake.upgrade_request import UpgradeRequest

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
REQUIRED = (
    *(b"Host: relay.example:3000", b"Upgrade: websocket", b"Connection: Upgrade"),
    *(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + KEY),
)
CLIENTS = {
    "Chromium": (
        *(b"Host: 192.168.178.20:3000", b"Connection: Upgrade", b"Pragma: no-cache"),
        *(b"Cache-Control: no-cache", b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/141.0"),
        *(b"Upgrade: websocket", b"Origin: http://localhost:3000", b"Sec-WebSocket-Version: 13"),
        *(b"Accept-Encoding: gzip, deflate, br", b"Accept-Language: de-DE,de;q=0.9", b"DNT: 1"),
        b"Sec-WebSocket-Key: " + KEY,
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        b"Sec-WebSocket-Protocol: relay.msgpack, relay.json",
    ),
    "Firefox": (
        *(b"Host: relay.example", b"User-Agent: Mozilla/5.0 (Macintosh) Firefox/145.0"),
        *(b"Accept: */*", b"Sec-WebSocket-Version: 13", b"Origin: https://relay.example"),
        b"Sec-WebSocket-Extensions: permessage-deflate",
        b"Sec-WebSocket-Key: " + KEY,
        *(b"Connection: keep-alive, Upgrade", b"Sec-Fetch-Mode: websocket", b"Upgrade: websocket"),
    ),
    "OkHttp, which React Native has on Android": (
        *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: " + KEY),
        *(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Extensions: permessage-deflate"),
        *(b"origin: http://10.0.2.2:3000", b"Host: 10.0.2.2:3000", b"Accept-Encoding: gzip"),
        b"User-Agent: okhttp/4.12.0",
    ),
    "SocketRocket, which React Native has on iOS": (
        *(b"Host: relay.example:443", b"Connection: Upgrade", b"Upgrade: websocket"),
        *(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + KEY, b"Origin: relay.example"),
    ),
    "a client behind nginx": (
        *(b"Upgrade: websocket", b"Connection: upgrade", b"Host: relay.example"),
        *(b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-Proto: https", b"X-Real-IP: 203.0.113.7"),
        *(b"sec-websocket-version: 13", b"sec-websocket-key: " + KEY, b"Cookie: a=b; c=d"),
    ),
}
TELLING = b'\0\t\n\r !",-/:;=aAkKuUxX019[]\x7f\x80\xc3\xff'
"""Bytes that mean something in a request head, and some that must not be in one."""


def head(*lines: bytes, request: bytes = b"GET /streams/register HTTP/1.1") -> bytes:
    return b"\r\n".join((request, *lines, b"", b""))


def accepted_key(response: bytes) -> bytes:
    (key,) = re.findall(rb"sec-websocket-accept: (.*)\r\n", response, re.IGNORECASE)
    return bytes(key)


def library_accepts(data: bytes) -> tuple[str, tuple[str, ...], bytes] | None:
    """What wsproto, by h11, makes of a request: target, subprotocols and the accepted key."""
    connection = WSConnection(ConnectionType.SERVER)
    try:
        connection.receive_data(plain_upgrade(data))
        events = list(connection.events())
    except (RemoteProtocolError, UnicodeError):
        return None
    match events:
        case [Request() as request]:
            key = accepted_key(connection.send(AcceptConnection()))
            return request.target, tuple(request.subprotocols), key
    return None


def guard_reads_the_same(data: bytes) -> bool:
    """Whether the headers that access lists and proxies depend on are those that h11 reads."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    return asks_for_upgrade(data) and all(
        header_values(data, name)
        == [value.decode() for each, value in request.headers if each == name.lower().encode()]
        for name in ("Host", "Origin", "X-Forwarded-For", "X-Forwarded-Host")
    )


def is_never_laxer(data: bytes) -> bool:
    """Returns whether it was accepted."""
    ours = UpgradeRequest.parse(data)
    if ours is None:
        return False
    assert plain_upgrade(data) == data
    key = accepted_key(ours.acceptance(None))
    assert library_accepts(data) == (ours.target, ours.subprotocols, key), data
    assert guard_reads_the_same(data), data
    return True


@pytest.mark.parametrize("client", CLIENTS)
def test_requests_of_the_usual_clients_need_no_library(client: str) -> None:
    assert is_never_laxer(head(*CLIENTS[client]))


def test_the_response_is_that_of_the_rfc() -> None:
    request = UpgradeRequest.parse(head(*REQUIRED))
    assert request is not None
    status, *headers = request.acceptance("relay.json").decode().split("\r\n")
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert headers == [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",  # RFC 6455, section 1.3
        "Sec-WebSocket-Protocol: relay.json",
        "",
        "",
    ]


def test_subprotocols_are_read_in_the_order_of_the_client() -> None:
    offer = b"Sec-WebSocket-Protocol: relay.msgpack ,relay.json,\tmine"
    request = UpgradeRequest.parse(head(*REQUIRED, offer))
    assert request is not None
    assert request.subprotocols == ("relay.msgpack", "relay.json", "mine")


def test_a_request_that_would_take_long_to_read_is_left_to_the_library() -> None:
    long_host = b"Host: " + b".".join([b"a"] * 200)
    offers = b"Sec-WebSocket-Protocol: " + b",".join([b"a"] * 20)
    tokens = b"Connection: " + b"keep-alive," * 20 + b"Upgrade"
    long_connection = (*REQUIRED[:2], tokens, *REQUIRED[3:])
    for lines in ((long_host, *REQUIRED[1:]), (*REQUIRED, offers), long_connection):
        assert UpgradeRequest.parse(head(*lines)) is None
        assert library_accepts(head(*lines)) is not None


@pytest.mark.parametrize("missing", range(len(REQUIRED)))
def test_a_request_without_one_of_the_required_headers_is_left_to_the_library(missing: int) -> None:
    assert UpgradeRequest.parse(head(*REQUIRED[:missing], *REQUIRED[missing + 1 :])) is None


@pytest.mark.parametrize("line", REQUIRED)
@pytest.mark.parametrize("last", [False, True])
def test_a_request_that_says_something_twice_is_left_to_the_library(
    line: bytes, last: bool
) -> None:
    name, _, value = line.partition(b": ")
    other = b"%b: %b" % (name.upper(), value if last else b"other")
    for lines in ((*REQUIRED, other), (other, *REQUIRED)):
        assert UpgradeRequest.parse(head(*lines)) is None


@pytest.mark.parametrize(
    "line",
    [
        *(b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
        *(
            b" folded: line",
            b"Name : value",
            b"no colon",
            b": no name",
            b"nocolon",
            b"",
            b"N\xc3: a",
        ),
        *(b"Name: a\rb", b"Name: a\nb", b"Name: \0", b"Name: \x7f", b"Name: \xff", b"Na\tme: a"),
        *(
            b"Sec-WebSocket-Protocol:",
            b"Sec-WebSocket-Protocol: a,,b",
            b"sec-websocket-protocol: (",
        ),
    ],
)
def test_a_request_with_an_unusual_line_is_left_to_the_library(line: bytes) -> None:
    for lines in itertools.permutations((line, b"Accept: */*")):
        assert UpgradeRequest.parse(head(*REQUIRED[:2], *lines, *REQUIRED[2:])) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((b"Host", value) for value in (b"", b"a b", b"[::1]:3000", b"xn--a", b"a.xn--zzz")),
        *((b"Host", value) for value in (b"a..b", b".a", b"a.", b"a" * 64, b"a:b", b"a@b", b"a/b")),
        *((b"Upgrade", value) for value in (b"h2c", b"websocket, h2c", b"websocket/13", b"")),
        *((b"Connection", value) for value in (b"close", b"keep-alive", b"upgraded", b"")),
        *((b"Sec-WebSocket-Version", value) for value in (b"8", b"013", b"13, 8", b"")),
        *((b"Sec-WebSocket-Key", value) for value in (KEY[:-1], KEY + b"=", b"x" * 24, b"")),
        (b"Sec-WebSocket-Key", KEY.replace(b"ZQ==", b"ZR==")),
    ],
)
def test_a_request_with_an_unusual_value_is_left_to_the_library(name: bytes, value: bytes) -> None:
    lines = [line for line in REQUIRED if not line.startswith(name + b":")]
    assert UpgradeRequest.parse(head(*lines, name + b": " + value)) is None


@pytest.mark.parametrize(
    "request_line",
    [
        *(
            b"POST / HTTP/1.1",
            b"GET / HTTP/1.0",
            b"GET / HTTP/1.10",
            b"GET / HTTP/2",
            b"get / HTTP/1.1",
        ),
        *(b"GET http://a/ HTTP/1.1", b"GET * HTTP/1.1", b"GET  / HTTP/1.1", b"GET /a b HTTP/1.1"),
        *(
            b"GET / HTTP/1.1 ",
            b" GET / HTTP/1.1",
            b"GET /\xff HTTP/1.1",
            b"GET /\t HTTP/1.1",
            b"GET /",
        ),
    ],
)
def test_a_request_with_an_unusual_first_line_is_left_to_the_library(request_line: bytes) -> None:
    assert UpgradeRequest.parse(head(*REQUIRED, request=request_line)) is None


def test_no_change_of_one_byte_makes_it_laxer_than_the_library() -> None:
    request = head(*REQUIRED, b"Sec-WebSocket-Protocol: a,b", b"Origin: y")
    accepted = 0
    for at in range(len(request)):
        accepted += is_never_laxer(request[:at] + request[at + 1 :])
        for byte in TELLING:
            accepted += is_never_laxer(request[:at] + bytes((byte,)) + request[at:])
            accepted += is_never_laxer(request[:at] + bytes((byte,)) + request[at + 1 :])
    assert accepted > 1_000  # in the target, the host, the names of protocols


PIECES = st.sampled_from(
    [
        *(bytes((byte,)) for byte in TELLING),
        *(b"", b"\r\n", b"\r\n ", b"\r\n\r\n", b": ", b" HTTP/1.1", b"xn--", b"%zz", b"://"),
        *(line + b"\r\n" for line in REQUIRED),
        *(b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: h2c\r\n"),
    ]
)
EDITS = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 3), PIECES), max_size=3)
"""Where, how many bytes go, and what comes in their place."""


@settings(max_examples=settings().max_examples * 10)
@given(st.sampled_from(sorted(CLIENTS)), st.randoms(use_true_random=False), EDITS)
def test_no_request_is_taken_that_the_library_refuses(
    client: str, random: Random, edits: list[tuple[int, int, bytes]]
) -> None:
    request = head(*random.sample(CLIENTS[client], len(CLIENTS[client])))
    for place, gone, piece in edits:
        at = place % len(request)
        request = request[:at] + piece + request[at + gone :]
    is_never_laxer(request)
