"""What an authenticated peer may do. Floor 3.

Every operation is guarded here, and each is answered: with a `success`, or with an `error` that
says why not. Frames alone go unanswered.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import trio
from attrs import define, field, frozen

from relay import policy
from relay.alert_requests import AlertRequests
from relay.alerts.intake import AlertIntake
from relay.alerts.replay import Replays
from relay.answers import Answers
from relay.closing import Ending
from relay.errors import StoreUnavailable
from relay.guard.rates import Rate
from relay.hub.consumer import Consumer
from relay.hub.hub import Hub
from relay.hub.stream import Stream
from relay.hub.terms import Terms
from relay.metrics import Limit, Metrics
from relay.model import Identity, User
from relay.postgres.alerts import AlertTable
from relay.postgres.streams import StreamOwners
from relay.protocol.codec import Codec
from relay.protocol.messages import (
    ALERT,
    REGISTER,
    VIDEO_FRAME,
    Ack,
    Alert,
    AlertEvent,
    AlertsSince,
    Auth,
    ClientMessage,
    ErrorCode,
    Register,
    RequestId,
    ServerMessage,
    StreamEntry,
    Streams,
    Subscribe,
    Success,
    Unsubscribe,
    VideoFrame,
)
from relay.transport.outlet import Outlet

REMINDER = 1.0
"""Seconds between two errors about frames that cannot be taken."""


class Line(Protocol):
    """The connection below a session."""

    accepted: int
    outlet: Outlet
    codec: Codec
    ending: Ending | None

    @property
    def identity(self) -> Identity:
        """The session's, once it has begun."""

    def tell(self, message: ServerMessage) -> object: ...

    def start_soon(self, task: Callable[[], Awaitable[object]]) -> object:
        """Start a task that ends with the connection."""

    def end(self, ending: Ending, *, request_id: RequestId = None) -> object: ...

    def audit(
        self, what: str, *, outcome: str, reason: str = "", stream_id: str | None = None
    ) -> object: ...


@frozen
class Services:
    """What sessions work with."""

    hub: Hub
    owners: StreamOwners
    alerts: AlertIntake
    history: AlertTable
    metrics: Metrics
    lossless_bytes: int
    """That may wait for a consumer that must not miss a frame."""
    max_subscriptions: int | None = None
    """Of one connection."""
    max_streams: int | None = None
    """Of one user, online at a time."""
    register_rate: Rate | None = None
    """Of one user."""
    alert_rate: Rate | None = None
    """Of one sender."""


