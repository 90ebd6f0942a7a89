"""What an authenticated peer may do.

Every request is checked here, and each is answered: with a `success`, or with an `error` that says
why not. Frames alone go unanswered.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Self

import trio
from attrs import define, field

from relay.concurrency.alarms import Alarm, Alarms
from relay.connection.context import SessionContext
from relay.connection.peer import Peer
from relay.connection.session.alert_requests import AlertRequests, PageRequest, StoreRequest
from relay.connection.session.expiry import Due, Expiry
from relay.connection.session.participant import Participant
from relay.connection.session.publisher import Publisher
from relay.connection.session.refusals import Refusals
from relay.hub.consumer import Consumer
from relay.hub.flow_control import FlowControlOptions
from relay.hub.stream import Stream
from relay.metrics import Limit
from relay.model.access import permissions
from relay.model.access.identity import Identity, User
from relay.protocol.endings import Ending
from relay.protocol.messages import (
    ALERT,
    VIDEO_FRAME,
    Ack,
    Alert,
    AlertsSince,
    Auth,
    ClientMessage,
    ErrorCode,
    Notice,
    Register,
    Streams,
    Subscribe,
    Success,
    Unsubscribe,
    VideoFrame,
    milliseconds,
)


@define(eq=False, repr=False)
class Session:
    """What one authenticated peer does: produces a stream, consumes streams, or both."""

    _peer: Peer
    _participant: Participant
    _context: SessionContext
    publisher: Publisher
    """Of the frames that come from the peer."""
    _refusals: Refusals
    _alerts: AlertRequests
    _alarms: Alarms
    _start_soon: Callable[[Callable[[], Awaitable[None]]], object]
    """Starts a task that ends with the connection."""
    _alarm: Alarm | None = field(default=None, init=False)
    """For the next thing that is due before the end of the session."""
    _expiry: Expiry = field(factory=Expiry, init=False)
    _consumers: dict[str, tuple[Stream, Consumer]] = field(factory=dict, init=False)
    located: str | None = field(default=None, init=False)
    """The stream for which other nodes were asked a moment ago."""

    @classmethod
    def open(
        cls,
        peer: Peer,
        context: SessionContext,
        alarms: Alarms,
        start_soon: Callable[[Callable[[], Awaitable[None]]], object],
    ) -> Self:
        """Begin the session of a peer whose identity is known.

        `start_soon` starts a task that ends with the connection.
        """
        participant = Participant(peer, start_soon)
        refusals = Refusals(peer, context.metrics)
        publisher = Publisher(peer, participant, context, refusals)
        alerts = AlertRequests(peer, refusals, participant, context)
        session = cls(
            *(peer, participant, context, publisher, refusals, alerts),
            *(alarms, start_soon),
        )
        context.metrics.authenticated += 1
        session._expiry.renew(session.identity, by_peer=True)
        session._set_alarm()
        context.watch.enter(session)
        return session

    @property
    def identity(self) -> Identity:
        assert self._peer.identity is not None
        return self._peer.identity

    @property
    def seconds_left(self) -> float:
        """Seconds until the session ends, as far as is known."""
        return self._expiry.deadline - trio.current_time()

    def read_again(self) -> None:
        """Read the session again, in a task: it may have changed before it was watched here."""
        self._start_soon(self._reread)

    def renew(self, identity: Identity, token: str) -> None:
        """Go on as the same user or service, who has proved it again."""
        self._peer.token = token
        self._go_on(identity, by_peer=True)

    def become(self, identity: Identity) -> None:
        """Go on with what the store says now of the same session or service."""
        if self._peer.ending is None:
            self._go_on(identity, by_peer=False)

    def revoked(self) -> None:
        """End, since the session or the service's token is no more. Nothing goes out from now on
        but the goodbye."""
        self._peer.end(Ending.SESSION_REVOKED)
        if self._peer.ending is Ending.SESSION_REVOKED:
            self._peer.mailbox.clear()
        self._leave_streams()

    def close(self) -> None:
        """Leave all streams, for good."""
        self._alarms.cancel(self._alarm)
        self._context.metrics.authenticated -= 1
        self._context.watch.leave(self)
        self._leave_streams()

    def _go_on(self, identity: Identity, *, by_peer: bool) -> None:
        """Go by another identity, whose permissions count from now on."""
        self._expiry.renew(identity, by_peer=by_peer)
        self._set_alarm()
        before, self._peer.identity = self.identity, identity
        if permissions.visible_streams(before) != permissions.visible_streams(identity):
            consumers = {stream_id: each for stream_id, (_, each) in self._consumers.items()}
            self._context.hub.reconsider(self._participant, before, consumers)
        self.publisher.reconsider()
        self._context.watch.enter(self)

    def _set_alarm(self) -> None:
        """Have the alarm ring when the next thing is due."""
        self._alarms.cancel(self._alarm)
        when = self._expiry.next_at
        self._alarm = (
            None if when == math.inf else self._alarms.set(when, self._come_due, self._peer)
        )

    def _come_due(self) -> None:
        """Do what is due as the end of the session draws near."""
        expiry = self._expiry
        match expiry.next():
            case Due.READ:
                self._start_soon(self._reread)
            case Due.NOTICE:
                assert expiry.expires_at is not None
                expires_at = milliseconds(expiry.expires_at)
                self._peer.tell(Notice(code="SESSION_EXPIRING", expires_at=expires_at))
            case Due.END:
                cut_short = expiry.cut_short
                self._peer.end(Ending.SESSION_REVOKED if cut_short else Ending.SESSION_EXPIRED)
                return
        self._set_alarm()

    async def _reread(self) -> None:
        await self._context.watch.reread(self)
        self._expiry.has_read()
        self._set_alarm()

    def _leave_streams(self) -> None:
        hub = self._context.hub
        hub.unobserve(self._participant)
        self.publisher.close()
        for stream, consumer in self._consumers.values():
            hub.unsubscribe(stream, consumer)
        self._consumers.clear()

    async def handle(self, message: ClientMessage) -> StoreRequest | None:
        """Do what the peer asks, with anything but frames and acks; returns what the store has to
        answer, while others go on."""
        match message:
            case Alert():
                return message
            case AlertsSince():
                return PageRequest.of(message)
            case Register():
                return await self._register(message)
            case Subscribe():
                return await self._find_and_subscribe(message)
            case Unsubscribe():
                self._unsubscribe(message)
            case Streams():
                await self._list_streams(message)
            case Ack() | Auth() | VideoFrame():
                raise AssertionError("the inbox takes these elsewhere")
        return None

    async def answer_from_store(self, request: StoreRequest) -> None:
        """Ask the store what `handle` returned, and answer."""
        await self._alerts.answer(request)

    def refuse_for_store(self, request: Alert | AlertsSince) -> None:
        """Refuse a request for which the store has no time."""
        self._refusals.refuse_for_store(request, request.stream_id)

    async def _register(self, message: Register) -> PageRequest | None:
        stream_id = await self.publisher.register(message)
        if stream_id is None:
            return None
        wants_alerts = self._participant.wants_alerts
        return self._alerts.promise(message, stream_id, wants_alerts=wants_alerts)

    def has_to_ask(self, message: ClientMessage) -> bool:
        """Whether other nodes may have to be asked for what this request is about. For a stream
        that the peer may not see they are, even if it is here: it takes as long as for one that
        does not exist."""
        if self._context.directory is None:
            return False
        if isinstance(message, Subscribe):
            if message.stream_id == self.located:
                return False
            owner_id = self._context.hub.owner_of(message.stream_id)
            return not permissions.may_watch(self.identity, message.stream_id, owner_id)
        return isinstance(message, Streams)

    async def locate(self, message: Subscribe) -> None:
        """Ask other nodes for a stream ahead of its subscription, if they would be asked then."""
        directory = self._context.directory
        if directory is not None and self.has_to_ask(message):
            await directory.find(message.stream_id)
            self.located = message.stream_id

    async def _find_and_subscribe(self, message: Subscribe) -> PageRequest | None:
        directory = self._context.directory
        if directory is not None and self.has_to_ask(message):
            await directory.find(message.stream_id)
            if self._peer.ending is not None:
                return None
        return self._subscribe(message)

    def _subscribe(self, message: Subscribe) -> PageRequest | None:
        stream_id = message.stream_id
        before = self._consumers.get(stream_id)
        most = self._context.limits.max_subscriptions
        if before is None and most is not None and len(self._consumers) >= most:
            self._context.metrics.limits_hit[Limit.SUBSCRIPTIONS] += 1
            text = f"A connection may have {most} subscriptions"
            self._refusals.refuse(message, ErrorCode.INVALID_MESSAGE, text, stream_id)
            return None
        if before is None and self._user_has_too_many(message):
            return None
        consumes = message.consumes or ()
        consumer = Consumer(
            stream_id=stream_id,
            wants_frames=VIDEO_FRAME in consumes,
            wants_alerts=ALERT in consumes,
            peer=self._participant,
            outlet=self._peer.stream.outlet,
            metrics=self._context.metrics,
            flow_control=self._flow_control(message),
            lossless_bytes=self._context.lossless_bytes,
            totals=self._context.hub.totals,
        )
        stream = self._context.hub.subscribe(consumer)
        self._consumers[stream_id] = (stream, consumer)
        status = stream.status_for(consumer)
        visible = status.epoch > 0
        self._peer.tell(
            Success(
                code="SUBSCRIBED",
                message="Subscription successful",
                id=message.id,
                stream_id=stream_id,
                epoch=status.epoch,
                metadata=stream.metadata if visible else None,
            ),
            status,
        )
        stream.watch(consumer)
        if before is not None:  # after that, so that the producer sees no gap between the two
            self._context.hub.unsubscribe(*before)
        return self._alerts.promise(message, stream_id, wants_alerts=consumer.wants_alerts)

    def _flow_control(self, message: Subscribe) -> FlowControlOptions:
        knows_layers = message.max_width is not None or message.layer is not None
        return FlowControlOptions(
            message.policy,
            message.max_fps,
            message.window,
            message.max_width,
            message.layer,
            adapts=knows_layers or self._context.layers_for_old_clients,
        )

    def _user_has_too_many(self, message: Subscribe) -> bool:
        """Refuse a subscription if the user has too many, some perhaps on connections that are gone
        without relay having noticed."""
        most, identity = self._context.limits.max_subscriptions_of_user, self.identity
        if most is None or not isinstance(identity, User):
            return False
        if self._context.hub.count_subscriptions_of(identity) < most:
            return False
        self._context.metrics.limits_hit[Limit.SUBSCRIPTIONS_OF_USER] += 1
        code = ErrorCode.TOO_MANY_CONNECTIONS
        retry_after = Ending.TOO_MANY_CONNECTIONS.value.retry_after
        text = f"A user may have {most} subscriptions"
        self._refusals.refuse(message, code, text, message.stream_id, retry_after=retry_after)
        return True

    def _unsubscribe(self, message: Unsubscribe) -> None:
        if self._leave(message.stream_id):
            self._peer.tell(
                Success(
                    code="UNSUBSCRIBED",
                    message="Subscription ended",
                    id=message.id,
                    stream_id=message.stream_id,
                )
            )
        else:
            text = "There is no subscription to this stream"
            self._refusals.refuse(message, ErrorCode.INVALID_MESSAGE, text, message.stream_id)

    def _leave(self, stream_id: str) -> bool:
        subscribed = self._consumers.pop(stream_id, None)
        if subscribed is not None:
            self._context.hub.unsubscribe(*subscribed)
            if not (self._participant.wants_alerts and self.publisher.is_of(stream_id)):
                self._alerts.leave(stream_id)
        return subscribed is not None

    def acknowledge(self, message: Ack) -> None:
        """Note that the peer has received frames."""
        subscribed = self._consumers.get(message.stream_id)
        if subscribed is None:  # it crossed our UNSUBSCRIBED
            return
        stream, consumer = subscribed
        if message.epoch in (None, stream.epoch):  # else it is of an earlier epoch
            consumer.acknowledge(message.seq)

    async def _list_streams(self, message: Streams) -> None:
        rate, hub = self._context.limits.stream_list_rate, self._context.hub
        wait = None if rate is None else rate.hit(self.identity.sender)
        if wait is not None:
            self._refusals.refuse_for_rate(message, Limit.STREAM_LISTS, wait, None)
            return
        hub.observe(self._participant)
        streams, more = await self._context.lists.page(self.identity, message.after, message.limit)
        if self._peer.ending is not None:
            return
        self._peer.tell(
            Success(
                code="STREAMS",
                message="Streams",
                id=message.id,
                streams=streams,
                more=more or None,
            )
        )
