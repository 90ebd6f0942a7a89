"""A client that reconnects by itself, with what was subscribed, published and sent.

    async with open_relay_client("wss://relay.example.org", get_token) as client:
        client.subscribe("front-door")
        async for event in client:
            ...

It behaves as relay-client.js does; lifecycle.py draws its states.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import uuid4

from attrs import define

from relay.client.connection.connection import ClientConnection
from relay.client.connection.messages import check
from relay.client.dial import Wrap, check_url, dial, with_path
from relay.client.errors import ClientClosed
from relay.client.events import AlertAccepted, Authenticated, Frame
from relay.client.lifecycle import Dial, Lifecycle
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.alert_outbox import PendingAlert
from relay.client.state.event_queue import ClientEvent, ClientState
from relay.client.state.publication import Publication
from relay.client.state.subscription import DeliveryPolicy, Subscription, SubscriptionTerms
from relay.client.tokens import TokenSource
from relay.client.websocket import WebSocket
from relay.concurrency.background import open_background
from relay.protocol.messages import now_ms


@asynccontextmanager
async def open_relay_client(
    url: str,
    token: TokenSource,
    *,
    reconnect_policy: ReconnectPolicy | None = None,
    receive_buffer: int | None = None,
    wrap: Wrap | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RelayClient]:
    """A client that is connected, or about to be, as long as the block lasts.

    `url` needs no path. `token` is asked for before each connection, and when the session is about
    to end. The other options are those of `dial`. `DialFailed` for a URL that cannot be one; any
    other failure is an event, and another attempt.
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

    async with keep_client(connect, token, reconnect_policy or ReconnectPolicy()) as client:
        yield client


@asynccontextmanager
async def keep_client(
    dial: Dial, token: TokenSource, policy: ReconnectPolicy
) -> AsyncIterator[RelayClient]:
    """`open_relay_client` over WebSockets that `dial` opens."""
    async with open_background() as nursery:
        lifecycle = Lifecycle(dial, token, policy)
        nursery.start_soon(lifecycle.run)
        try:
            yield RelayClient(lifecycle)
        finally:
            lifecycle.close(ClientClosed("CLOSED", "the client was closed"))


@define(eq=False, repr=False)
class RelayClient:
    """Made by `open_relay_client`; iterate over it, in one task, for what happens.

    Iteration ends with `ClientClosed` when the relay said that reconnecting is of no use. A frame
    is acknowledged when the application asks for the next event.
    """

    _lifecycle: Lifecycle
    _in_hand: tuple[Frame, ClientConnection | None] | None = None
    """The frame that the application is busy with, and the connection that it came by."""

    @property
    def state(self) -> ClientState:
        return self._lifecycle.state

    @property
    def session(self) -> Authenticated | None:
        """The newest session; None before the first, and after the end."""
        return self._lifecycle.session

    @property
    def publication(self) -> Publication | None:
        return self._lifecycle.desired.publication

    def subscribe(
        self,
        stream_id: str,
        *,
        frames: bool = True,
        alerts: bool = True,
        policy: DeliveryPolicy = "latest",
        max_fps: float | None = None,
        window: int | None = None,
        history: int = 0,
    ) -> Subscription:
        """Watch a stream: `Frame`, `Alert` and `Status` events. One subscription for each stream.

        `history`: the number of earlier alerts that come first, 500 at most. `window`: the number
        of frames that may be unacknowledged; 4 by default, with `lossless` 32.
        """
        self._lifecycle.check_open()
        terms = SubscriptionTerms(frames, alerts, policy, max_fps, window)
        return self._lifecycle.desired.subscribe(stream_id, terms, history)

    def publish(
        self,
        stream_id: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        alerts: bool = False,
    ) -> Publication:
        """Produce a stream, one for each client: `Registered` and `Demand` events, and its `Alert`s
        if asked for. Without an id the relay chooses one. `ValueError` for metadata that cannot be
        sent."""
        self._lifecycle.check_open()
        check("register", metadata=metadata)
        return self._lifecycle.desired.publish(stream_id, metadata, alerts=alerts)

    def watch_streams(self) -> None:
        """Ask for `Streams` events: all live streams that this client may watch."""
        self._lifecycle.check_open()
        self._lifecycle.desired.watch_streams()

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
        """Raise an alert; when this returns, it is stored, over any number of connections.

        Two alerts with the same `alert_key` are the same alert; it is random by default.
        `ServerError` where the relay refuses it, or too many wait; `ValueError` for what cannot be
        sent; `ClientClosed`.
        """
        self._lifecycle.check_open()
        fields: dict[str, object] = {
            "severity": severity,
            "message": message,
            "metadata": metadata,
            "timestamp": now_ms() if timestamp is None else timestamp,
            "alert_key": uuid4().hex if alert_key is None else alert_key,
        }
        check("alert", stream_id=stream_id, **fields)
        return await self._lifecycle.desired.send_alert(PendingAlert(stream_id, fields))

    async def ready(self) -> Authenticated:
        """Wait until there is a session; `ClientClosed`."""
        return await self._lifecycle.ready()

    def pause(self) -> None:
        """Close the connection until `resume()`: for applications in the background."""
        self._lifecycle.pause()

    def resume(self) -> None:
        self._lifecycle.resume()

    def retry_now(self) -> None:
        """While `waiting`: try at once, as when the network is known to be back."""
        self._lifecycle.retry_now()

    def relay_now(self) -> float:
        """The relay's clock, ms since the Unix epoch, estimated from its answers."""
        self._lifecycle.check_clock()
        return self._lifecycle.clock.now()

    def __aiter__(self) -> RelayClient:
        return self

    async def __anext__(self) -> ClientEvent:
        desired = self._lifecycle.desired
        if self._in_hand is not None:
            desired.acknowledge(*self._in_hand)
            self._in_hand = None
        event = await desired.queue.get()
        if not isinstance(event, Frame):
            return event
        self._in_hand = frame, _ = desired.give(event)
        return frame
