"""What an application wants of any connection: streams to watch, one to produce, alerts to send.

It outlives connections: `begin` asks a new one for all of it, and `receive` sorts what comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.errors import ClientClosed
from relay.client.events import Alert, AlertAccepted, Event, Frame, FramesReceived, Notice, Status
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.alert_feed import AlertFeeds
from relay.client.state.alert_outbox import AlertOutbox, PendingAlert
from relay.client.state.event_queue import EventQueue
from relay.client.state.publication import Publication
from relay.client.state.published_layers import PublishedLayers
from relay.client.state.stream_list import StreamList
from relay.client.state.subscription import Subscription, SubscriptionTerms
from relay.protocol.messages import Layer


@define(eq=False)
class DesiredState:
    """The subscriptions, the publication and the pending alerts of a `RelayClient`."""

    _policy: ReconnectPolicy
    queue: EventQueue = field(factory=EventQueue)
    outbox: AlertOutbox = field(factory=AlertOutbox)
    _feeds: AlertFeeds = field(init=False)
    _publication: Publication | None = None
    _subscriptions: dict[str, Subscription] = field(factory=dict)
    """By stream; those that have ended stay until the next is made."""
    _streams: StreamList | None = None
    _connection: ClientConnection | None = None

    def __attrs_post_init__(self) -> None:
        self._feeds = AlertFeeds(self.queue, self._policy)

    @property
    def publication(self) -> Publication | None:
        publication = self._publication
        return publication if publication is not None and publication.active else None

    @property
    def main_stream(self) -> str | None:
        """The stream that most depends on the connection: the one that is produced, or else the one
        that is watched for longest."""
        if (publication := self.publication) and publication.stream_id is not None:
            return publication.stream_id
        return next(iter(self._active_subscriptions()), None)

    def begin(self, connection: ClientConnection) -> None:
        """Ask a connection that is authenticated now for everything."""
        self._connection = connection
        if publication := self.publication:
            self._register(publication, connection)
        if self._streams is not None:
            self._streams.begin(connection)
        for subscription in self._active_subscriptions().values():
            subscription.begin(connection)
        self._send_alerts()

    def lose(self) -> None:
        """The connection is gone."""
        self._connection = None
        if publication := self.publication:
            publication.lose()

    def close(self, error: ClientClosed) -> None:
        """There will be no other connection."""
        self.outbox.fail(error)
        for subscription in self._subscriptions.values():
            subscription.active = False
        if publication := self.publication:
            publication.end(error)

    def receive(self, event: Event) -> None:
        """Hand on what came. What nobody wants any more is dropped."""
        match event:
            case Frame():
                if subscription := self._subscription(event.stream_id):
                    subscription.receive_frame(event)
            case Alert():
                if feed := self._feeds.get(event.stream_id):
                    feed.receive(event)
            case Status(consumers=int()) | FramesReceived() | Notice(code="KEYFRAME_WANTED"):
                publication = self.publication
                if publication is not None and publication.stream_id == event.stream_id:
                    publication.receive(event)
            case Status():
                if subscription := self._subscription(event.stream_id):
                    subscription.receive_status(event)
                if self._streams is not None:
                    self._streams.receive_status(event)
            case _:
                self.queue.put(event)

    def give(self, frame: Frame) -> tuple[Frame, ClientConnection | None]:
        """The frame as the application gets it, and the connection that it came by."""
        subscription = self._subscription(frame.stream_id)
        return (frame, None) if subscription is None else subscription.give(frame)

    def acknowledge(self, frame: Frame, connection: ClientConnection | None) -> None:
        """Tell the relay that the application is done with the frame."""
        if subscription := self._subscription(frame.stream_id):
            subscription.acknowledge(frame, connection)

    def subscribe(self, stream_id: str, terms: SubscriptionTerms, history: int) -> Subscription:
        self._subscriptions = self._active_subscriptions()
        if stream_id in self._subscriptions:
            raise ValueError(f"there is a subscription to {stream_id} already: update() it")
        subscription = Subscription(stream_id, terms, self.queue, self._feeds, self._policy)
        self._subscriptions[stream_id] = subscription
        if terms.alerts:
            self._feeds.subscribe(stream_id, history)
        if connection := self._open_connection():
            subscription.begin(connection)
        return subscription

    def publish(
        self,
        stream_id: str | None,
        metadata: Mapping[str, Any] | None,
        layers: Sequence[Layer] = (),
        *,
        alerts: bool,
    ) -> Publication:
        if self.publication is not None:
            raise ValueError("a client publishes one stream: stop() it first")
        publication = Publication(
            *(stream_id, metadata, PublishedLayers(tuple(layers)), alerts),
            *(self.queue, self._feeds, self._policy),
        )
        self._publication = publication
        if alerts and stream_id is not None:
            self._feeds.publish(stream_id)
        if connection := self._open_connection():
            self._register(publication, connection)
        return publication

    def watch_streams(self) -> None:
        if self._streams is None:
            self._streams = StreamList(self.queue, self._policy)
            if connection := self._open_connection():
                self._streams.begin(connection)

    async def send_alert(self, alert: PendingAlert) -> AlertAccepted:
        """Send it on each connection until it is stored; `ServerError`, `ClientClosed`."""
        with self.outbox.holding(alert):
            self._send_alerts()
            return await alert.stored(self._policy)

    def _register(self, publication: Publication, connection: ClientConnection) -> None:
        connection.start(self._settle, publication, publication.register(connection))

    async def _settle(self, publication: Publication, request: PendingRequest) -> None:
        await publication.settle(request)
        self._send_alerts()

    def _send_alerts(self) -> None:
        """Alerts of the own stream wait for its registration."""
        if connection := self._open_connection():
            own = self.publication
            held = own.stream_id if own is not None and not own.registered else None
            self.outbox.send(connection, except_of=held)

    def _open_connection(self) -> ClientConnection | None:
        connection = self._connection
        return connection if connection is not None and connection.ending is None else None

    def _subscription(self, stream_id: str) -> Subscription | None:
        subscription = self._subscriptions.get(stream_id)
        return subscription if subscription is not None and subscription.active else None

    def _active_subscriptions(self) -> dict[str, Subscription]:
        return {
            stream_id: subscription
            for stream_id, subscription in self._subscriptions.items()
            if subscription.active
        }
