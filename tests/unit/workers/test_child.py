"""When a worker may be given a connection."""

from __future__ import annotations

import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from relay.guard.client_address import ClientAddress
from relay.workers.child import (
    FULL_PAUSE,
    LATE_AFTER,
    MAX_TAKING_TIME,
    MAX_UNTAKEN,
    ChildWorker,
    GivenConnection,
    WorkerState,
)
from relay.workers.control import ControlChannel
from relay.workers.messages import Beat, ControlReader, CrowdOut, Take, pack

pytestmark = pytest.mark.mock_clock


class Both:
    """A worker as its parent sees it, and the worker's end of the channel."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.channel = ControlChannel(ours, ControlReader.of_news())
        self.child = ChildWorker(
            1, cast("Any", SimpleNamespace(pid=1)), self.channel, WorkerState.READY
        )

    def give(self, number: int) -> GivenConnection:
        given = GivenConnection(number, self.theirs, "peer", 0.0, ClientAddress.parse("192.0.2.1"))
        self.child.give(given)
        return given

    def orders(self) -> list[Any]:
        """What the parent has said."""
        self.theirs.setblocking(False)
        reader = ControlReader.of_orders()
        found: list[Any] = []
        with suppress(BlockingIOError):  # a read ends behind a descriptor
            while True:
                found += reader.feed(self.theirs.recv(1 << 20))
        return found


@pytest.fixture
async def both(autojump_clock: trio.testing.MockClock) -> Any:
    both = Both()
    yield both
    both.channel.close()
    both.theirs.close()


async def test_a_silent_worker_gets_nothing_until_it_says_something(both: Both) -> None:
    assert both.child.has_room
    await trio.sleep(LATE_AFTER + 0.1)
    assert both.child.state is WorkerState.LATE
    assert not both.child.has_room
    both.theirs.sendall(pack(Beat(b"")))
    assert await both.child.receive() == Beat(b"")
    assert both.child.has_room


async def test_a_worker_that_does_not_take_what_it_was_given_gets_no_more(both: Both) -> None:
    both.give(1)
    assert both.child.has_room
    await trio.sleep(MAX_TAKING_TIME + 0.1)
    assert both.child.state is WorkerState.LATE
    both.child.untaken.clear()
    assert both.child.has_room


async def test_a_worker_may_owe_only_so_many(both: Both) -> None:
    for number in range(MAX_UNTAKEN):
        assert both.child.has_room
        both.give(number)
    assert not both.child.has_room


async def test_a_worker_that_gives_a_connection_back_gets_none_for_a_moment(both: Both) -> None:
    given = both.give(1)
    assert both.child.take_back(1) is given
    assert not both.child.has_room
    await trio.sleep(FULL_PAUSE)
    assert both.child.has_room
    both.give(2)
    both.child.untaken.clear()  # it has taken it
    assert both.child.take_back(2) is None
    assert both.child.has_room


async def test_a_worker_that_is_replaced_gets_nothing(both: Both) -> None:
    both.child.retiring = True
    assert not both.child.has_room


async def test_who_is_crowded_out_before_a_worker_has_them_is_ended_there(both: Both) -> None:
    given = GivenConnection(7, both.theirs, "peer", 0.0, ClientAddress.parse("192.0.2.1"))
    given.crowded_out(cast("Any", None))
    both.child.give(given)
    assert both.orders() == [Take(7, 0.0, "peer"), CrowdOut(7)]
