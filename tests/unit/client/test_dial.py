"""Opening and closing a client's WebSocket, also with servers that misbehave."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
import wsproto
from wsproto.events import AcceptConnection, CloseConnection

from relay.client.dial import dial, with_path, with_stream
from relay.client.errors import Closed, DialFailed
from relay.client.websocket import CLOSE_TIMEOUT, WebSocket, open_websocket
from relay.concurrency.background import open_background
from tests.dead_listener import named, open_dead_listener

Request = trio_websocket.WebSocketRequest


async def echo(request: Request) -> None:
    socket = await request.accept()
    await socket.send_message(request.path)
    while True:
        await socket.send_message(await socket.get_message())


@asynccontextmanager
async def serve(
    handler: Callable[[Request], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A real WebSocket server; its `HOST:PORT`."""

    async def handle(request: Request) -> None:
        with suppress(trio_websocket.ConnectionClosed):
            await handler(request)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio_websocket.serve_websocket, handle, "127.0.0.1", 0, ssl_context=tls)
        )
        yield f"127.0.0.1:{server.port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_raw(
    pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = trio.testing.memory_stream_pair,
) -> AsyncIterator[tuple[WebSocket, trio.abc.Stream, wsproto.WSConnection]]:
    """A WebSocket whose server is written out by the test."""
    client_end, server_end = pair()
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)

    async def accept() -> None:
        server.receive_data(bytes(await server_end.receive_some()))
        list(server.events())
        await server_end.send_all(server.send(AcceptConnection()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        async with open_websocket(client_end, "relay", "/") as socket:
            yield socket, server_end, server


@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_a_websocket_is_opened_at_the_path_and_carries_messages_both_ways(
    scheme: str,
) -> None:
    async with serve(echo) as where, dial(f"{scheme}://{where}/streams/x?a=b") as socket:
        assert await socket.receive() == "/streams/x?a=b"
        for message in ("text", b"bytes", "ä" * 100_000):
            await socket.send(message)
            assert await socket.receive() == message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:3000",
        "ftp://h/",
        "wss://",
        "ws://",
        "ws://h:0/",
        "ws://h:x/",
        "ws://[::1/",
        "ws://u:secret@h/",
    ],
)
async def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    words = r"^the URL must look like ws://HOST:PORT/path or wss://HOST/path$"
    with pytest.raises(DialFailed, match=words):
        async with dial(url):
            pytest.fail("opened")


def certify(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server with these names, and of a client that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("ws://relay", "ws://relay/streams/subscribe"),
        ("wss://relay/", "wss://relay/streams/subscribe"),
        ("wss://app/relay/", "wss://app/relay/streams/subscribe"),
        ("wss://app/relay/streams/register", "wss://app/relay/streams/register"),
    ],
)
def test_a_url_that_ends_with_a_slash_is_the_place_of_a_relay(url: str, found: str) -> None:
    assert with_path(url) == found


async def test_over_tls_messages_are_carried_both_ways() -> None:
    server, client = certify("127.0.0.1")
    async with serve(echo, server) as where, dial(f"wss://{where}/x", tls=client) as socket:
        assert await socket.receive() == "/x"
        await socket.send(b"x" * 200_000)
        assert await socket.receive() == b"x" * 200_000


async def test_a_certificate_of_another_or_of_nobody_is_not_trusted() -> None:
    server, client = certify("relay.example.org")
    async with serve(echo, server) as where:
        with pytest.raises(DialFailed, match=r"not to be trusted \(IP address mismatch"):
            async with dial(f"wss://{where}", tls=client):
                pytest.fail("opened")
        with pytest.raises(DialFailed, match=r"not to be trusted \(.*certificate"):
            async with dial(f"wss://{where}"):
                pytest.fail("opened")


async def test_a_server_without_tls_is_told() -> None:
    async with serve(echo) as where:
        with pytest.raises(DialFailed, match=f"^no TLS with {where}: "):
            async with dial(f"wss://{where}"):
                pytest.fail("opened")


async def test_nobody_listening_is_told_with_the_address() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DialFailed, match=f"^cannot connect to {where}: "):
            async with dial(f"ws://{where}"):
                pytest.fail("opened")


