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
from relay.client.events import FramesReceived, Notice, Problem, Registered, Status
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.alert_feed import AlertFeeds
from relay.client.state.event_queue import Demand, EventQueue, KeyframeWanted
from relay.client.state.picture_plan import PicturePlan, PicturePlanner
from relay.client.state.settle import settle
from relay.client.state.uplink import Uplink
from relay.errors import RelayError
from relay.protocol.messages import now_ms
from relay.transport.pacing import MAX_DELTA_QUEUE_SECONDS, MAX_QUEUE_SECONDS

WINDOW = 4
"""Asks the relay to say what has come; the number has no other meaning."""


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
    _wanted: bool = field(default=False, init=False)
    """Whether the relay has asked for a keyframe."""
    _uplink: Uplink | None = field(default=None, init=False)
    """None while there is no relay that says what has come."""
    _planner: PicturePlanner = field(factory=PicturePlanner, init=False)
    _planned: bool = field(default=False, init=False)
    """Whether a picture was planned and not sent yet."""
    _confirmed: int = field(default=0, init=False)
    """Bytes of this connection that the relay has certainly read."""
    _confirming: bool = field(default=False, init=False)
    _counted: bool = field(default=False, init=False)
    """Whether `consumers` is of this connection."""
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _error: RelayError | None = field(default=None, init=False)

    @property
    def has_room(self) -> bool:
        """Whether a frame would be sent now: the stream is registered, and nothing is in transit
        that would hold it up."""
        return self._has_room(MAX_QUEUE_SECONDS)

    @property
    def needs_keyframe(self) -> bool:
        """Whether the next frame should be a keyframe, where frames build on one another: nothing
        was sent on this connection, a frame was skipped, or the relay has asked for one."""
        return self._broken or self._wanted

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second that the link to the relay carries, as measured by what has arrived; None
        while that is not known."""
        return None if self._uplink is None else self._uplink.bandwidth(trio.current_time())

    def next(self, *, fps: float, width: int) -> PicturePlan | None:
        """Plan the next picture of a camera that would take `fps` a second of `width` pixels.

        None: take no picture now, since nobody is watching or there is no room for it. Otherwise it
        says how large the picture may be to arrive at that rate. Send it with `send_frame`.
        """
        if not (self._counted and self.consumers > 0 and self.has_room):
            return None
        step = self._planner.plan(fps, width, self.bandwidth, trio.current_time())
        self._planned = True
        return PicturePlan(step.width, step.quality, now_ms())

    def send_frame(
        self,
        data: bytes,
        *,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        discardable: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Send a frame, or skip it while earlier ones are in transit: it would arrive too late.
        Returns whether it was sent.

        Where frames build on one another, those with `keyframe` may queue for half a second, unless
        they are `discardable`: nothing builds on these.
        """
        connection = self._connection
        breaks_others = keyframe is not False or not discardable
        may_queue = keyframe is not None and breaks_others
        room = self._has_room(MAX_DELTA_QUEUE_SECONDS if may_queue else MAX_QUEUE_SECONDS)
        if not room or (self._broken and keyframe is False):
            self.skipped += 1
            self._broken = self._broken or breaks_others
            return False
        assert connection is not None
        if self._uplink is not None and self._uplink.wants_question(trio.current_time()):
            self._ask_ahead(self._uplink, connection)
        before = connection.bytes_queued
        connection.send_soon(
            "video-frame",
            data=data,
            timestamp=now_ms() if timestamp is None else timestamp,
            keyframe=keyframe,
            discardable=discardable,
            metadata=metadata,
        )
        self._broken = False
        self._wanted = self._wanted and keyframe is False
        self.sent += 1
        if self._planned:
            self._planned = False
            self._planner.picture_sent(len(data))
        if self._uplink is not None:
            self._uplink.frame_sent(connection.bytes_queued - before, trio.current_time())
        elif not self._confirming:
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
        self._counted = self._wanted = False
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

    def receive(self, event: Status | FramesReceived | Notice) -> None:
        """Note what the relay says about the stream."""
        if isinstance(event, Notice):
            self._wanted = True
            assert self.stream_id is not None
            self._queue.put(KeyframeWanted(self.stream_id))
            return
        if isinstance(event, FramesReceived):
            if self._uplink is not None:
                self._uplink.frames_received(event.frames, trio.current_time())
            return
        consumers = event.consumers or 0
        self._counted = True
        if consumers != self.consumers:
            self.consumers = consumers
            self._queue.put(Demand(event.stream_id, consumers))
        self._tell()

    def lose(self) -> None:
        """The connection is gone."""
        self._connection, self.registered, self._uplink = None, False, None

    def end(self, error: RelayError) -> None:
        self.active = self.registered = False
        self._connection, self._error = None, error
        if self.stream_id is not None:
            self._feeds.unpublish(self.stream_id)
        self._tell()

    def _on_registered(self, answer: Fields, connection: ClientConnection) -> None:
        self.stream_id = stream_id = read(Registered, answer).stream_id
        if answer.get("window") is not None and self._uplink is None:
            self._uplink = Uplink()
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
            window=WINDOW,
        )

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not condition():
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    def _has_room(self, queue_seconds: float) -> bool:
        connection = self._connection
        if connection is None or connection.ending is not None or not self.registered:
            return False
        return not self._is_full(connection, queue_seconds)

    def _is_full(self, connection: ClientConnection, queue_seconds: float) -> bool:
        """Bytes that the kernel has not taken wait in the connection; bytes in buffers beyond show
        in what the relay has not confirmed."""
        limit = self._policy.max_buffered_bytes
        uplink = self._uplink
        if uplink is not None:
            full = max(connection.bytes_unsent, uplink.bytes_under_way) > limit
            return full or not uplink.has_room(trio.current_time(), queue_seconds)
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

    def _ask_ahead(self, uplink: Uplink, connection: ClientConnection) -> None:
        """Measure the round trip by a question ahead of a frame."""
        question, number = connection.ping(), uplink.question_sent(trio.current_time())

        async def hear() -> None:
            with suppress(ServerError):
                await question.answer()
            uplink.question_answered(number, trio.current_time())

        connection.start(hear)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
