"""A stream that a `RelayClient` watches, across reconnects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import define, evolve, field, frozen

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.connection.messages import read
from relay.client.errors import ServerError
from relay.client.events import Frame, Problem, Status, Subscribed
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.alert_feed import AlertFeeds
from relay.client.state.event_queue import EventQueue
from relay.client.state.settle import settle

DeliveryPolicy = Literal["latest", "lossless"]
LATEST_WINDOW, LOSSLESS_WINDOW = 4, 32
"""Unacknowledged frames, by default. The application acknowledges a frame when it asks for the next
event."""


@frozen
class SubscriptionTerms:
    """What the application wants of a stream."""

    frames: bool = True
    alerts: bool = True
    policy: DeliveryPolicy = "latest"
    max_fps: float | None = None
    window: int | None = None
    """None: `LATEST_WINDOW`, or `LOSSLESS_WINDOW`."""
    max_width: int | None = None
    """Pixels: no wider layer, if there is one that is not."""
    layer: str | None = None
    """The id of the only layer that is wanted; None: the largest that the link carries."""

    @property
    def frame_limit(self) -> int:
        return self.window or (LATEST_WINDOW if self.policy == "latest" else LOSSLESS_WINDOW)

    def request(self, stream_id: str) -> dict[str, object]:
        kinds = (("video-frame", self.frames), ("alert", self.alerts))
        return {
            "stream_id": stream_id,
            "consumes": [kind for kind, wanted in kinds if wanted],
            "policy": self.policy,
            "max_fps": self.max_fps,
            "window": self.frame_limit,
            "max_width": self.max_width,
            "layer": self.layer,
        }


@define(eq=False)
class Subscription:
    """A subscription made by `RelayClient.subscribe`. It lasts until `unsubscribe`, or until the
    relay refuses it with a `Problem` that has the stream's id."""

    stream_id: str
    terms: SubscriptionTerms
    _queue: EventQueue
    _feeds: AlertFeeds
    _policy: ReconnectPolicy
    status: str = "offline"
    epoch: int = 0
    """0 while the stream is offline."""
    metadata: Mapping[str, Any] | None = None
    active: bool = True
    _connection: ClientConnection | None = field(default=None, init=False)
    _subscribed: bool = field(default=False, init=False)
    """Whether the relay has accepted it on this connection."""
    _broken: bool = field(default=False, init=False)
    """Whether a frame was skipped: delta frames are of no use until the next keyframe."""
    _seq: int = field(default=0, init=False)

    def update(self, **terms: Any) -> None:
        """Change some of the `SubscriptionTerms`."""
        self.terms = evolve(self.terms, **terms)
        if not self.active:
            return
        had_alerts = self._feeds.get(self.stream_id) is not None
        if self.terms.alerts:
            self._feeds.subscribe(self.stream_id)
        else:
            self._feeds.unsubscribe(self.stream_id)
        connection = self._connection
        if connection is None or connection.ending is not None:
            return
        if self.terms.alerts and not had_alerts:
            self.begin(connection)
        else:
            connection.start(self._settle, self._ask(connection))

    def unsubscribe(self) -> None:
        if self.active:
            self.end()
            connection = self._connection
            if connection is not None and connection.ending is None:
                connection.ask("unsubscribe", stream_id=self.stream_id)

    # -- From here on: for the client

    def begin(self, connection: ClientConnection) -> None:
        """Subscribe on this connection; a task of it waits for the answer."""
        connection.start(self._settle, self._ask_anew(connection))

    def end(self) -> None:
        self.active = False
        self._queue.drop_frames(self.stream_id)
        self._feeds.unsubscribe(self.stream_id)

    def receive_status(self, status: Status) -> None:
        self._learn(status.epoch, status.metadata)
        self.status = status.status
        self._queue.put(evolve(status, metadata=self.metadata))

    def receive_frame(self, frame: Frame) -> None:
        if not self._subscribed:
            return  # of an earlier subscription: this one has not begun
        newest = self._queue.newest_frame(self.stream_id)
        # After a reconnect the latest frame comes again. Decoders want a keyframe again, too.
        seen = newest.seq if newest else self._seq
        if frame.seq == seen or (frame.seq < seen and frame.keyframe is not True):
            self.acknowledge(frame, self._connection)
            return
        latest = self.terms.policy == "latest"  # else the relay gives no more than the window
        limit = self.terms.frame_limit
        full = latest and self._queue.waiting_frames(self.stream_id) >= limit
        if frame.keyframe is False and (full or self._broken):
            self._broken = self._broken or not frame.discardable
            self.acknowledge(frame, self._connection)
            return
        self._broken = False
        if full and frame.keyframe:
            self._queue.drop_frames(self.stream_id)
        self._queue.put_frame(evolve(frame, epoch=self.epoch), limit=limit if latest else None)

    def give(self, frame: Frame) -> tuple[Frame, ClientConnection | None]:
        """The frame as the application gets it now, and the connection that it came by."""
        missed = frame.seq - self._seq - 1 if 0 < self._seq < frame.seq else 0
        self._seq = max(self._seq, frame.seq)
        return evolve(frame, missed=missed), self._connection

    def acknowledge(self, frame: Frame, connection: ClientConnection | None) -> None:
        """Tell the relay that the application is done with the frame."""
        if connection is not None and self.active:
            connection.acknowledge(self.stream_id, frame.seq, frame.epoch or self.epoch)

    def _ask_anew(self, connection: ClientConnection) -> PendingRequest:
        """Subscribe, from nothing on a new connection, and resume the alerts, unless a registration
        does."""
        if connection is not self._connection:
            # Frames that wait were sent before what comes now.
            self._queue.drop_frames(self.stream_id)
            self._subscribed = False
        feed = self._feeds.get(self.stream_id) if self.terms.alerts else None
        if feed is None or feed.published:
            return self._ask(connection)
        with feed.resuming(connection):
            return self._ask(connection)

    def _ask(self, connection: ClientConnection) -> PendingRequest:
        """Subscribe, or change the terms."""
        self._connection = connection
        return connection.ask("subscribe", **self.terms.request(self.stream_id))

    async def _settle(self, request: PendingRequest) -> None:
        """Wait until the relay accepts or refuses."""
        try:
            answer = await settle(request, self._ask_anew, lambda: self.active, self._policy)
        except ServerError as error:
            self._refuse(error)
            return
        if answer is not None:
            subscribed = read(Subscribed, answer)
            self._subscribed = True
            self._learn(subscribed.epoch, subscribed.metadata)

    def _refuse(self, error: ServerError) -> None:
        if self._subscribed:  # with the terms of before
            self.unsubscribe()
        else:
            self.end()
        self._queue.put(Problem(error.code, error.message, self.stream_id, error.retry_after))

    def _learn(self, epoch: int, metadata: Mapping[str, Any] | None) -> None:
        if epoch != self.epoch:
            self.epoch, self._seq = epoch, 0
            self._queue.drop_frames(self.stream_id)
        if metadata is not None:
            self.metadata = metadata
