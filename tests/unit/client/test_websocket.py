"""The WebSocket of the client, with servers that do as they like, over streams in memory."""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import wsproto
from hypothesis import given
from hypothesis import strategies as st
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping, Pong

from relay.client import ServerError
from relay.client.errors import Closed, DialFailed
from relay.client.websocket import WebSocket, open_websocket
from relay.load.actors.network.client import LoadClient
from relay.transport import wire


class Server:
    """The other end, written out by the test."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)

    async def accept(self, *early: bytes) -> None:
        self.protocol.receive_data(bytes(await self.stream.receive_some()))
        list(self.protocol.events())
        await self.stream.send_all(self.protocol.send(AcceptConnection()) + b"".join(early))

    async def hear(self) -> Event:
        while True:
            self.protocol.receive_data(bytes(await self.stream.receive_some()) or None)
            for event in self.protocol.events():
                return event


@asynccontextmanager
async def opened(*early: bytes) -> AsyncIterator[tuple[WebSocket, Server]]:
    near, far = trio.testing.memory_stream_pair()
    server = Server(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.accept, *early)
        async with open_websocket(near, "relay", "/") as socket:
            yield socket, server


def messages_in(pieces: list[bytes]) -> tuple[list[bytes], WebSocket]:
    """What a socket makes of bytes that come in these pieces."""
    socket = WebSocket(trio.testing.memory_stream_pair()[0])
    found: list[bytes] = []
    for piece in pieces:
        socket.receive_data(memoryview(piece), lambda message: found.append(bytes(message)))
    return found, socket


def test_a_short_message_whose_first_byte_came_with_a_long_one_does_not_wait_for_as_much() -> None:
    long, short = wire.frame(wire.BINARY, bytes(10_000)), wire.frame(wire.BINARY, b"short")
    found, _ = messages_in([long + short[:1], short[1:]])
    assert found == [bytes(10_000), b"short"]


@given(
    st.lists(st.binary(max_size=200) | st.sampled_from([bytes(126), bytes(65535), bytes(65536)])),
    st.lists(st.integers(1, 70_000), max_size=20),
)
def test_messages_come_out_whole_however_the_bytes_are_cut(
    messages: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(wire.frame(wire.BINARY, message) for message in messages)
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    pieces.append(data[at:])
    assert messages_in(pieces)[0] == messages


@given(st.binary(max_size=400), st.integers(1, 40))
def test_garbage_never_raises_and_is_never_kept_without_bound(data: bytes, step: int) -> None:
    _, socket = messages_in([data[at : at + step] for at in range(0, len(data), step)])
    assert len(socket._rest) <= len(data)


def test_fragments_are_joined_also_around_a_ping() -> None:
    pieces = [
        bytes((wire.TEXT, 3)) + b"abc",
        wire.frame(wire.PING, b"?"),
        bytes((wire.CONTINUATION, 3)) + b"def",
        bytes((wire.FIN | wire.CONTINUATION, 1)) + b"g",
    ]
    found, socket = messages_in(pieces)
    assert found == [b"abcdefg"]
    assert socket.closed is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes((wire.FIN | wire.TEXT, wire.MASKED | 1, 0, 0, 0, 0, 65)), 1002),
        (bytes((wire.FIN | 3, 0)), 1002),
        (bytes((wire.FIN | wire.CONTINUATION, 1)) + b"x", 1002),
        (bytes((wire.FIN | wire.BINARY, 127)) + (1 << 40).to_bytes(8), 1009),
    ],
)
def test_a_breach_of_the_protocol_ends_it_with_its_code(data: bytes, code: int) -> None:
    found, socket = messages_in([data])
    assert found == []
    assert socket.closed is not None
    assert socket.closed.code == code


@pytest.mark.mock_clock
async def test_messages_go_both_ways_and_what_came_with_the_handshake_is_not_lost() -> None:
    async with opened(wire.frame(wire.TEXT, b"early")) as (socket, server):
        assert await socket.receive() == "early"
        await socket.send("text")
        heard = await server.hear()
        assert isinstance(heard, Message)
        assert heard.data == "text"
        await server.stream.send_all(wire.frame(wire.BINARY, b"late"))
        assert await socket.receive() == b"late"


@pytest.mark.mock_clock
async def test_a_ping_is_answered_and_a_close_echoed() -> None:
    async with opened() as (socket, server):
        await server.stream.send_all(server.protocol.send(Ping(b"are you there")))
        await server.stream.send_all(wire.frame(wire.TEXT, b"x"))
        assert await socket.receive() == "x"
        heard = await server.hear()
        assert isinstance(heard, Pong)
        assert bytes(heard.payload) == b"are you there"
        await server.stream.send_all(server.protocol.send(CloseConnection(4012, "restarting")))
        with pytest.raises(Closed) as closed:
            await socket.receive()
        assert (closed.value.code, closed.value.reason) == (4012, "restarting")
        heard = await server.hear()
        assert isinstance(heard, CloseConnection)
        assert heard.code == 4012


@pytest.mark.mock_clock
async def test_the_last_message_is_received_also_when_the_close_comes_with_it() -> None:
    async with opened() as (socket, server):
        last = wire.frame(wire.TEXT, b"why")
        await server.stream.send_all(last + server.protocol.send(CloseConnection(4012)))
        assert await socket.receive() == "why"
        with pytest.raises(Closed):
            await socket.receive()


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.mock_clock
async def test_a_refusal_is_heard_also_when_the_close_comes_with_it(listening: bool) -> None:
    async with opened() as (socket, server), trio.open_nursery() as nursery:
        peer = LoadClient(socket, msgpack=False)
        if listening:
            nursery.start_soon(peer.listen)

        async def refuse() -> None:
            assert isinstance(await server.hear(), Message)
            refusal = b'{"type":"error","id":1,"code":"AUTH_FAILED","message":"no"}'
            close = server.protocol.send(CloseConnection(1008, "Authentication failed"))
            await server.stream.send_all(wire.frame(wire.TEXT, refusal) + close)

        nursery.start_soon(refuse)
        peer.acks.append({"seq": 1})  # of a frame that came just before: too late now
        with pytest.raises(ServerError, match="AUTH_FAILED"):
            await peer.request("auth", token="t")


@pytest.mark.mock_clock
async def test_leaving_says_goodbye_and_does_not_wait_for_ever() -> None:
    start = trio.current_time()
    async with opened() as (_, server):
        pass
    heard = await server.hear()
    assert isinstance(heard, CloseConnection)
    assert heard.code == 1000
    assert trio.current_time() - start <= 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "relay ended the connection during the handshake"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "relay does not speak WebSocket"),
        (b"SSH-2.0-OpenSSH\r\n", "relay does not speak WebSocket"),
        (b"x" * 20_000, "relay does not speak WebSocket"),
        (
            b"HTTP/1.1 503 Away\r\nContent-Length: 5\r\n\r\nlater",
            "relay refused: HTTP 503 later",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "relay refused: HTTP 200"),
    ],
)
@pytest.mark.mock_clock
async def test_a_server_that_does_not_open_is_explained(answer: bytes, words: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(answer)
    await far.send_eof()
    with pytest.raises(DialFailed) as failure:
        async with open_websocket(near, "relay", "/"):
            pass
    assert str(failure.value) == words


@pytest.mark.mock_clock
async def test_a_refusal_whose_body_does_not_end_is_told_soon() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"HTTP/1.1 503 Away\r\nContent-Length: 100\r\n\r\nlater")
    start = trio.current_time()
    with pytest.raises(DialFailed, match=r"^relay refused: HTTP 503 later$"):
        async with open_websocket(near, "relay", "/"):
            pass
    assert trio.current_time() - start <= 1


@pytest.mark.mock_clock
async def test_a_server_that_does_not_choose_a_required_subprotocol_is_refused() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(far).accept)
        with pytest.raises(DialFailed, match=r"^relay does not speak relay\.v1\.msgpack$"):
            async with open_websocket(near, "relay", "/", required_subprotocol="relay.v1.msgpack"):
                pass


@pytest.mark.mock_clock
async def test_text_and_bytes_of_one_read_stay_what_they_are() -> None:
    async with opened() as (socket, server):
        messages = wire.frame(wire.TEXT, b"text") + wire.frame(wire.BINARY, b"bytes")
        await server.stream.send_all(messages)
        assert [await socket.receive(), await socket.receive()] == ["text", b"bytes"]


@pytest.mark.mock_clock
async def test_it_can_be_seen_when_a_large_message_moves() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    socket = WebSocket(near)

    async def receive_slowly() -> None:
        for _ in range(4):
            await trio.sleep(1)
            await far.receive_some(64 * 1024)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(socket.send, bytes(200 * 1024))
        nursery.start_soon(receive_slowly)
        seen = []
        for _ in range(4):
            await trio.sleep(1.1)
            seen.append(socket.moved_at)
    assert seen == sorted(set(seen))


async def test_what_came_with_a_ping_is_handed_on_though_the_pong_cannot_be_sent() -> None:
    """Passed at ebfb761. The last word of a relay that resets the connection behind its Close."""
    close = wire.frame(wire.CLOSE, (4501).to_bytes(2))
    async with opened() as (socket, server):
        await server.stream.send_all(
            wire.frame(wire.TEXT, b"the last word") + wire.frame(wire.PING, b"") + close
        )
        await trio.aclose_forcefully(server.stream)
        with trio.fail_after(1):
            assert await socket.receive() == "the last word"


async def test_a_socket_that_somebody_has_closed_is_a_connection_that_ended() -> None:
    ours, theirs = stdlib_socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    stream.socket.close()
    with theirs, pytest.raises(Closed):
        await WebSocket(stream).read(lambda _: None)