@define(eq=False)
class Session:
    """One authenticated connection: a producer, a consumer of streams, or both."""

    identity: Identity
    _line: Line
    _services: Services
    wants_alerts: bool = False
    """Of the stream that it produces."""
    _produced: Stream | None = None
    _consumers: dict[str, tuple[Stream, Consumer]] = field(factory=dict)
    _reminded: float = float("-inf")
    _replays: Replays = field(init=False)
    _answers: Answers = field(init=False)
    _alerts: AlertRequests = field(init=False)

    def __attrs_post_init__(self) -> None:
        # They know the line, and not this session: it is then freed when nobody needs it any more.
        line = self._line
        self._replays = Replays(
            line.tell,
            lambda alert: len(line.codec.encode(alert)),
            lambda stream_id, owner_id: policy.may_watch(line.identity, stream_id, owner_id),
            line.start_soon,
        )
        self._answers = Answers(line, self._services.metrics)
        self._alerts = AlertRequests(
            lambda: line.identity,
            line.tell,
            self._answers,
            self._replays,
            self._services.alerts,
            self._services.history,
            self._services.alert_rate,
        )

    @property
    def accepted(self) -> int:
        return self._line.accepted

    def tell(self, message: ServerMessage) -> None:
        self._line.tell(message)

    @property
    def codec(self) -> Codec:
        return self._line.codec

    def too_slow(self) -> None:
        self._line.end(Ending.TOO_SLOW)

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> None:
        self._replays.deliver(alert, owner_id)

    def superseded(self) -> None:
        self._line.end(Ending.SUPERSEDED)

    def become(self, identity: Identity) -> None:
        """Go on as the same user or service with other permissions, which count from now on."""
        before, self.identity = self.identity, identity
        if policy.view_of(before) == policy.view_of(identity):
            return
        consumers = {stream_id: consumer for stream_id, (_, consumer) in self._consumers.items()}
        self._services.hub.reconsider(self, before, consumers)

    async def handle(self, message: ClientMessage) -> AlertsSince | None:
        """Do what an authenticated peer asks, with anything but frames; returns what is to be done
        next for it, while others go on."""
        match message:
            case Register():
                return await self._register(message)
            case Subscribe():
                return self._subscribe(message)
            case Unsubscribe():
                self._unsubscribe(message)
            case Ack():
                self._acknowledge(message)
            case Alert():
                await self._alerts.store(message)
            case AlertsSince():
                await self._alerts.replay(message)
            case Streams():
                self._list_streams(message)
            case Auth() | VideoFrame():
                raise AssertionError("the connection authenticates and publishes")
        return None

    async def publish(self, frames: list[VideoFrame]) -> None:
        """Publish frames that came at once, in the registered stream."""
        stream, own = self._produced, []
        for frame in frames:
            if stream is None:
                text = "Register a stream before sending frames"
                self._remind(frame, ErrorCode.NOT_REGISTERED, text)
            elif frame.stream_id is not None and frame.stream_id != stream.stream_id:
                text = "This connection registered another stream"
                self._remind(frame, ErrorCode.UNAUTHORIZED, text)
            else:
                own.append(frame)
        if stream is not None:
            await stream.publish(own, self)

    def skip_frames(self) -> None:
        """Frames of the peer were dropped before they came here."""
        if self._produced is not None:
            self._produced.skip(self)

    def close(self) -> None:
        """Leave all streams."""
        hub = self._services.hub
        hub.unobserve(self)
        if self._produced is not None:
            hub.release(self._produced, self)
        for stream, consumer in self._consumers.values():
            hub.unsubscribe(stream, consumer)
        self._consumers.clear()

    async def _register(self, message: Register) -> AlertsSince | None:
        if not policy.may_register(self.identity, None):
            text = "Only users register streams"
            self._answers.refuse(message, ErrorCode.UNAUTHORIZED, text, message.stream_id)
            return None
        assert isinstance(self.identity, User)
        stream_id = message.stream_id or f"stream_{secrets.token_hex(16)}"
        rate = self._services.register_rate
        wait = None if rate is None else rate.hit(self.identity.sender)
        if wait is not None:
            self._answers.refuse_for_rate(message, Limit.REGISTRATIONS, wait, stream_id)
            return None
        if self._has_too_many_streams(message, stream_id, self.identity.user_id):
            return None
        try:
            owner_id = await self._services.owners.claim(stream_id, self.identity.user_id)
        except StoreUnavailable:
            self._line.audit(REGISTER, outcome="unavailable", stream_id=stream_id)
            self._answers.refuse_for_store(message)
            return None
        if self._line.ending is not None:  # in the very moment of the answer
            return None
        return self._claimed(message, stream_id, owner_id)

    def _claimed(self, message: Register, stream_id: str, owner_id: str) -> AlertsSince | None:
        if not policy.may_register(self.identity, owner_id):
            text = "This stream id is taken"
            self._answers.refuse(message, ErrorCode.UNAUTHORIZED, text, stream_id)
            return None
        if self._has_too_many_streams(message, stream_id, owner_id):  # meanwhile
            return None
        return self._produce(message, stream_id, owner_id)

    def _has_too_many_streams(self, message: Register, stream_id: str, user_id: str) -> bool:
        most, replaced = self._services.max_streams, self._produced
        others = {stream_id} if replaced is None else {stream_id, replaced.stream_id}
        if most is None or self._services.hub.count_streams_of(user_id, but=others) < most:
            return False
        self._services.metrics.limits_hit[Limit.STREAMS_OF_USER] += 1
        retry_after = Ending.TOO_MANY_CONNECTIONS.value.retry_after
        text = f"A user may have {most} streams online"
        code = ErrorCode.TOO_MANY_CONNECTIONS
        self._answers.refuse(message, code, text, stream_id, retry_after=retry_after)
        return True

    def _produce(self, message: Register, stream_id: str, owner_id: str) -> AlertsSince | None:
        hub, before = self._services.hub, self._produced
        other = hub.producer(stream_id)
        stream = hub.register(stream_id, owner_id, self, message.metadata)
        if stream is None:
            reason = "a newer connection produces it"
            self._line.audit(REGISTER, outcome="refused", reason=reason, stream_id=stream_id)
            self._line.end(Ending.SUPERSEDED, request_id=message.id)
            return None
        if other is None or other is self:
            self._line.audit(REGISTER, outcome="succeeded", stream_id=stream_id)
        else:
            reason = f"from connection {other.accepted}"
            self._line.audit("takeover", outcome="succeeded", reason=reason, stream_id=stream_id)
        if before is not None and before is not stream:
            hub.release(before, self, at_once=True)
        self._produced = stream
        self.wants_alerts = _wants(ALERT, message.consumes, default=True)
        self.tell(
            Success(
                code="REGISTERED",
                message=f"Registration successful. Stream ID: {stream_id}",
                id=message.id,
                stream_id=stream_id,
                epoch=stream.epoch,
            )
        )
        stream.tell_producer()
        return self._missed(message, stream_id, wants_alerts=self.wants_alerts)

    def _subscribe(self, message: Subscribe) -> AlertsSince | None:
        stream_id = message.stream_id
        before = self._consumers.get(stream_id)
        most = self._services.max_subscriptions
        if before is None and most is not None and len(self._consumers) >= most:
            self._services.metrics.limits_hit[Limit.SUBSCRIPTIONS] += 1
            text = f"A connection may have {most} subscriptions"
            self._answers.refuse(message, ErrorCode.INVALID_MESSAGE, text, stream_id)
            return None
        consumer = Consumer(
            stream_id=stream_id,
            wants_frames=_wants(VIDEO_FRAME, message.consumes),
            wants_alerts=_wants(ALERT, message.consumes),
            peer=self,
            outlet=self._line.outlet,
            ages=self._services.metrics.frame_age,
            terms=Terms(message.policy, message.max_fps, message.window),
            lossless_bytes=self._services.lossless_bytes,
        )
        stream = self._services.hub.subscribe(consumer)
        self._consumers[stream_id] = (stream, consumer)
        status = stream.status_for(consumer)
        visible = status.epoch > 0
        self.tell(
            Success(
                code="SUBSCRIBED",
                message="Subscription successful",
                id=message.id,
                stream_id=stream_id,
                epoch=status.epoch,
                metadata=stream.metadata if visible else None,
            )
        )
        self.tell(status)
        stream.watch(consumer)
        if before is not None:  # after that, so that the producer sees no gap between the two
            self._services.hub.unsubscribe(*before)
        return self._missed(message, stream_id, wants_alerts=consumer.wants_alerts)

    def _missed(
        self, message: Register | Subscribe, stream_id: str, *, wants_alerts: bool
    ) -> AlertsSince | None:
        """The replay of what the peer missed of a stream to which it came just now; until then
        live alerts wait."""
        if message.alerts_after is None:
            return None
        if not wants_alerts:
            text = 'Invalid message: `consumes` is without "alert" - at `$.alertsAfter`'
            self._answers.refuse(message, ErrorCode.INVALID_MESSAGE, text, stream_id)
            return None
        self._replays.begin(stream_id, promised=True)
        return AlertsSince(id=message.id, stream_id=stream_id, after=message.alerts_after)

    def _unsubscribe(self, message: Unsubscribe) -> None:
        if self._leave(message.stream_id):
            self.tell(
                Success(
                    code="UNSUBSCRIBED",
                    message="Subscription ended",
                    id=message.id,
                    stream_id=message.stream_id,
                )
            )
        else:
            text = "There is no subscription to this stream"
            self._answers.refuse(message, ErrorCode.INVALID_MESSAGE, text, message.stream_id)

    def _leave(self, stream_id: str) -> bool:
        subscribed = self._consumers.pop(stream_id, None)
        if subscribed is not None:
            self._services.hub.unsubscribe(*subscribed)
            if not (self.wants_alerts and self._produces(stream_id)):
                self._replays.leave(stream_id)
        return subscribed is not None

    def _produces(self, stream_id: str) -> bool:
        return self._produced is not None and self._produced.stream_id == stream_id

    def _acknowledge(self, message: Ack) -> None:
        subscribed = self._consumers.get(message.stream_id)
        if subscribed is None:  # it crossed our UNSUBSCRIBED
            return
        stream, consumer = subscribed
        if message.epoch in (None, stream.epoch):  # else it is about an earlier life
            consumer.acknowledge(message.seq)

    def _list_streams(self, message: Streams) -> None:
        streams = [
            StreamEntry(stream_id=each.stream_id, status=each.status, metadata=each.metadata)
            for each in self._services.hub.observe(self)
        ]
        self.tell(Success(code="STREAMS", message="Streams", id=message.id, streams=streams))

    def _remind(self, frame: VideoFrame, code: ErrorCode, text: str) -> None:
        """Refuse a frame, at most once a second however many come."""
        now = trio.current_time()
        if now - self._reminded >= REMINDER:
            self._reminded = now
            self._answers.refuse(frame, code, text, frame.stream_id)


def _wants(kind: str, consumes: Collection[str] | None, *, default: bool = False) -> bool:
    return default if consumes is None else kind in consumes
