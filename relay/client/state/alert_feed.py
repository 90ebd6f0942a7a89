"""The alerts of one stream, each once and in order, over all connections.

After `subscribe` comes `alerts-since` with the last alert that was seen. Until its last page all
alerts are held, since live ones may come before it, and again in it. When the application leaves
too many unread, new ones are passed over: the relay's store has them, and is asked once there is
room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, evolve, field

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.errors import ServerError
from relay.client.events import Alert, Problem
from relay.client.reconnect_policy import TRANSIENT_ERRORS, ReconnectPolicy
from relay.client.state.event_queue import EventQueue

PAGE_SIZE = 500
"""Alerts that are asked for at once; the relay gives no more."""
MAX_HELD_ALERTS = 1000
"""Live alerts held during a replay. Those beyond are asked for afterwards."""


@define(eq=False)
class AlertFeed:
    """The alerts of one stream, for its subscription, its publication, or both."""

    stream_id: str
    _queue: EventQueue
    _policy: ReconnectPolicy
    history: int = 0
    """How many alerts from before the first connection the application wants, too."""
    subscribed: bool = False
    """Whether a subscription wants them."""
    published: bool = False
    """Whether the own publication wants them: the relay sends them because of its registration."""
    last: int | None = None
    """The last alert that the application was given; None before the first answer."""
    _connection: ClientConnection | None = None
    _held: dict[int, Alert] | None = None
    """The alerts that came during a replay; None when there is no replay."""
    _overflown: bool = False
    """Whether more came than may be held."""
    _behind: bool = False
    """Whether alerts stay in the store until there is room."""
    _newest: int = 0
    _replay: trio.CancelScope = field(factory=trio.CancelScope)
    """Around the task that asks for what was missed."""

    @contextmanager
    def resuming(self, connection: ClientConnection) -> Iterator[None]:
        """Go on from where the feed was, around the request that makes alerts come."""
        if self._connection is connection and self.last is None:
            yield  # the first alert is being asked for already
            return
        self._connection, self._behind = connection, False
        self._held, self._overflown = {}, False
        # The newest alert before the request marks where a new feed begins.
        mark = self._ask_for_mark(connection) if self.last is None else None
        yield
        self._start_replay(connection, mark)

    def begin_new(self, connection: ClientConnection) -> None:
        """The stream is new: it has no alerts yet."""
        self._connection, self.last = connection, 0

    def end(self) -> None:
        """End the feed: the application wants no more alerts."""
        self._replay.cancel()
        self._connection = self._held = None
        self._behind = False

    def receive(self, alert: Alert) -> None:
        """Take an alert, live or of a replay."""
        if self._behind:
            return
        self._newest = alert.alert_id
        if self._held is None:
            self._give(alert)
            if self._behind and self._connection is not None:
                self._start_replay(self._connection, None)
        elif len(self._held) < MAX_HELD_ALERTS:
            self._held[alert.alert_id] = alert
        else:
            self._overflown = True

    def _start_replay(self, connection: ClientConnection, mark: PendingRequest | None) -> None:
        self._replay.cancel()
        self._replay = scope = trio.CancelScope()
        connection.start(self._run_replay, connection, scope, mark)

    async def _run_replay(
        self, connection: ClientConnection, scope: trio.CancelScope, mark: PendingRequest | None
    ) -> None:
        with scope:
            try:
                if mark is not None:
                    await self._find_beginning(connection, mark)
                await self._catch_up(connection)
            except ServerError as error:
                self.last = self.last or 0
                self._give_held(None)
                self._held = None
                self._queue.put(
                    Problem(error.code, error.message, self.stream_id, error.retry_after)
                )

    async def _find_beginning(self, connection: ClientConnection, mark: PendingRequest) -> None:
        """Learn which alert was the newest, and give the history that is wanted."""
        while True:
            try:
                await mark.answer()
                break
            except ServerError as error:
                await self._wait_to_retry(error)
            if self._held and not self.history:
                # Some came live before the question could be answered: they are the beginning.
                self.last = min(self._held) - 1
                return
            mark = self._ask_for_mark(connection)
        history, self._held = self._held or {}, {}
        self.last = self._newest
        if self.history and history:
            self.last = min(history) - 1
            for alert_id in sorted(history):
                self._give(evolve(history[alert_id], replayed=True))

    async def _catch_up(self, connection: ClientConnection) -> None:
        """Ask for page after page of what is after the last alert, until there is no more."""
        kept = True  # whether the relay still has the last alert
        while True:
            if self._behind or not self._queue.room:
                self._fall_behind()
                await self._queue.wait_for_room()
                self._behind = False
            if self._held is None:
                self._held = {}
            self._newest = after = self.last or 0
            limit = min(PAGE_SIZE, self._queue.room)
            page = {"after": after, "limit": limit} if kept else {"last": PAGE_SIZE}
            try:
                answer = await self._ask(connection, **page).answer()
            except ServerError as error:
                if kept and error.code == "INVALID_MESSAGE":
                    kept = False
                else:
                    await self._wait_to_retry(error)
                continue
            kept = True
            if self._overflown:  # perhaps of this page, too: once more, with nothing held
                self._held, self._overflown = {}, False
                continue
            # Replayed alerts come right before their answer: the newest is how far the page went.
            more = bool(answer.get("more"))
            self._give_held(max(after, self._newest) if more else None)
            if not more and not self._behind:
                self._held = None
                return

    def _ask_for_mark(self, connection: ClientConnection) -> PendingRequest:
        self._newest = 0
        return self._ask(connection, last=max(1, self.history))

    def _ask(self, connection: ClientConnection, **which: int) -> PendingRequest:
        return connection.ask("alerts-since", stream_id=self.stream_id, **which)

    def _give_held(self, position: int | None) -> None:
        """Give the alerts that are held, up to this one; None: all."""
        for alert_id in sorted(self._held or ()):
            if self._held is None or (position is not None and alert_id > position):
                return
            self._give(evolve(self._held.pop(alert_id), replayed=True))

    def _give(self, alert: Alert) -> None:
        if self._behind or alert.alert_id <= (self.last or 0):
            return
        if not self._queue.room:
            self._fall_behind()
            return
        self.last = alert.alert_id
        self._queue.put(alert)

    def _fall_behind(self) -> None:
        self._behind, self._held, self._overflown = True, None, False

    async def _wait_to_retry(self, error: ServerError) -> None:
        """Raises an error that does not pass."""
        if error.code not in TRANSIENT_ERRORS:
            raise error
        await trio.sleep(self._policy.until_retry(error))


@define(eq=False)
class AlertFeeds:
    """The feeds of all streams whose alerts are wanted."""

    _queue: EventQueue
    _policy: ReconnectPolicy
    _feeds: dict[str, AlertFeed] = field(factory=dict)

    def get(self, stream_id: str | None) -> AlertFeed | None:
        return None if stream_id is None else self._feeds.get(stream_id)

    def subscribe(self, stream_id: str, history: int = 0) -> AlertFeed:
        feed = self._open(stream_id)
        feed.subscribed, feed.history = True, max(feed.history, history)
        return feed

    def publish(self, stream_id: str) -> AlertFeed:
        feed = self._open(stream_id)
        feed.published = True
        return feed

    def unsubscribe(self, stream_id: str) -> None:
        if feed := self._feeds.get(stream_id):
            feed.subscribed = False
            self._drop_unwanted(feed)

    def unpublish(self, stream_id: str) -> None:
        if feed := self._feeds.get(stream_id):
            feed.published = False
            self._drop_unwanted(feed)

    def _open(self, stream_id: str) -> AlertFeed:
        if stream_id not in self._feeds:
            self._feeds[stream_id] = AlertFeed(stream_id, self._queue, self._policy)
        return self._feeds[stream_id]

    def _drop_unwanted(self, feed: AlertFeed) -> None:
        if not (feed.subscribed or feed.published):
            feed.end()
            del self._feeds[feed.stream_id]
