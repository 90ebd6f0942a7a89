from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relay.transport.proxy import V2_SIGNATURE
from relay.workers.peek import MAX_PEEK_BYTES, PEEK_TIMEOUT, Glimpse, peek, read_glimpse

REQUEST = b"GET /streams/subscribe?stream=front%20door&x=1 HTTP/1.1\r\nHost: relay\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"
V2 = (
    V2_SIGNATURE
    + struct.pack("!BBH", 0x21, 0x11, 12)
    + bytes([192, 0, 2, 7, 198, 51, 100, 1, 0, 80, 1, 187])
)
HEADERS = {"none": b"", "v1": V1, "v2": V2}


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        (b"/streams/register?stream=door", "door"),
        (b"/streams/register?a=b&stream=door&c", "door"),
        (b"/streams/register?stream=T%C3%BCr", "T\xc3\xbcr"),
        (b"/apps/relay/streams/register?stream=door", "door"),
        (b"/streams/register?stream=", None),
        (b"/streams/register?upstream=door", None),
        (b"/streams/register", None),
        (b"/streams/register?stream=" + b"x" * 300, None),
    ],
)
def test_the_url_names_the_stream(target: bytes, hint: str | None) -> None:
    found = read_glimpse(b"GET " + target + b" HTTP/1.1\r\n", behind_header=False)
    assert found.whole
    assert found.hint is None if hint is None else found.hint


@pytest.mark.parametrize("header", HEADERS)
def test_every_cut_but_the_last_asks_for_more(header: str) -> None:
    data = HEADERS[header] + REQUEST
    line = data.index(b" HTTP/1.1\r\n") + len(b" HTTP/1.1\r\n")
    for cut in range(line):
        assert not read_glimpse(data[:cut], behind_header=header != "none").whole
    whole = read_glimpse(data[:line], behind_header=header != "none")
    assert whole == Glimpse("front door", None if header == "none" else "192.0.2.7")


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"get / HTTP/1.1", b"\x00", V2])
def test_what_is_no_request_has_no_hint(data: bytes) -> None:
    assert read_glimpse(data, behind_header=False) == Glimpse()


def test_a_connection_that_owes_a_header_and_has_none_has_no_hint() -> None:
    assert read_glimpse(REQUEST, behind_header=True) == Glimpse()


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_looked_at_without_an_error(data: bytes, behind_header: bool) -> None:
    read_glimpse(data, behind_header=behind_header)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, accepted = socket.socketpair()
    accepted.setblocking(False)
    with client, accepted:
        yield client, accepted


async def test_what_was_looked_at_is_still_there(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = pair
    client.sendall(REQUEST[:20])
    async with trio.open_nursery() as nursery:

        async def send_rest() -> None:
            client.sendall(REQUEST[20:])

        nursery.start_soon(send_rest)
        assert (await peek(accepted, behind_header=False)).hint == "front door"
    assert accepted.recv(1000) == REQUEST


async def test_a_silent_connection_is_not_waited_for(
    pair: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    assert await peek(pair[1], behind_header=False) == Glimpse()
    assert trio.current_time() - began == pytest.approx(PEEK_TIMEOUT)


async def test_a_connection_that_ended_needs_no_look(
    pair: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    pair[0].close()
    began = trio.current_time()
    await peek(pair[1], behind_header=False)
    assert trio.current_time() == began


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * MAX_PEEK_BYTES,
        b"GET " + b" " * MAX_PEEK_BYTES,
        b"GET /" + b"a" * MAX_PEEK_BYTES + b"\r",
        b"GET /" + b"a " * (MAX_PEEK_BYTES // 2) + b"\rx\n",
        b"A" * MAX_PEEK_BYTES,
        b"GET /?" + b"&stream=" * (MAX_PEEK_BYTES // 8) + b"\n",
        b"GET /" + b"?" * MAX_PEEK_BYTES + b"\n",
    ],
    ids=["target", "spaces", "return", "words", "method", "hints", "marks"],
)
def test_no_bytes_take_long_to_read(data: bytes) -> None:
    """Each is read in steps that grow with its length, not with the square of it."""
    begun = time.process_time()
    for _ in range(20):
        read_glimpse(data[:MAX_PEEK_BYTES], behind_header=False)
        read_glimpse(data, behind_header=False)
    assert time.process_time() - begun < 1
