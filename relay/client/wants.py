"""What an application wants of whichever connection there is: streams to watch, one to produce,
alerts to send. Floor 2.

It outlives connections: `begin` asks a new one for all of it, and `take` sorts what comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from attrs import define, field

from relay.client.errors import ClientClosed
from relay.client.events import Alert, Event, Frame, Registered, Status
from relay.client.feeds import AlertFeed
from relay.client.link import Link
from relay.client.manners import Manners
from relay.client.publication import Publication
from relay.client.sending import AlertsToSend, PendingAlert
from relay.client.streams import StreamList
from relay.client.subscription import Subscription, Terms
from relay.client.unread import Unread
from relay.errors import RelayError


@define(eq=False)
class Wants:
    _manners: Manners
    unread: Unread = field(init=False)
    alerts: AlertsToSend = field(init=False)
    publication: Publication | None = None
    subscriptions: dict[str, Subscription] = field(factory=dict)
    _feeds: dict[str, AlertFeed] = field(factory=dict)
    """Of each stream whose alerts are wanted: one, whoever wants them."""
    _streams: StreamList | None = None
    """If somebody wants to know of them."""
    _link: Link | None = None

    def __attrs_post_init__(self) -> None:
        self.unread = Unread(self._on_room)
        self.alerts = AlertsToSend(self._manners)

    def begin(self, link: Link) -> None:
        """There is a connection, and it is authenticated."""
        self._link = link
        if self.publication is not None:
            self._register(self.publication, link)
        if self._streams is not None:
            self._streams.begin(link)
        for subscription in list(self.subscriptions.values()):
            self._subscribe(subscription, link)
        self._send_alerts()

    def lose(self) -> None:
        """There is none any more."""
        self._link = None
        if self.publication is not None:
            self.publication.lose()

    def close(self, error: ClientClosed) -> None:
        """Nor will there be one."""
        self.alerts.fail(error)
        for subscription in self.subscriptions.values():
            subscription.active = False
        if self.publication is not None:
            self.publication.end(error)

    def take(self, event: Event) -> None:
        """What came, to whom it is for. What nobody wants any more is left."""
        match event:
            case Frame():
                if subscription := self.subscriptions.get(event.stream_id):
                    subscription.take_frame(event)
            case Alert():
                if feed := self._feeds.get(event.stream_id):
                    feed.offer(event)
            case Status(consumers=int()):
                if self.publication is not None and self.publication.stream_id == event.stream_id:
                    self.publication.take_status(event)
            case Status():
                if subscription := self.subscriptions.get(event.stream_id):
                    subscription.take_status(event)
                if self._streams is not None:
                    self._streams.take(event)
            case _:
                self.unread.put(event)

    def give(self, frame: Frame) -> tuple[Frame, Link | None]:
        """The frame as the application gets it, and the connection that it came by."""
        subscription = self.subscriptions.get(frame.stream_id)
        return (frame, None) if subscription is None else subscription.give(frame)

    def acknowledge(self, frame: Frame, link: Link | None) -> None:
        """The application is done with it."""
        if subscription := self.subscriptions.get(frame.stream_id):
            subscription.acknowledge(frame, link)

    def subscribe(self, stream_id: str, terms: Terms, history: int) -> Subscription:
        if stream_id in self.subscriptions:
            raise ValueError(f"there is a subscription to {stream_id} already: update() it")
        subscription = Subscription(stream_id, terms, self, self.unread, self._manners)
        self.subscriptions[stream_id] = subscription
        if terms.alerts:
            self._feed(stream_id, history)
        if self._link is not None:
            self._subscribe(subscription, self._link)
        return subscription

    def publish(
        self, stream_id: str | None, metadata: Mapping[str, Any] | None, *, alerts: bool
    ) -> Publication:
        if self.publication is not None:
            raise ValueError("a client publishes one stream: stop() it first")
        publication = Publication(stream_id, metadata, alerts, self, self.unread, self._manners)
        self.publication = publication
        if alerts and stream_id is not None:
            self._feed(stream_id)
        if self._link is not None:
            self._register(publication, self._link)
        return publication

    def watch_streams(self) -> None:
        if self._streams is None:
            self._streams = StreamList(self.unread, self._manners)
            if self._link is not None:
                self._streams.begin(self._link)

    def send(self, alert: PendingAlert) -> AbstractContextManager[None]:
        """It is sent as long as the block lasts, by each connection."""
        return self.alerts.add(alert, self._send_alerts)

    # -- What subscriptions and the publication ask for

    def resubscribe(self, subscription: Subscription) -> None:
        """With other terms."""
        stream_id, link = subscription.stream_id, self._link
        begins = subscription.terms.alerts and stream_id not in self._feeds
        if begins:
            self._feed(stream_id)
        else:
            self._unfeed(stream_id)
        if link is not None and begins:
            self._subscribe(subscription, link)
        elif link is not None:
            subscription.ask(link)

    def subscribe_again(self, subscription: Subscription, link: Link) -> None:
        """After a refusal that passes, and so that no alert is missed that came meanwhile."""
        if subscription.active:
            self._subscribe(subscription, link)

    def register_again(self, publication: Publication, link: Link) -> None:
        """Likewise."""
        if publication.active:
            self._register(publication, link)

    def drop_subscription(self, subscription: Subscription) -> None:
        if self.subscriptions.pop(subscription.stream_id, None):
            self._unfeed(subscription.stream_id)

    def registered(self, publication: Publication, stream_id: str) -> None:
        self.unread.put(Registered(stream_id))
        if publication.alerts and stream_id not in self._feeds:
            self._feed(stream_id).begin_new(self._link)
        self._send_alerts()

    def drop_publication(self, publication: Publication, error: RelayError | None) -> None:
        if self.publication is not publication:
            return
        self.publication = None
        publication.end(error or ClientClosed("CLOSED", "the stream was stopped"))
        if publication.stream_id is not None:
            self._unfeed(publication.stream_id)
        if error is None and self._link is not None:
            # The protocol has no word for it; the relay ends a stream with its connection.
            self._link.leave("the stream was stopped", politely=True)
        self._send_alerts()

    # -- What a connection is asked for

    def _subscribe(self, subscription: Subscription, link: Link) -> None:
        begin = partial(subscription.begin, link)
        feed = self._feeds.get(subscription.stream_id) if subscription.terms.alerts else None
        if feed is None or self._gives_alerts(subscription.stream_id):
            begin()  # the registration has resumed the alerts
        else:
            feed.resume(link, begin)

    def _register(self, publication: Publication, link: Link) -> None:
        publication.begin(link)
        ask = partial(publication.ask, link)
        feed = self._feeds.get(publication.stream_id or "") if publication.alerts else None
        if feed is None:
            ask()
        else:
            feed.resume(link, ask)

    def _send_alerts(self) -> None:
        """Those of the own stream wait for its registration."""
        mine = self.publication
        if self._link is not None:
            held = mine.stream_id if mine is not None and not mine.registered else None
            self.alerts.send(self._link, but_of=held)

    def _gives_alerts(self, stream_id: str) -> bool:
        """Whether they come because the stream is our own."""
        mine = self.publication
        return mine is not None and mine.alerts and mine.stream_id == stream_id

    def _feed(self, stream_id: str, history: int = 0) -> AlertFeed:
        if stream_id not in self._feeds:
            self._feeds[stream_id] = AlertFeed(stream_id, self.unread, self._manners)
        feed = self._feeds[stream_id]
        feed.history = max(feed.history, history)
        return feed

    def _unfeed(self, stream_id: str) -> None:
        """Unless somebody still wants its alerts."""
        subscription = self.subscriptions.get(stream_id)
        wanted = subscription is not None and subscription.terms.alerts
        if not wanted and not self._gives_alerts(stream_id):
            feed = self._feeds.pop(stream_id, None)
            if feed is not None:
                feed.end()

    def _on_room(self) -> None:
        for feed in self._feeds.values():
            feed.go_on()
