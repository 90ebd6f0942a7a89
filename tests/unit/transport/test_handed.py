from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import trio

from relay.transport.acceptance import Acceptance
from relay.transport.handed import HandedListener, trio_time


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, accepted = socket.socketpair()
    with client, accepted:
        yield client, accepted


async def test_a_handed_socket_becomes_a_stream_that_knows_when_it_was_accepted(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    taken: list[int] = []
    listener = HandedListener(10.0, on_taken=taken.append)
    acceptance = Acceptance(7, 12.5)
    listener.put(pair[1], "192.0.2.1:4711", acceptance)
    assert taken == []
    stream = await listener.accept()
    assert taken == [7]
    assert stream.acceptance is acceptance
    assert stream.link.peer == "192.0.2.1:4711"
    await stream.send_all(b"hello")
    assert pair[0].recv(10) == b"hello"
    await stream.aclose()


async def test_a_listener_waits_for_sockets(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    listener = HandedListener(10.0)
    async with trio.open_nursery() as nursery:

        async def put() -> None:
            await trio.testing.wait_all_tasks_blocked()
            listener.put(pair[1], "peer", Acceptance(1, 0.0))

        nursery.start_soon(put)
        await (await listener.accept()).aclose()


async def test_a_closed_listener_says_that_it_does_not_serve(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    left: list[int] = []
    listener = HandedListener(10.0)
    listener.put(pair[0], "peer", Acceptance(1, 0.0, on_left=left.append))
    await listener.aclose()
    listener.put(pair[1], "peer", Acceptance(2, 0.0, on_left=left.append))
    assert left == [1, 2]
    assert pair[0].fileno() == pair[1].fileno() == -1
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_moments_of_the_machine_are_moments_of_trio() -> None:
    assert trio_time(time.monotonic() - 5) == pytest.approx(trio.current_time() - 5, abs=1)
    assert trio_time(time.monotonic() + 100) <= trio.current_time()
