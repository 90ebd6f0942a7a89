"""The HTTP server on a memory link: heads, bodies, streams, and clients that leave."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from attrs import define, field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.guard.client_address import ClientAddress
from relay.transport.budget import Budget
from relay.transport.stream import FrameStream
from relay.web.assets import load_assets
from relay.web.http import REQUEST_TIMEOUT, HttpServer
from tests.unit.memory import SIZE, MemoryLink, link_pair

mock_clock = pytest.mark.mock_clock

STALL_TIMEOUT = 120.0
GET = b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: relay\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: relay\r\n"


@define(eq=False)
class Answer:
    """What a client read until the server closed the connection."""

    status: int
    headers: dict[str, str]
    body: bytes


@define(eq=False)
class Client:
    """The client's end of a link whose other end is served."""

    link: MemoryLink
    received: bytearray = field(factory=bytearray)
    served: trio.Event = field(factory=trio.Event)

    async def send(self, data: bytes) -> None:
        while data:
            await self.link.wait_writable()
            data = data[self.link.send(data) :]

    async def read(self) -> bytes:
        """Some bytes; none at their end."""
        await self.link.wait_readable()
        buffer = memoryview(bytearray(SIZE))
        data = bytes(buffer[: self.link.recv_into(buffer)])
        self.received += data
        return data

    async def read_until(self, end: bytes) -> None:
        while end not in self.received:
            assert await self.read(), self.received

    async def read_to_end(self) -> bytes:
        while await self.read():
            pass
        return bytes(self.received)

    async def answer(self, method: str = "GET") -> Answer:
        """The whole answer; `h11.RemoteProtocolError` when it was cut."""
        return parse(await self.read_to_end(), method)

    def leave(self) -> None:
        """Close our half only, as far as the server can see."""
        self.link.outgoing.end()


def parse(data: bytes, method: str = "GET") -> Answer:
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("host", "relay")]))
    reader.receive_data(data)
    reader.receive_data(b"")
    head, body = None, b""
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
    assert head is not None
    assert isinstance(reader.next_event(), h11.ConnectionClosed)
    headers = {name.decode(): value.decode() for name, value in head.headers}
    return Answer(head.status_code, headers, body)


@pytest.fixture
async def serve(nursery: trio.Nursery) -> Callable[..., Client]:
    def start(app: ASGIApp, request: bytes = GET, capacity: int = SIZE) -> Client:
        """A client that has sent the beginning of a request to an application."""
        server_end, client_end = link_pair(capacity)
        client = Client(client_end)

        async def run() -> None:
            async with FrameStream(server_end, STALL_TIMEOUT) as stream:
                await stream.read_head()
                await HttpServer(app).serve(stream, ClientAddress.of_peer(server_end.peer))
            client.served.set()

        client.link.send(request)
        nursery.start_soon(run)
        return client

    return start


Serve = Callable[..., Client]


async def hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}
    )
    await send({"type": "http.response.body", "body": b"hello"})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await JSONResponse({"size": len(body), "text": body[:100].decode()})(scope, receive, send)


@define(eq=False)
class Endless:
    """A response without end, a part each second."""

    part: bytes = b"part"
    sent: int = 0
    ended_by: str = ""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": self.part, "more_body": True})
                self.sent += 1
                await trio.sleep(1)
        except BaseException as problem:
            self.ended_by = type(problem).__name__
            raise


# -- heads


@mock_clock
async def test_an_answer_closes_its_connection(serve: Serve) -> None:
    answer = await serve(hello).answer()
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["connection"] == "close"
    assert answer.headers["date"].endswith(" GMT")


@mock_clock
async def test_the_application_is_told_what_was_asked(serve: Serve) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        await hello(scope, receive, send)

    client = serve(app, b"PUT /a%20b?c=d%20e HTTP/1.1\r\nHOST: relay\r\nX-Y:  z \r\n\r\n")
    await client.answer("PUT")
    assert (seen["method"], seen["http_version"], seen["scheme"]) == ("PUT", "1.1", "http")
    assert (seen["path"], seen["raw_path"]) == ("/a b", b"/a%20b")
    assert seen["query_string"] == b"c=d%20e"
    assert seen["headers"] == [(b"host", b"relay"), (b"x-y", b"z")]
    assert seen["state"]["address"].text == "192.0.2.1"


@mock_clock
@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"\x00\xff\x13 garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: relay\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: relay\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: relay\r\n folded\r\nX : y\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: relay\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
async def test_a_bad_request_is_answered_400(serve: Serve, request_: bytes) -> None:
    answer = await serve(echo, request_).answer()
    assert (answer.status, answer.body) == (400, b"")
    assert answer.headers["connection"] == "close"


