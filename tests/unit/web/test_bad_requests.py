"""Bad requests: answered, and nothing is left of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay.guard.client_address import ClientAddress
from relay.transport.stream import FrameStream
from relay.web.http import HttpServer
from tests.unit.memory import link_pair
from tests.unit.web.test_http_server import POST, Client, serve

__all__ = ["serve"]


async def echo(request: Request) -> Response:
    return Response(await request.body())


APP = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])


async def test_a_method_is_written_in_capitals(serve: Callable[..., Client]) -> None:
    client = serve(APP, b"get / HTTP/1.1\r\nHost: relay\r\n\r\n")
    with trio.fail_after(2):
        assert (await client.answer()).status == 405


@pytest.mark.parametrize(
    "request_",
    [b"nonsense\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=["head", "chunk"],
)
async def test_nothing_is_left_of_a_bad_request_without_a_search_for_garbage(
    request_: bytes,
) -> None:
    """`RemoteProtocolError` of h11 refers to itself by its traceback, and so to the exchange."""
    server_end, client_end = link_pair()
    client_end.send(request_)
    stream = FrameStream(server_end, 5)
    left = weakref.ref(stream)

    async def serve_it(stream: FrameStream) -> None:
        async with stream:
            await stream.read_head()
            await HttpServer(APP).serve(stream, ClientAddress.of_peer(server_end.peer))

    gc.collect()
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_it, stream)
            del stream
        await trio.testing.wait_all_tasks_blocked()
        assert left() is None
    finally:
        gc.enable()
