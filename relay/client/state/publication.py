"""The stream that a `RelayClient` produces, across reconnects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import define, field

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.connection.messages import Fields, read
from relay.client.errors import ClientClosed, ServerError
from relay.client.events import Problem, Registered, Status
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.alert_feed import AlertFeeds
from relay.client.state.event_queue import Demand, EventQueue
from relay.client.state.settle import settle
from relay.errors import RelayError
from relay.protocol.messages import now_ms


@define(eq=False)
class Publication:
    """A stream made by `RelayClient.publish`. It lasts until `stop`, or until the relay refuses it
    with a `Problem`."""

    stream_id: str | None
    """Known once registered."""
    metadata: Mapping[str, Any] | None
    alerts: bool
    _queue: EventQueue
    _feeds: AlertFeeds
    _policy: ReconnectPolicy
    registered: bool = False
    """Whether frames can be sent now."""
    consumers: int = 0
    sent: int = 0
    """Frames, so far."""
    skipped: int = 0
    """Frames, so far."""
    active: bool = True
    _connection: ClientConnection | None = field(default=None, init=False)
    _broken: bool = field(default=True, init=False)
    """Whether a frame was skipped: delta frames are of no use until the next keyframe."""
    _confirmed: int = field(default=0, init=False)
    """Bytes of this connection that the relay has certainly read."""
    _confirming: bool = field(default=False, init=False)
    _counted: bool = field(default=False, init=False)
    """Whether `consumers` is of this connection."""
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _error: RelayError | None = field(default=None, init=False)

    def send_frame(
        self,
        data: bytes,
        *,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Send a frame, or skip it while earlier ones are in transit: it would arrive too late.
        Returns whether it was sent."""
        connection = self._connection
        if (
            connection is None
            or connection.ending is not None
            or not self.registered
            or self._is_full(connection)
            or (self._broken and keyframe is False)
        ):
            self.skipped += 1
            self._broken = True
            return False
        connection.send_soon(
            "video-frame",
            data=data,
            timestamp=now_ms() if timestamp is None else timestamp,
            keyframe=keyframe,
            metadata=metadata,
        )
        self._broken = False
        self.sent += 1
        if not self._confirming:
            self._confirming = True
            connection.start(self._confirm, connection)
        return True

    async def ready(self) -> None:
        """Wait until frames can be sent; raises the error that ended the stream."""
        await self._wait_until(lambda: self.registered)

    async def wanted(self) -> None:
        """Like `ready`, and wait until somebody is watching."""
        await self._wait_until(lambda: self.registered and self._counted and self.consumers > 0)

    def stop(self) -> None:
        """End the stream. The client reconnects: a stream lasts as long as its connection."""
        if not self.active:
            return
        connection = self._connection
        self.end(ClientClosed("CLOSED", "the stream was stopped"))
        if connection is not None:
            # The protocol has no message for it.
            connection.leave("the stream was stopped", polite=True)

    # -- From here on: for the client

    def register(self, connection: ClientConnection) -> PendingRequest:
        """Ask to become the producer, on a connection that may be another one."""
        self._connection = connection
        self._confirming, self._confirmed, self._broken = False, 0, True
        self._counted = False
        feed = self._feeds.get(self.stream_id) if self.alerts else None
        if feed is None:
            return self._ask(connection)
        with feed.resuming(connection):
            return self._ask(connection)

    async def settle(self, request: PendingRequest) -> None:
        """Wait until the relay accepts or refuses."""
        connection = request.connection
        try:
            answer = await settle(request, self.register, lambda: self.active, self._policy)
        except ServerError as error:
            self._queue.put(Problem(error.code, error.message, self.stream_id, error.retry_after))
            self.end(error)
            return
        if answer is not None:
            self._on_registered(answer, connection)

    def receive_status(self, status: Status) -> None:
        consumers = status.consumers or 0
        self._counted = True
        if consumers != self.consumers:
            self.consumers = consumers
            self._queue.put(Demand(status.stream_id, consumers))
        self._tell()

    def lose(self) -> None:
        """The connection is gone."""
        self._connection, self.registered = None, False

    def end(self, error: RelayError) -> None:
        self.active = self.registered = False
        self._connection, self._error = None, error
        if self.stream_id is not None:
            self._feeds.unpublish(self.stream_id)
        self._tell()

    def _on_registered(self, answer: Fields, connection: ClientConnection) -> None:
        self.stream_id = stream_id = read(Registered, answer).stream_id
        self.registered = True
        self._tell()
        self._queue.put(Registered(stream_id))
        if self.alerts:
            is_new = self._feeds.get(stream_id) is None
            feed = self._feeds.publish(stream_id)
            if is_new:
                feed.begin_new(connection)

    def _ask(self, connection: ClientConnection) -> PendingRequest:
        return connection.ask(
            "register",
            stream_id=self.stream_id,
            produces=["video-frame"],
            consumes=["alert"] if self.alerts else [],
            metadata=self.metadata,
        )

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not condition():
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    def _is_full(self, connection: ClientConnection) -> bool:
        """Bytes that the kernel has not taken wait in the connection; bytes in buffers beyond show
        in what the relay has not confirmed."""
        limit = self._policy.max_buffered_bytes
        return connection.bytes_unsent > limit or (
            self._confirming and connection.bytes_queued - self._confirmed > limit
        )

    async def _confirm(self, connection: ClientConnection) -> None:
        """Ask the relay how far it has read: its answer comes behind all that was sent before."""
        queued = connection.bytes_queued
        with suppress(ServerError):
            await connection.ping().answer()
        if connection is self._connection:
            self._confirming, self._confirmed = False, queued

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