@mock_clock
async def test_an_unknown_transfer_coding_is_not_implemented(serve: Serve) -> None:
    answer = await serve(echo, POST + b"Transfer-Encoding: gzip\r\n\r\n").answer()
    assert answer.status == 501


@mock_clock
async def test_http_2_is_not_spoken(serve: Serve) -> None:
    for request in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", GET[:-2] + b"Upgrade: h2c\r\n\r\n"):
        assert (await serve(hello, request).answer()).status == 505


@mock_clock
async def test_what_is_behind_a_request_is_not_looked_at(serve: Serve) -> None:
    asked = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await hello(scope, receive, send)

    client = serve(app, GET + GET + b"garbage")
    assert (await client.read_to_end()).count(b"HTTP/1.1 ") == 1
    body = POST + b"Content-Length: 5\r\n\r\nhello"
    assert (await serve(echo, body + GET).read_to_end()).count(b"HTTP/1.1 ") == 1
    assert asked == 1


# -- bodies of requests


@mock_clock
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 11\r\n\r\n", [b"hello world"]),
        (b"Content-Length: 11\r\n\r\n", [b"hello", b" ", b"world"]),
        (b"Transfer-Encoding: chunked\r\n\r\n", [b"b\r\nhello world\r\n0\r\n\r\n"]),
        (
            b"Transfer-Encoding: chunked\r\n\r\n",
            [b"5;x=y\r\nhe", b"llo\r\n6\r\n world\r\n0\r", b"\n\r\n"],
        ),
    ],
)
async def test_bodies_come_whole_or_in_pieces(serve: Serve, head: bytes, body: list[bytes]) -> None:
    client = serve(echo, POST + head)
    for piece in body:
        await trio.testing.wait_all_tasks_blocked()
        await client.send(piece)
    assert json.loads((await client.answer("POST")).body) == {"size": 11, "text": "hello world"}


@mock_clock
async def test_a_large_body_is_read_as_the_application_takes_it(serve: Serve) -> None:
    taken: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await trio.sleep(1)
            message = await receive()
            taken.append(len(message["body"]))
            if not message["more_body"]:
                break
        await hello(scope, receive, send)

    client = serve(app, POST + b"Content-Length: 200000\r\n\r\n")
    await client.send(bytes(200000))
    assert sum(taken) < 150_000  # the rest waited until the first was taken
    assert (await client.answer("POST")).status == 200
    assert sum(taken) == 200_000
    assert max(taken) <= 64 * 1024


@mock_clock
async def test_a_client_that_waits_to_send_its_body_is_told_to_go_on(serve: Serve) -> None:
    expecting = POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    client = serve(echo, expecting)
    await client.read_until(b"\r\n\r\n")
    assert client.received.startswith(b"HTTP/1.1 100 ")
    await client.send(b"hello")
    assert json.loads((await client.answer("POST")).body)["text"] == "hello"
    refused = await serve(hello, expecting).read_to_end()  # without a look at the body
    assert b"HTTP/1.1 100" not in refused


@mock_clock
async def test_a_client_that_leaves_amid_its_body_cancels_the_application(serve: Serve) -> None:
    for leave in ("end", "reset"):
        client = serve(echo, POST + b"Content-Length: 5\r\n\r\nhel")
        await trio.testing.wait_all_tasks_blocked()
        if leave == "end":
            client.leave()
        else:
            client.link.reset()
        await client.served.wait()
        assert client.received == b""


@mock_clock
async def test_a_body_that_does_not_come_is_given_up(serve: Serve) -> None:
    begun = trio.current_time()
    client = serve(echo, POST + b"Content-Length: 5\r\n\r\nhel")
    assert await client.read_to_end() == b""
    assert trio.current_time() - begun == REQUEST_TIMEOUT


# -- answers


@mock_clock
async def test_head_is_get_without_a_body(serve: Serve) -> None:
    get, head = await serve(hello).answer(), await serve(hello, HEAD).answer("HEAD")
    assert get.headers == head.headers | {"date": get.headers["date"]}
    assert head.body == b""