async def test_an_unknown_host_is_told() -> None:
    with pytest.raises(DialFailed, match=r"^cannot find no-such-host\.invalid"):
        async with dial("ws://no-such-host.invalid"):
            pytest.fail("opened")


@pytest.mark.parametrize("receive_buffer", [None, 8192])
async def test_an_address_that_does_not_answer_does_not_keep_the_next_from_it(
    receive_buffer: int | None,
) -> None:
    async with serve(echo) as where:
        port = int(where.rpartition(":")[2])
        with (
            open_dead_listener() as dead,
            named("relay.example.org", [dead, ("127.0.0.1", port)]),
            trio.fail_after(10),
        ):
            url = "ws://relay.example.org/x"
            async with dial(url, receive_buffer=receive_buffer) as socket:
                assert await socket.receive() == "/x"


@pytest.mark.parametrize("receive_buffer", [None, 8192])
async def test_addresses_that_refuse_are_all_tried_and_told_once(
    receive_buffer: int | None,
) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        refusing = ("127.0.0.1", unused.getsockname()[1])
        with (
            named("relay.example.org", [refusing, refusing]),
            pytest.raises(DialFailed, match=r"^cannot connect to relay\.example\.org: [^,]+$"),
        ):
            async with dial("ws://relay.example.org", receive_buffer=receive_buffer):
                pytest.fail("opened")


async def test_a_cancelled_attempt_leaves_no_socket() -> None:
    with (
        open_dead_listener() as dead,
        named("relay.example.org", [dead, dead]),
        trio.move_on_after(0.4) as waiting,
    ):
        async with dial("ws://relay.example.org", receive_buffer=8192):
            pytest.fail("opened")
    assert waiting.cancelled_caught


@pytest.mark.parametrize("body", [b"", b"no token in the URL, please"])
async def test_a_refused_upgrade_is_told_with_its_status_and_words(body: bytes) -> None:
    async def refuse(request: Request) -> None:
        await request.reject(400, body=body)

    async with serve(refuse) as where:
        expected = f"{where} refused: HTTP 400 {body.decode()}".rstrip()
        with pytest.raises(DialFailed, match=f"^{re.escape(expected)}$"):
            async with dial(f"ws://{where}"):
                pytest.fail("opened")


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", b"HTTP/1.1 101 Hm\r\nUpgrade: no\r\n\r\n"]
)
async def test_a_server_that_speaks_something_else_is_told(answer: bytes) -> None:
    client_end, server_end = trio.testing.memory_stream_pair()
    await server_end.send_all(answer)
    await server_end.send_eof()
    with trio.fail_after(5), pytest.raises(DialFailed, match=r"^relay "):
        async with open_websocket(client_end, "relay", "/"):
            pytest.fail("opened")


async def test_a_close_is_told_with_code_and_reason_after_the_last_message() -> None:
    async def say_goodbye(request: Request) -> None:
        socket = await request.accept()
        await socket.send_message("goodbye")
        await socket.aclose(4012, "restarting")

    async with serve(say_goodbye) as where, dial(f"ws://{where}") as socket:
        assert await socket.receive() == "goodbye"
        for use in (socket.receive, partial(socket.send, "x")):
            with pytest.raises(Closed, match=r"^closed with 4012 \(restarting\)$") as caught:
                await use()
            assert (caught.value.code, caught.value.reason) == (4012, "restarting")


async def test_a_stream_that_breaks_is_code_1006() -> None:
    async with open_raw() as (socket, stream, _):
        await stream.aclose()
        for use in (socket.receive, partial(socket.send, "x")):
            with pytest.raises(Closed, match=r"^closed with 1006"):
                await use()


@asynccontextmanager
async def expect_normal_close() -> AsyncIterator[str]:
    """A server that has to get our Close, and nothing before it."""
    codes, closed = trio.open_memory_channel[int](1)

    async def listen(request: Request) -> None:
        socket = await request.accept()
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await socket.get_message()
        assert caught.value.reason
        await codes.send(caught.value.reason.code)

    async with serve(listen) as where:
        yield where
        with trio.fail_after(5):
            assert await closed.receive() == 1000


