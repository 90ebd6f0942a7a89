"""A client that comes back by itself, with what was subscribed, published and sent. Floor 2.

    async with open_relay_client("wss://relay.example.org", get_token) as client:
        client.subscribe("front-door")
        async for event in client:
            ...

It has the manners of relay-client.js; life.py draws the states that it goes through.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import uuid4

from attrs import define

from relay.client.client import with_path
from relay.client.errors import ClientClosed
from relay.client.events import AlertAccepted, Authenticated, Frame
from relay.client.life import Dial, Life
from relay.client.link import Link
from relay.client.manners import Manners
from relay.client.messages import check
from relay.client.publication import Publication
from relay.client.sending import PendingAlert
from relay.client.subscription import Policy, Subscription, Terms
from relay.client.tokens import TokenSource
from relay.client.unread import ClientEvent, State
from relay.protocol.messages import now_ms
from relay.transport.dial import WebSocket, Wrap, check_url, dial, open_background


@asynccontextmanager
async def open_relay_client(
    url: str,
    token: TokenSource,
    *,
    manners: Manners | None = None,
    receive_buffer: int | None = None,
    wrap: Wrap | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RelayClient]:
    """A client that is connected, or about to be, as long as the block lasts.

    `url` needs no path. `token` is asked for before each connection, and when the session is about
    to end. The other options are those of `dial`. `DialFailed` where the URL is none; whatever else
    goes wrong is an event, and another attempt.
    """
    check_url(with_path(url))

    def connect(subprotocols: Sequence[str]) -> AbstractAsyncContextManager[WebSocket]:
        return dial(
            with_path(url),
            receive_buffer=receive_buffer,
            wrap=wrap,
            tls=tls,
            subprotocols=subprotocols,
        )

    async with keep_client(connect, token, manners or Manners()) as client:
        yield client


@asynccontextmanager
async def keep_client(
    dial: Dial, token: TokenSource, manners: Manners
) -> AsyncIterator[RelayClient]:
    """`open_relay_client` over connections of another kind."""
    async with open_background() as nursery:
        life = Life(dial, token, manners)
        nursery.start_soon(life.run)
        try:
            yield RelayClient(life)
        finally:
            life.close(ClientClosed("CLOSED", "the client was closed"))


@define(eq=False, repr=False)
class RelayClient:
    """Made by `open_relay_client`; iterate over it, in one task, for what happens.

    Iteration ends with `ClientClosed` when the relay said that coming back is of no use. A frame is
    acknowledged when the event after it is asked for.
    """

    _life: Life
    _in_hand: tuple[Frame, Link | None] | None = None
    """The frame that the application is busy with, and the connection that it came by."""

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def session(self) -> Authenticated | None:
        """The last one that was told of; None before the first, and when all is over."""
        return self._life.session

    @property
    def publication(self) -> Publication | None:
        return self._life.wants.publication

    def subscribe(
        self,
        stream_id: str,
        *,
        frames: bool = True,
        alerts: bool = True,
        policy: Policy = "latest",
        max_fps: float | None = None,
        window: int | None = None,
        history: int = 0,
    ) -> Subscription:
        """Watch a stream: `Frame`, `Alert` and `Status` events. One subscription for each stream.

        `history`: so many of the alerts before come first, 500 at most. `window`: so many frames
        may be under way; 4 by default, with `lossless` 32.
        """
        self._life.demand_open()
        terms = Terms(frames, alerts, policy, max_fps, window)
        return self._life.wants.subscribe(stream_id, terms, history)

    def publish(
        self,
        stream_id: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        alerts: bool = False,
    ) -> Publication:
        """Produce a stream, one of each client: `Registered` and `Demand` events, and its `Alert`s
        if asked for. Without an id the relay makes one up. `ValueError` for metadata that cannot be
        sent."""
        self._life.demand_open()
        check("register", metadata=metadata)
        return self._life.wants.publish(stream_id, metadata, alerts=alerts)

    def watch_streams(self) -> None:
        """From now on `Streams` events tell of all live streams that may be seen."""
        self._life.demand_open()
        self._life.wants.watch_streams()

    async def alert(
        self,
        stream_id: str,
        message: str,
        *,
        severity: str = "medium",
        metadata: Mapping[str, Any] | None = None,
        timestamp: float | None = None,
        alert_key: str | None = None,
    ) -> AlertAccepted:
        """Raise an alert; when this returns, it is stored, however often the connection was lost.

        The same `alert_key` again is the same alert; made up by default. `ServerError` where the
        relay refuses it, or too many wait; `ValueError` for what cannot be sent; `ClientClosed`.
        """
        self._life.demand_open()
        fields: dict[str, object] = {
            "severity": severity,
            "message": message,
            "metadata": metadata,
            "timestamp": now_ms() if timestamp is None else timestamp,
            "alert_key": uuid4().hex if alert_key is None else alert_key,
        }
        check("alert", stream_id=stream_id, **fields)
        pending = PendingAlert(stream_id, fields)
        with self._life.wants.send(pending):
            return await pending.stored()

    async def ready(self) -> Authenticated:
        """Wait until there is a session; `ClientClosed`."""
        return await self._life.ready()

    def pause(self) -> None:
        """Give the connection up until `resume()`: for who is in the background."""
        self._life.pause()

    def resume(self) -> None:
        self._life.resume()

    def retry_now(self) -> None:
        """While `waiting`: try at once, as when the network is known to be back."""
        self._life.retry_now()

    def relay_now(self) -> float:
        """The relay's clock, ms since the Unix epoch, as far as its answers have shown it."""
        link = self._life.link
        if self._life.clock.notice_step() and link is not None and link.ready:
            link.ping(lambda _answer: None)
        return self._life.clock.now()

    def __aiter__(self) -> RelayClient:
        return self

    async def __anext__(self) -> ClientEvent:
        if self._in_hand is not None:
            self._life.wants.acknowledge(*self._in_hand)
            self._in_hand = None
        event = await self._life.wants.unread.take()
        if not isinstance(event, Frame):
            return event
        self._in_hand = frame, _ = self._life.wants.give(event)
        return frame
