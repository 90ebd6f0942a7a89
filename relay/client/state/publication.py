"""The stream that a `RelayClient` produces, across reconnects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import define, field, frozen

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.connection.messages import Fields, read
from relay.client.errors import ClientClosed, ServerError
from relay.client.events import FramesReceived, Notice, Problem, Registered, Status
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.state.alert_feed import AlertFeeds
from relay.client.state.event_queue import Demand, EventQueue, KeyframeWanted
from relay.client.state.layer_plan import LayerPlanner
from relay.client.state.picture_plan import PicturePlan, PlannedPicture, picture_budget
from relay.client.state.published_layers import PublishedLayers
from relay.client.state.settle import settle
from relay.client.state.uplink import Uplink
from relay.errors import RelayError
from relay.protocol.messages import now_ms
from relay.transport.pacing import (
    MAX_DELTA_QUEUE_SECONDS,
    MAX_DISCARDABLE_QUEUE_SECONDS,
    MAX_QUEUE_SECONDS,
)

WINDOW = 4
"""Asks the relay to say what has come; the number has no other meaning."""


@frozen
class _PublishedPicture:
    """The picture of which frames are sent: all of its layers, or none."""

    timestamp: float
    fits: bool
    """Whether there was room for it."""
    layers: set[str | None] = field(factory=set)
    """Those that have come."""


@define(eq=False)
class Publication:
    """A stream made by `RelayClient.publish`. It lasts until `stop`, or until the relay refuses it
    with a `Problem`."""

    stream_id: str | None
    """Known once registered."""
    metadata: Mapping[str, Any] | None
    _layers: PublishedLayers
    alerts: bool
    _queue: EventQueue
    _feeds: AlertFeeds
    _policy: ReconnectPolicy
    registered: bool = False
    """Whether frames can be sent now."""
    consumers: int = 0
    standby: float | None = None
    """Pictures a second that are wanted while nobody watches; None: none."""
    sent: int = 0
    """Frames, so far."""
    skipped: int = 0
    """Frames, so far."""
    active: bool = True
    _connection: ClientConnection | None = field(default=None, init=False)
    _intact: set[str | None] = field(factory=set, init=False)
    """The layers whose last frame was sent: in others, delta frames are of no use until the next
    keyframe."""
    _wanted: bool = field(default=False, init=False)
    """Whether the relay has asked for a keyframe."""
    _picture: _PublishedPicture | None = field(default=None, init=False)
    _uplink: Uplink | None = field(default=None, init=False)
    """None while there is no relay that says what has come."""
    _planner: LayerPlanner = field(factory=LayerPlanner, init=False)
    _planned: set[str | None] = field(factory=set, init=False)
    """The layers of the last plan that were not sent yet."""
    _confirmed: int = field(default=0, init=False)
    """Bytes of this connection that the relay has certainly read."""
    _confirming: bool = field(default=False, init=False)
    _told_layers: tuple[str, ...] = field(default=(), init=False)
    """Those of the last `Demand`."""
    _standby_due: float = field(default=float("-inf"), init=False)
    """When the next picture is wanted while nobody watches, by Trio's clock."""
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
        was sent on this connection, a frame was skipped, the relay has asked for one, or somebody
        needs a layer of which nothing was sent."""
        is_broken = not self._intact or not self._intact.issuperset(self.wanted_layers)
        return is_broken or self._wanted

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second that the link to the relay carries, as measured by what has arrived; None
        while that is not known."""
        return None if self._uplink is None else self._uplink.bandwidth(trio.current_time())

    @property
    def wanted_layers(self) -> tuple[str, ...]:
        """The ids of the layers that somebody needs now, the smallest first: encode only these.
        Empty for a stream without layers."""
        return self._layers.wanted if self.is_wanted else ()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody is watching, or a picture now and then is wanted all the same."""
        return self._counted and (self.consumers > 0 or self.standby is not None)

    def next(self, *, fps: float, width: int | None = None) -> PicturePlan | None:
        """Plan the next picture of a camera that would take `fps` a second of `width` pixels.

        None: take no picture now, since nobody is watching or there is no room for it; while nobody
        is watching, there may be one now and then, as `standby` says. Otherwise it says how large
        the picture may be to arrive at that rate, for each layer that somebody needs. Send it with
        `send_frame`. `width` may be left out if all layers have one.
        """
        if not (self.is_wanted and self.has_room):
            return None
        now = trio.current_time()
        if not self.consumers:
            if now < self._standby_due:
                return None
            self._standby_due = now + 1 / (self.standby or 1.0)
        widths = self._layers.widths(width)
        if not widths:
            return None
        bandwidth = self.bandwidth
        budget = None if bandwidth is None else picture_budget(bandwidth, fps)
        steps = self._planner.plan(widths, budget, now)
        self._planned = set(steps)
        pictures = (PlannedPicture(id_, step.width, step.quality) for id_, step in steps.items())
        return PicturePlan(tuple(pictures), now_ms())

    def send_frame(
        self,
        data: bytes,
        *,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        discardable: bool | None = None,
        layer: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Send a frame, or skip it while earlier ones are in transit: it would arrive too late.
        Returns whether it was sent.

        Frames of different layers with the same `timestamp` are one picture: all of them are sent,
        or none. Without `layer` a frame is of the largest. A relay that knows of no layers is sent
        only that one. Raises `ValueError` for a layer that was not published.

        Where frames build on one another, those with `keyframe` may queue for half a second, or for
        50 ms if they are `discardable`: nothing builds on these.
        """
        layer_id = self._layers.id_of(layer)
        timestamp = now_ms() if timestamp is None else timestamp
        breaks_others = keyframe is not False or not discardable
        if keyframe is None:
            queue_seconds = MAX_QUEUE_SECONDS
        elif breaks_others:
            queue_seconds = MAX_DELTA_QUEUE_SECONDS
        else:
            queue_seconds = MAX_DISCARDABLE_QUEUE_SECONDS
        if not self._layers.takes(layer_id):
            self.skipped += 1
            return False
        if not self._has_room_for(layer_id, timestamp, queue_seconds):
            self.skipped += 1
            if breaks_others:
                self._intact.clear()
            return False
        if keyframe is False and layer_id not in self._intact:
            self.skipped += 1
            return False
        size = self._write(
            data=data,
            timestamp=timestamp,
            keyframe=keyframe,
            discardable=discardable,
            layer=layer_id if self._layers.known else None,
            metadata=metadata,
        )
        self._intact.add(layer_id)
        self._wanted = self._wanted and keyframe is False
        self.sent += 1
        if layer_id in self._planned:
            self._planned.remove(layer_id)
            self._planner.picture_sent(layer_id, size)
        return True

    async def ready(self) -> None:
        """Wait until frames can be sent; raises the error that ended the stream."""
        await self._wait_until(lambda: self.registered)

    async def wanted(self) -> None:
        """Like `ready`, and wait until somebody is watching, or `standby` wants pictures."""
        await self._wait_until(lambda: self.registered and self.is_wanted)

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
        self._confirming, self._confirmed = False, 0
        self._counted, self._layers.needed = False, None
        self._wanted = False
        self._intact.clear()
        self._picture = None
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
        before = self.consumers, self._told_layers
        self._counted, self.consumers = True, event.consumers or 0
        self.standby = None if self.consumers else event.standby
        self._layers.needed = event.layers if self._layers.known else None
        self._told_layers = self.wanted_layers
        if before != (self.consumers, self._told_layers):
            self._queue.put(Demand(event.stream_id, self.consumers, self._told_layers))
        self._tell()

    def lose(self) -> None:
        """The connection is gone."""
        self._connection, self.registered, self._uplink = None, False, None
        self._picture = None

    def end(self, error: RelayError) -> None:
        self.active = self.registered = False
        self._connection, self._error = None, error
        if self.stream_id is not None:
            self._feeds.unpublish(self.stream_id)
        self._tell()

    def _on_registered(self, answer: Fields, connection: ClientConnection) -> None:
        registered = read(Registered, answer)
        self.stream_id = stream_id = registered.stream_id
        self._layers.known = registered.layers is not None
        if answer.get("window") is not None and self._uplink is None:
            self._uplink = Uplink()
        self.registered = True
        self._tell()
        self._queue.put(registered)
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
            layers=self._layers.layers or None,
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

    def _has_room_for(self, layer_id: str | None, timestamp: float, queue_seconds: float) -> bool:
        """Whether there is room, or was for other layers of the same picture."""
        picture = self._picture
        if picture is None or picture.timestamp != timestamp or layer_id in picture.layers:
            picture = self._picture = _PublishedPicture(timestamp, self._has_room(queue_seconds))
        picture.layers.add(layer_id)
        connection = self._connection
        return picture.fits and connection is not None and connection.ending is None

    def _write(self, **fields: object) -> int:
        """Send a frame, and note it; returns its bytes."""
        connection, uplink = self._connection, self._uplink
        assert connection is not None
        if uplink is not None and uplink.wants_question(trio.current_time()):
            self._ask_ahead(uplink, connection)
        before = connection.bytes_queued
        connection.send_soon("video-frame", **fields)
        size = connection.bytes_queued - before
        if uplink is not None:
            uplink.frame_sent(size, trio.current_time())
        elif not self._confirming:
            self._confirming = True
            connection.start(self._confirm, connection)
        return size

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
