"""A client that reconnects automatically and restores subscriptions, the publication and alerts.

    async with open_relay_client("wss://relay.example.org", get_token) as client:
        client.subscribe("front-door")
        async for event in client:
            ...

It behaves like relay-client.js; lifecycle.py has a diagram of its states.
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
from relay.client.dial import Wrap, check_url, dial, with_path, with_stream
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
from relay.protocol.messages import Layer, now_ms


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
    """Open a client that stays connected until the end of the block.

    `url` needs no path. The client asks for `token` before each connection, and when the session is
    about to end. The other options are those of `dial`. Raises `DialFailed` for an invalid URL; any
    other failure is an event, followed by another attempt.
    """
    check_url(with_path(url))

    def connect(subprotocols: Sequence[str]) -> AbstractAsyncContextManager[WebSocket]:
        # Called by a task that runs when the client is there.
        return dial(
            with_stream(with_path(url), client.main_stream),
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
    """A client made by `open_relay_client`. Iterate over it, in one task, to receive events.

    Iteration raises `ClientClosed` when reconnecting would not help. A frame is acknowledged when
    the application asks for the next event.
    """

    _lifecycle: Lifecycle
    _in_hand: tuple[Frame, ClientConnection | None] | None = None
    """The frame that the application is processing, and the connection that received it."""

    @property
    def state(self) -> ClientState:
        return self._lifecycle.state

    @property
    def session(self) -> Authenticated | None:
        """The newest session; None before the first, and after the end."""
        return self._lifecycle.session

    @property
    def main_stream(self) -> str | None:
        """The stream that a new connection is for, as far as that is known: the one that is
        produced, or else the first that is watched."""
        return self._lifecycle.desired.main_stream

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
        max_width: int | None = None,
        layer: str | None = None,
        history: int = 0,
    ) -> Subscription:
        """Subscribe to a stream: `Frame`, `Alert` and `Status` events. One subscription per stream.

        `history` is the number of earlier alerts to begin with, at most 500. `window` is the number
        of frames that may be unacknowledged: 4 by default, 32 with `lossless`. Of a stream with
        layers comes the largest that the link carries, no wider than `max_width` pixels, or `layer`
        alone.
        """
        self._lifecycle.check_open()
        terms = SubscriptionTerms(frames, alerts, policy, max_fps, window, max_width, layer)
        return self._lifecycle.desired.subscribe(stream_id, terms, history)

    def publish(
        self,
        stream_id: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        layers: Sequence[Layer] = (),
        alerts: bool = False,
    ) -> Publication:
        """Publish a stream: `Registered` and `Demand` events, and its `Alert`s if `alerts`. One per
        client. Without an id, the relay chooses one. `layers` are the sizes in which each picture
        can be sent, the smallest first. Raises `ValueError` for metadata that cannot be sent."""
        self._lifecycle.check_open()
        check("register", metadata=metadata)
        return self._lifecycle.desired.publish(stream_id, metadata, layers, alerts=alerts)

    def watch_streams(self) -> None:
        """Request `Streams` events: the live streams that the user may watch, after each change."""
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
        frame: bool | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> AlertAccepted:
        """Raise an alert; returns when it is stored, across reconnects.

        Two alerts with the same `alert_key` are the same alert; the key is random by default. With
        `frame`, the picture of that moment is kept with it. `traceparent` and `tracestate`, of W3C
        Trace Context, are the span that the relay's trace of it continues.
        Raises `ServerError` if the relay refuses the alert or too many are waiting, `ValueError`
        for a value that cannot be sent, and `ClientClosed`.
        """
        self._lifecycle.check_open()
        fields: dict[str, object] = {
            "severity": severity,
            "message": message,
            "metadata": metadata,
            "timestamp": now_ms() if timestamp is None else timestamp,
            "alert_key": uuid4().hex if alert_key is None else alert_key,
            "frame": frame,
            "traceparent": traceparent,
            "tracestate": tracestate,
        }
        check("alert", stream_id=stream_id, **fields)
        return await self._lifecycle.desired.send_alert(PendingAlert(stream_id, fields))

    async def ready(self) -> Authenticated:
        """Wait until the client is authenticated; raises `ClientClosed`."""
        return await self._lifecycle.ready()

    def pause(self) -> None:
        """Close the connection until `resume()`: for applications in the background."""
        self._lifecycle.pause()

    def resume(self) -> None:
        self._lifecycle.resume()

    def retry_now(self) -> None:
        """While `waiting`, reconnect at once, for instance because the network is back."""
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