@mock_clock
async def test_head_of_an_endless_answer_ends(serve: Serve) -> None:
    app = Endless()
    answer = await serve(app, HEAD).answer("HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert app.ended_by == "Cancelled"


@mock_clock
async def test_an_asset_that_the_client_has_is_not_modified(serve: Serve) -> None:
    asset = load_assets()["/"]
    app = Starlette(routes=[Route("/", asset.__call__)])
    whole = await serve(app).answer()
    assert (whole.status, whole.body) == (200, asset.content)
    condition = f"If-None-Match: {whole.headers['etag']}\r\n\r\n".encode()
    again = await serve(app, GET[:-2] + condition).answer()
    assert (again.status, again.body) == (304, b"")
    assert "transfer-encoding" not in again.headers
    assert again.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("ranges", "status", "content_range", "body"),
    [
        (b"bytes=2-4", 206, "bytes 2-4/10", b"234"),
        (b"bytes=7-", 206, "bytes 7-9/10", b"789"),
        (b"bytes=-2", 206, "bytes 8-9/10", b"89"),
        (b"bytes=20-", 416, "bytes */10", None),
    ],
)
async def test_a_range_is_answered_with_a_part(
    tmp_path: Path, *, serve: Serve, ranges: bytes, status: int, content_range: str, body: Any
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    app = FileResponse(file)
    answer = await serve(app, GET[:-2] + b"Range: " + ranges + b"\r\n\r\n").answer()
    assert answer.status == status
    assert answer.headers["content-range"] == content_range
    assert body is None or answer.body == body


@mock_clock
async def test_an_answer_without_a_length_is_in_chunks_or_up_to_the_end(serve: Serve) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"one", b"two"):
            await trio.sleep(1)
            yield part

    new = await serve(StreamingResponse(parts())).answer()
    assert (new.body, new.headers["transfer-encoding"]) == (b"onetwo", "chunked")
    client = serve(StreamingResponse(parts()), b"GET / HTTP/1.0\r\n\r\n")
    old = await client.answer()
    assert old.body == b"onetwo"
    assert old.headers.keys() & {"transfer-encoding", "content-length"} == set()
    assert not client.link.incoming.broken


@mock_clock
async def test_a_stream_goes_on_for_as_long_as_it_is_read(serve: Serve) -> None:
    app = Endless()
    client = serve(app)
    with trio.move_on_after(10 * REQUEST_TIMEOUT + 0.5):
        await client.read_to_end()
    assert client.received.count(b"4\r\npart\r\n") == app.sent == 10 * REQUEST_TIMEOUT + 1


@mock_clock
async def test_a_stream_ends_when_its_client_leaves(serve: Serve) -> None:
    for leave in ("end", "reset"):
        app = Endless()
        client = serve(app)
        await client.read_until(b"part")
        await trio.sleep(2.5)
        if leave == "end":
            client.leave()
        else:
            client.link.reset()
        await client.served.wait()
        assert (app.sent, app.ended_by) == (3, "Cancelled")


@mock_clock
async def test_a_stream_whose_client_has_left_before_ends_at_once(serve: Serve) -> None:
    app = Endless()
    client = serve(app)
    client.leave()
    await client.served.wait()
    assert app.ended_by == "Cancelled"
    assert trio.current_time() == 0


@mock_clock
async def test_an_application_can_wait_for_its_client_to_leave(serve: Serve) -> None:
    messages: list[Message] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        messages.append(await receive())
        messages.append(await receive())

    client = serve(app)
    await client.read_until(b"part")
    client.leave()
    await client.served.wait()
    assert messages == [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]


@mock_clock
async def test_a_client_that_closes_its_half_gets_its_answer(serve: Serve) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        await hello(scope, receive, send)

    for app, request in ((slow, GET), (echo, POST + b"Content-Length: 5\r\n\r\nhello")):
        client = serve(app, request)
        client.leave()
        assert (await client.answer()).status == 200


