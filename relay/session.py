"""What an authenticated peer may do. Floor 3.

Every operation is guarded here, and each is answered: with a `success`, or with an `error` that
says why not. Frames alone go unanswered.
"""

from __future__ import annotations

from attrs import define, field

from relay import policy
from relay.alert_requests import AlertRequests
from relay.alerts.replay import Replays
from relay.answers import Answers
from relay.hub.consumer import Consumer
from relay.hub.stream import Stream
from relay.hub.terms import Terms
from relay.metrics import Limit
from relay.model import Identity
from relay.participant import Line, Participant
from relay.production import Production
from relay.protocol.messages import (
    ALERT,
    VIDEO_FRAME,
    Ack,
    Alert,
    AlertsSince,
    Auth,
    ClientMessage,
    ErrorCode,
    Register,
    StreamEntry,
    Streams,
    Subscribe,
    Success,
    Unsubscribe,
    VideoFrame,
)
from relay.services import Services


@define(eq=False)
class Session:
    """One authenticated connection: a producer, a consumer of streams, or both."""

    _participant: Participant
    _line: Line
    _services: Services
    _production: Production
    _answers: Answers
    _alerts: AlertRequests
    _consumers: dict[str, tuple[Stream, Consumer]] = field(factory=dict, init=False)

    @classmethod
    def open(cls, identity: Identity, line: Line, services: Services) -> Session:
        # The parts know the line, and not their session: it is freed when nobody needs it any more.
        replays = Replays(
            line.tell,
            lambda alert: len(line.codec.encode(alert)),
            lambda stream_id, owner_id: policy.may_watch(line.identity, stream_id, owner_id),
            line.start_soon,
        )
        participant = Participant(identity, line, replays)
        answers = Answers(line, services.metrics)
        production = Production(participant, line, services, answers)
        alerts = AlertRequests(participant, answers, replays, services)
        return cls(participant, line, services, production, answers, alerts)

    @property
    def identity(self) -> Identity:
        return self._participant.identity

    def become(self, identity: Identity) -> None:
        """Go on as the same user or service with other permissions, which count from now on."""
        participant = self._participant
        before, participant.identity = participant.identity, identity
        if policy.view_of(before) == policy.view_of(identity):
            return
        consumers = {stream_id: consumer for stream_id, (_, consumer) in self._consumers.items()}
        self._services.hub.reconsider(participant, before, consumers)

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
        await self._production.publish(frames)

    def skip_frames(self) -> None:
        """Frames of the peer were dropped before they came here."""
        self._production.skip()

    def close(self) -> None:
        """Leave all streams."""
        hub = self._services.hub
        hub.unobserve(self._participant)
        self._production.close()
        for stream, consumer in self._consumers.values():
            hub.unsubscribe(stream, consumer)
        self._consumers.clear()

    async def _register(self, message: Register) -> AlertsSince | None:
        stream_id = await self._production.register(message)
        if stream_id is None:
            return None
        wants_alerts = self._participant.wants_alerts
        return self._alerts.promise(message, stream_id, wants_alerts=wants_alerts)

    def _subscribe(self, message: Subscribe) -> AlertsSince | None:
        stream_id = message.stream_id
        before = self._consumers.get(stream_id)
        most = self._services.max_subscriptions
        if before is None and most is not None and len(self._consumers) >= most:
            self._services.metrics.limits_hit[Limit.SUBSCRIPTIONS] += 1
            text = f"A connection may have {most} subscriptions"
            self._answers.refuse(message, ErrorCode.INVALID_MESSAGE, text, stream_id)
            return None
        consumes = message.consumes or ()
        consumer = Consumer(
            stream_id=stream_id,
            wants_frames=VIDEO_FRAME in consumes,
            wants_alerts=ALERT in consumes,
            peer=self._participant,
            outlet=self._line.outlet,
            ages=self._services.metrics.frame_age,
            terms=Terms(message.policy, message.max_fps, message.window),
            lossless_bytes=self._services.lossless_bytes,
        )
        stream = self._services.hub.subscribe(consumer)
        self._consumers[stream_id] = (stream, consumer)
        status = stream.status_for(consumer)
        visible = status.epoch > 0
        self._participant.tell(
            Success(
                code="SUBSCRIBED",
                message="Subscription successful",
                id=message.id,
                stream_id=stream_id,
                epoch=status.epoch,
                metadata=stream.metadata if visible else None,
            )
        )
        self._participant.tell(status)
        stream.watch(consumer)
        if before is not None:  # after that, so that the producer sees no gap between the two
            self._services.hub.unsubscribe(*before)
        return self._alerts.promise(message, stream_id, wants_alerts=consumer.wants_alerts)

    def _unsubscribe(self, message: Unsubscribe) -> None:
        if self._leave(message.stream_id):
            self._participant.tell(
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
            if not (self._participant.wants_alerts and self._production.is_of(stream_id)):
                self._alerts.leave(stream_id)
        return subscribed is not None

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
            for each in self._services.hub.observe(self._participant)
        ]
        self._participant.tell(
            Success(code="STREAMS", message="Streams", id=message.id, streams=streams)
        )
