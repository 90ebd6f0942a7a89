"""A relay whose messages a test writes out, and a `RelayClient` that talks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
import trio.testing
import trio_websocket
from attrs import define, field

from relay.client import (
    Alert,
    ClientEvent,
    ClientState,
    ReconnectPolicy,
    RelayClient,
    StateChange,
    TokenRequest,
)
from relay.client.errors import DialFailed
from relay.client.relay_client import keep_client
from relay.client.websocket import WebSocket, open_websocket
from tests.unit.memory.scripted_server import ScriptedServer

T = TypeVar("T")
TOKEN = "a-very-secret-token"
POLICY = ReconnectPolicy()


@define(eq=False)
class ScriptedRelay:
    """Connections come to the test, one after the other."""

    nursery: trio.Nursery
    dialled: list[float] = field(factory=list)
    """The time of each attempt."""
    offers: list[tuple[str, ...]] = field(factory=list)
    """The subprotocols that each attempt offered."""
    away: bool = False
    _put: trio.MemorySendChannel[ScriptedServer] = field(init=False)
    _get: trio.MemoryReceiveChannel[ScriptedServer] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[ScriptedServer](10)

    @asynccontextmanager
    async def dial(self, subprotocols: Sequence[str]) -> AsyncIterator[WebSocket]:
        self.offers.append(tuple(subprotocols))
        await trio.lowlevel.checkpoint()
        self.dialled.append(trio.current_time())
        if self.away:
            raise DialFailed("cannot connect to relay: Connection refused")
        client_end, server_end = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._accept, server_end)
        async with open_websocket(client_end, "relay", "/streams/subscribe") as socket:
            yield socket

    async def _accept(self, stream: trio.abc.Stream) -> None:
        request = await trio_websocket.wrap_server_stream(
            self.nursery, stream, message_queue_size=2000
        )
        await self._put.send(ScriptedServer(await request.accept()))

    async def connection(self) -> ScriptedServer:
        """The next one, before its `auth`."""
        return await self._get.receive()

    async def login(self, **session: object) -> ScriptedServer:
        """The next one, behind its `auth`."""
        server = await self.connection()
        request = await server.answer(**session)
        assert request["type"] == "auth"
        return server


@define(eq=False)
class ScriptedTokens:
    """An application that gives its tokens one after the other, and the last again and again."""

    tokens: list[str | Exception | None]
    asked: list[TokenRequest] = field(factory=list)

    async def __call__(self, request: TokenRequest) -> str | None:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        if isinstance(token, Exception):
            raise token
        return token

    @property
    def reasons(self) -> list[str]:
        return [request.reason for request in self.asked]


def open_client(
    scripted: ScriptedRelay, *tokens: str | Exception | None, policy: ReconnectPolicy = POLICY
) -> Any:
    return keep_client(scripted.dial, ScriptedTokens(list(tokens) or [TOKEN]), policy)


async def next_of(client: RelayClient, kind: type[T]) -> T:
    """The next event of a kind; others are passed over."""
    with trio.fail_after(1000):  # by the mock clock
        while not isinstance(event := await anext(client), kind):
            pass
        return event


async def state(client: RelayClient, wanted: ClientState) -> StateChange:
    while (change := await next_of(client, StateChange)).state is not wanted:
        pass
    return change


def unread(client: RelayClient) -> list[ClientEvent]:
    """All that can be taken at once."""
    events = client._lifecycle.desired.queue
    return [*events._events.values(), *(f for each in events._frames.values() for f in each)]


async def never_returns(wait: Callable[[], Awaitable[object]], seconds: float = 1) -> None:
    """Check that a call is still waiting after this time."""
    with trio.move_on_after(seconds) as waiting:
        await wait()
    assert waiting.cancelled_caught


async def subscribed(
    server: ScriptedServer, stream: str = "door", epoch: int = 7
) -> dict[str, Any]:
    """Answer a subscription without alerts; returns what was asked for."""
    request = await server.answer(streamId=stream, epoch=epoch)
    await server.send("status", streamId=stream, epoch=epoch, status="streaming", timestamp=1)
    return request


async def open_door(client: RelayClient, scripted: ScriptedRelay) -> ScriptedServer:
    """Let the client watch the frames of `door` on its next connection."""
    client.subscribe("door", alerts=False)
    server = await scripted.login()
    await subscribed(server)
    return server


async def registered(server: ScriptedServer, stream: str = "door") -> dict[str, Any]:
    request = await server.answer(streamId=stream)
    assert request["type"] == "register"
    return request


async def demand(server: ScriptedServer, consumers: int) -> None:
    await server.send(
        "status", streamId="door", epoch=1, status="online", consumers=consumers, timestamp=1
    )


def page(request: dict[str, Any]) -> tuple[Any, ...]:
    return request["type"], request.get("after"), request.get("last")


async def replay(server: ScriptedServer, *numbers: int, more: bool = False) -> dict[str, Any]:
    request = await server.receive()
    for number in numbers:
        await server.alert(number)
    await server.send("success", id=request["id"], message="", timestamp=1, more=more)
    return request


async def alerts_within(client: RelayClient, seconds: float) -> list[int]:
    """The numbers of those that come in so long."""
    seen = []
    with trio.move_on_after(seconds):
        while True:
            event = await anext(client)
            if isinstance(event, Alert):
                seen.append(event.alert_id)
    return seen