@mock_clock
async def test_a_reset_cancels_an_application_that_has_not_answered_yet(serve: Serve) -> None:
    async def slow(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await trio.sleep(20)

    client = serve(slow)
    await trio.sleep(1)
    client.link.reset()
    await client.served.wait()
    assert trio.current_time() == 1


@mock_clock
async def test_an_answer_that_is_not_read_is_given_up(serve: Serve) -> None:
    begun = trio.current_time()
    client = serve(Response(bytes(4 * SIZE)))
    await client.served.wait()
    assert trio.current_time() - begun == REQUEST_TIMEOUT
    assert client.link.incoming.broken  # nobody takes the part for the whole


@mock_clock
@pytest.mark.parametrize(("rate", "whole"), [(20_000, True), (5000, True), (2000, False)])
async def test_a_slow_reader_gets_its_answer_and_one_that_hardly_reads_does_not(
    serve: Serve, rate: int, whole: bool
) -> None:
    size = 1 << 20
    client = serve(Response(bytes(size)), capacity=16_384)
    with suppress(OSError):
        while data := await client.read():  # noqa: ASYNC110 - it reads slowly
            await trio.sleep(len(data) / rate)
    assert (len(client.received) > size) == whole


@mock_clock
async def test_a_stream_that_is_not_read_is_given_up(serve: Serve) -> None:
    app = Endless(bytes(SIZE))
    client = serve(app)
    await client.served.wait()
    assert app.ended_by == "Cancelled"
    assert trio.current_time() <= REQUEST_TIMEOUT + app.sent


@mock_clock
async def test_a_reader_that_stops_does_not_hold_up_a_shutdown() -> None:
    server_end, client_end = link_pair(SIZE)
    client_end.send(GET)
    async with FrameStream(server_end, STALL_TIMEOUT) as stream, trio.open_nursery() as nursery:
        await stream.read_head()
        server = HttpServer(Endless(bytes(2 * SIZE)))
        nursery.start_soon(server.serve, stream, ClientAddress.of_peer(server_end.peer))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 0
    assert client_end.incoming.broken


# -- answers that nobody reads


@mock_clock
async def test_who_reads_least_of_the_answers_pays_with_the_oldest(nursery: trio.Nursery) -> None:
    budget = Budget(8 << 20)

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request.state.party = request.query_params["user"]
        await Response(bytes(1 << 20))(scope, receive, send)

    async def ask(user: str) -> Client:
        server_end, client_end = link_pair(SIZE)

        async def run() -> None:
            async with FrameStream(server_end, STALL_TIMEOUT) as stream:
                await stream.read_head()
                address = ClientAddress.of_peer(server_end.peer)
                await HttpServer(large, None, budget).serve(stream, address)

        client_end.send(f"GET /?user={user} HTTP/1.1\r\nHost: relay\r\n\r\n".encode())
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        return Client(client_end)

    honest = await ask("user:ann")
    greedy = [await ask("user:bob") for _ in range(20)]
    assert budget.reserved <= budget.limit
    assert [client.link.incoming.broken for client in greedy] == [True] * 14 + [False] * 6
    assert len((await honest.answer()).body) == 1 << 20
    assert len((await greedy[-1].answer()).body) == 1 << 20
    await trio.sleep(STALL_TIMEOUT + REQUEST_TIMEOUT)
    assert budget.reserved == 0


# -- applications that fail


@mock_clock
async def test_a_failure_before_the_answer_is_a_500(serve: Serve) -> None:
    async def fails(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("a bug")

    async def fails_late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await fails(scope, receive, send)

    async def says_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None: ...

    async def says_nonsense(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"\r\n")]})
        await send({"type": "http.response.body", "body": b"hello"})

    for app in (fails, fails_late, says_nothing, says_nonsense):
        answer = await serve(app).answer()
        assert (answer.status, answer.body) == (500, b"")


@mock_clock
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_failure_behind_the_head_cuts_the_answer(serve: Serve, version: bytes) -> None:
    async def fails(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await trio.sleep(1)
        raise RuntimeError("a bug")

    client = serve(fails, GET.replace(b"1.1", version))
    await client.read_until(b"part")
    with pytest.raises(ConnectionResetError):
        await client.read_to_end()


@mock_clock
async def test_an_answer_that_breaks_its_own_promise_is_cut(serve: Serve) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello world"})

    client = serve(app)
    with pytest.raises(ConnectionResetError):
        await client.read_to_end()
    assert client.received == b""


@mock_clock
async def test_what_an_application_sends_behind_its_answer_ends_it(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        while True:
            await send({"type": "http.response.body", "body": b"more", "more_body": True})

    assert (await serve(app).answer()).body == b"hello"


@mock_clock
async def test_clients_that_leave_are_no_failure_of_the_application(serve: Serve) -> None:
    failures = io.StringIO()

    async def failed(_: Request, problem: Exception) -> Response:
        failures.write(repr(problem))
        return Response(None, 500)

    async def read(request: Request) -> Response:
        await request.body()
        return Response(bytes(4 * SIZE))

    app = Starlette(
        routes=[Route("/", read, methods=["POST"])], exception_handlers={Exception: failed}
    )
    for body in (b"hel", b"hello"):
        client = serve(app, POST + b"Content-Length: 5\r\n\r\n" + body)
        await trio.testing.wait_all_tasks_blocked()
        client.link.reset()
        await client.served.wait()
    assert failures.getvalue() == ""
