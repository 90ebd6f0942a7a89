from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from relay.workers.control import ControlChannel
from relay.workers.messages import (
    Beat,
    Begin,
    ControlReader,
    Left,
    News,
    Order,
    Receive,
    Relocate,
    Stop,
    Take,
)


class Pair:
    """Both ends of a control channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.parent = ControlChannel(ours, ControlReader.of_news())
        self.worker = ControlChannel(theirs, ControlReader.of_orders())


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    pair.parent.close()
    pair.worker.close()


async def receive(channel: ControlChannel, wanted: int) -> list[Order | News]:
    found: list[Order | News] = []
    with trio.fail_after(10):
        while len(found) < wanted and (message := await channel.receive()) is not None:
            found.append(message)
    return found


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_sockets_arrive_with_their_messages_in_order(pair: Pair, sockets: ExitStack) -> None:
    given = [sockets.enter_context(socket.socket()) for _ in range(20)]
    for number, each in enumerate(given):
        each.bind(("127.0.0.1", 0))
        pair.parent.send(Take(number, 1.0, "peer"), each)
    found = await receive(pair.worker, 20)
    assert [message.number for message in found if isinstance(message, Take)] == list(range(20))
    for each in given:
        descriptor = pair.worker.descriptors.popleft()
        assert descriptor is not None
        with socket.socket(fileno=descriptor) as received:
            assert received.getsockname() == each.getsockname()
            assert not os.get_inheritable(descriptor)


async def test_a_reader_that_does_not_read_holds_nobody_up(pair: Pair) -> None:
    content = bytes(100_000)
    for _ in range(50):
        pair.worker.send(Beat(content))
    assert pair.worker.unsent > 1_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.worker.keep_sending)
        found = await receive(pair.parent, 50)
        await pair.worker.flush()
        nursery.cancel_scope.cancel()
    assert len(found) == 50
    assert pair.worker.unsent == 0


async def test_the_end_of_one_side_ends_the_messages_of_the_other(pair: Pair) -> None:
    pair.worker.send(Left(1))
    pair.worker.close()
    assert await receive(pair.parent, 2) == [Left(1)]
    pair.parent.send(Stop())
    pair.parent.send(Stop())
    assert pair.parent.lost


async def test_descriptors_that_nobody_picked_up_are_closed(pair: Pair, sockets: ExitStack) -> None:
    pair.parent.send(Take(1, 1.0, "peer"), sockets.enter_context(socket.socket()))
    await receive(pair.worker, 1)
    (descriptor,) = pair.worker.descriptors
    assert descriptor is not None
    pair.worker.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_no_representation_shows_what_is_sent(pair: Pair) -> None:
    begin = Begin(
        1, 1, {"database_url": "postgres://relay:secret@db/relay"}, "m", "/tmp", None, b"secret"
    )
    pair.parent.send(Left(1))  # what is sent at once does not wait
    for _ in range(3000):
        pair.parent.send(begin)
    assert pair.parent.unsent
    pair.worker._reader._rest += b"secret"
    viewer = (Relocate(7, "node", "door", b"secret"), Receive(7, "door", b"secret"))
    for each in (begin, pair.parent, pair.worker, (begin,), viewer):
        assert "secret" not in repr(each)


async def test_a_descriptor_that_is_of_no_use_is_closed_and_harms_no_other(
    pair: Pair, sockets: ExitStack
) -> None:
    reading, writing = os.pipe()
    useless: Any = SimpleNamespace(fileno=lambda: writing)
    good = sockets.enter_context(socket.socket())
    pair.parent.send(Take(1, 1.0, "peer"), useless)
    pair.parent.send(Take(2, 1.0, "peer"), good)
    await receive(pair.worker, 2)
    os.close(writing)
    assert pair.worker.pick_up() is None
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""
    os.close(reading)
    taken = pair.worker.pick_up()
    assert taken is not None
    taken.close()


async def test_a_socket_that_is_closed_before_it_is_sent_takes_its_message_along_and_no_other(
    pair: Pair,
) -> None:
    content = bytes(100_000)
    for _ in range(20):
        pair.worker.send(Beat(content))
    gone = socket.socket()
    pair.worker.send(Relocate(1, "node", "front-door", b""), gone)
    pair.worker.send(Left(1))
    gone.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.worker.keep_sending)
        found = await receive(pair.parent, 21)
        await pair.worker.flush()
        nursery.cancel_scope.cancel()
    assert found[20:] == [Left(1)]
    assert not pair.worker.lost
    assert pair.worker.unsent == 0