async def test_leaving_closes_normally() -> None:
    async with expect_normal_close() as where:
        async with dial(f"ws://{where}") as socket:
            pass
        with pytest.raises(Closed, match=r"^closed with 1000"):
            await socket.receive()


async def test_an_error_of_the_body_closes_normally_and_comes_out_as_it_is() -> None:
    async with expect_normal_close() as where:
        with pytest.raises(KeyError, match="mine"):
            async with dial(f"ws://{where}"):
                raise KeyError("mine")


async def test_a_cancelled_client_still_says_goodbye_and_waits_no_longer_than_it_takes() -> None:
    async with expect_normal_close() as where:
        before = trio.current_time()
        with trio.CancelScope() as scope:
            async with dial(f"ws://{where}"):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() - before < CLOSE_TIMEOUT / 2


async def receive_close(stream: trio.abc.Stream, server: wsproto.WSConnection) -> CloseConnection:
    server.receive_data(bytes(await stream.receive_some()))
    (close,) = server.events()
    assert isinstance(close, CloseConnection)
    return close


async def test_a_ping_after_our_close_does_no_harm(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def ping_and_close(stream: trio.abc.Stream, server: wsproto.WSConnection) -> None:
        close = await receive_close(stream, server)
        # wsproto would not send the ping any more.
        await stream.send_all(bytes((0x89, 0)) + server.send(close.response()))
        await stream.aclose()

    before = trio.current_time()
    async with open_background() as background, open_raw() as (_, stream, server):
        background.start_soon(ping_and_close, stream, server)
    assert trio.current_time() == before


async def test_also_a_cancelled_client_waits_for_the_answer_to_its_close() -> None:
    answered = False

    async def answer_late(stream: trio.abc.Stream, server: wsproto.WSConnection) -> None:
        nonlocal answered
        close = await receive_close(stream, server)
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(server.send(close.response()))
        await stream.aclose()
        answered = True

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_raw() as (_, stream, server):
                nursery.start_soon(answer_late, stream, server)
                scope.cancel()
                await trio.sleep_forever()
    assert answered


async def test_a_ping_behind_the_close_of_the_server_ends_the_connection() -> None:
    async with open_raw() as (socket, stream, server):
        await stream.send_all(server.send(CloseConnection(4001)) + bytes((0x89, 0)))
        with pytest.raises(Closed, match=r"^closed with 4001"):
            await socket.receive()
        await stream.aclose()


async def test_a_server_that_does_not_answer_our_close_is_left_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = trio.current_time()
    async with open_raw() as (_, stream, _):
        pass
    assert trio.current_time() - before == pytest.approx(CLOSE_TIMEOUT)
    await stream.receive_some()  # our Close
    assert await stream.receive_some() == b""


async def test_a_cancelled_send_breaks_the_connection_instead_of_leaving_half_a_message() -> None:
    async with (
        open_raw(trio.testing.lockstep_stream_pair) as (socket, stream, _),
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            with pytest.raises(trio.Cancelled):
                await socket.send("x" * 1000)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await stream.receive_some(10)) == 10
        nursery.cancel_scope.cancel()
    with pytest.raises(Closed):
        await socket.send("next")


async def test_the_receive_buffer_is_set_before_connecting() -> None:
    found = []

    def look(stream: trio.abc.Stream) -> trio.abc.Stream:
        assert isinstance(stream, trio.SocketStream)
        found.append(stream.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF))
        return stream

    async with (
        serve(echo) as where,
        dial(f"ws://{where}", wrap=look),
        dial(f"ws://{where}", receive_buffer=8192, wrap=look),
    ):
        pass
    default, small = found
    assert 8192 <= small <= 16384 < default  # Linux doubles what it is told


@pytest.mark.parametrize(
    ("url", "stream_id", "wanted"),
    [
        ("ws://relay/streams/subscribe", "door", "ws://relay/streams/subscribe?stream=door"),
        ("/streams/register", "a/b c", "/streams/register?stream=a%2Fb%20c"),
        ("/streams/register", None, "/streams/register"),
        ("/streams/register?stream=other", "door", "/streams/register?stream=other"),
    ],
)
def test_a_url_may_name_the_stream(url: str, stream_id: str | None, wanted: str) -> None:
    assert with_stream(url, stream_id) == wanted
