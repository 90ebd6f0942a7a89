"""What is left of a connection that has ended: nothing, and without a search for garbage."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock


@pytest.fixture
def _no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def says_nothing(relay: MemoryRelay) -> Client:
    return await relay.open()


async def guesses(relay: MemoryRelay) -> Client:
    client = await relay.open()
    await client.send({"type": "auth", "token": "no-token"})
    await client.hear_end()
    return client


async def authenticates(relay: MemoryRelay) -> Client:
    return await relay.login()


async def produces(relay: MemoryRelay) -> Client:
    phone = await relay.phone("garden")
    await phone.send({"type": "video-frame", "data": "QUJD"})
    return phone


async def watches(relay: MemoryRelay) -> Client:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send({"type": "video-frame", "data": "QUJD"})
    await viewer.receive_type("video-frame")
    await viewer.ask({"type": "alerts-since", "after": 0})
    return viewer


async def lags(relay: MemoryRelay) -> Client:
    phone, viewer = await relay.phone(), await relay.viewer(capacity=1024)
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": "QUJD" * 1000})
        await wait_all_tasks_blocked()
    assert relay.hub.totals.waiting
    return viewer


@pytest.mark.usefixtures("_no_garbage_collector")
@pytest.mark.parametrize("live", [says_nothing, guesses, authenticates, produces, watches, lags])
async def test_an_ended_connection_is_freed_at_once(
    relay: MemoryRelay, live: Callable[[MemoryRelay], Awaitable[Client]]
) -> None:
    client = await live(relay)
    connection = relay.connections.pop()
    parts = [
        connection,
        connection.peer,
        connection.peer.stream,
        connection._authentication,
        *filter(None, [connection._session]),
    ]
    left = [weakref.ref(part) for part in parts]
    del connection, parts
    client.link.close()
    await wait_all_tasks_blocked()
    assert [part() for part in left if part() is not None] == []


async def errs(relay: MemoryRelay) -> Client:
    client = await relay.open()
    await client.send("no message")
    await client.receive()
    return client


async def errs_in_its_session(relay: MemoryRelay) -> Client:
    client = await relay.login()
    await client.send("no message")
    await client.receive()
    return client


@pytest.mark.usefixtures("_no_garbage_collector")
@pytest.mark.parametrize("live", [errs, errs_in_its_session])
async def test_an_ended_connection_that_sent_an_invalid_message_is_freed_at_once(
    relay: MemoryRelay, live: Callable[[MemoryRelay], Awaitable[Client]]
) -> None:
    """Failed at ebfb761, too: `read` returns an exception whose traceback holds its caller."""
    client = await live(relay)
    peer = weakref.ref(relay.connections.pop().peer)
    client.link.close()
    await wait_all_tasks_blocked()
    assert peer() is None


@pytest.mark.usefixtures("_no_garbage_collector")
@pytest.mark.parametrize("layers", [None, [{"id": "l", "width": 320}, {"id": "h", "width": 640}]])
async def test_a_stream_that_nobody_watches_any_more_is_freed_at_once(
    relay: MemoryRelay, layers: list[dict[str, Any]] | None
) -> None:
    phone, viewer = await relay.login(), await relay.viewer()
    await phone.ask({"type": "register", "streamId": "front-door", "layers": layers})
    for keyframe in (True, False):
        await phone.send({"type": "video-frame", "data": "QUJD", "keyframe": keyframe})
        await wait_all_tasks_blocked()
    stream = weakref.ref(relay.hub.streams()[0])
    phone.link.close()
    viewer.link.close()
    relay.connections.clear()
    await wait_all_tasks_blocked()
    relay.hub.change_owner("front-door", None)
    await trio.sleep(3)  # it counts its viewers for a while
    assert not relay.hub.streams()
    assert stream() is None
