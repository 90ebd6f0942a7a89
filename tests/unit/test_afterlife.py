"""What is left of a connection that has ended: nothing, and without a search for garbage."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest
from trio.testing import wait_all_tasks_blocked

from tests.unit.memory import Client, Relay

pytestmark = pytest.mark.mock_clock


@pytest.fixture
def _no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def says_nothing(relay: Relay) -> Client:
    return await relay.open()


async def guesses(relay: Relay) -> Client:
    client = await relay.open()
    await client.send({"type": "auth", "token": "no-token"})
    await client.hear_end()
    return client


async def authenticates(relay: Relay) -> Client:
    return await relay.login()


async def produces(relay: Relay) -> Client:
    phone = await relay.phone("garden")
    await phone.send({"type": "video-frame", "data": "QUJD"})
    return phone


async def watches(relay: Relay) -> Client:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send({"type": "video-frame", "data": "QUJD"})
    await viewer.receive_type("video-frame")
    await viewer.ask({"type": "alerts-since", "after": 0})
    return viewer


@pytest.mark.usefixtures("_no_garbage_collector")
@pytest.mark.parametrize("live", [says_nothing, guesses, authenticates, produces, watches])
async def test_an_ended_connection_is_freed_at_once(
    relay: Relay, live: Callable[[Relay], Awaitable[Client]]
) -> None:
    client = await live(relay)
    connection = weakref.ref(relay.connections.pop())
    assert connection() is not None
    client.link.close()
    await wait_all_tasks_blocked()
    assert connection() is None
