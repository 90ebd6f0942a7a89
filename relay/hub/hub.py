"""All streams of this relay. Floor 2.

Everything here happens at once, without waiting: there is no order of events in which a stream is
half changed. Only a publish to a large audience takes turns with others, behind a lock of its own
stream.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import trio
from attrs import define, field

from relay import policy
from relay.hub.consumer import Consumer
from relay.hub.ledger import Ledger
from relay.hub.peer import Peer, Producer
from relay.hub.stream import Stream
from relay.metrics import Metrics
from relay.model import Identity
from relay.protocol.messages import AlertEvent, Metadata, StreamStatus, now_ms

COUNT_INTERVAL = 1.0
"""Seconds in which viewers come and go before a producer is told how many there are now. That there
are any, or none, it is told at once."""


@define(eq=False)
class Hub:
    """The streams that are live or watched, by id."""

    _metrics: Metrics
    _offline_grace: float
    """Seconds a stream outlives its producer, so that a short loss is not seen."""
    _streams: dict[str, Stream] = field(factory=dict)
    _observers: dict[Peer, None] = field(factory=dict)
    """Connections that asked for the list of streams."""
    _online: dict[str, set[str]] = field(factory=dict)
    """The ids of live streams, by owner."""
    _departed: Ledger = field(factory=Ledger)
    """Of streams that were forgotten."""
    _last_epoch: int = 0
    """Of any stream: epochs grow also where a stream was forgotten and the clock stepped back."""
    _nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after streams that lost their producer, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def register(
        self, stream_id: str, owner_id: str, producer: Producer, metadata: Metadata | None
    ) -> Stream | None:
        """Make a connection the producer of a stream.

        None when a connection that was accepted later produces it already. One that was accepted
        earlier is superseded. The caller has made sure that the owner owns the stream.
        """
        stream = self._stream(stream_id)
        before = stream.producer
        if before is not None and before.accepted > producer.accepted:
            return None
        if stream.grace is not None:
            stream.grace.cancel()
            stream.grace = None
        if stream.live:
            stream.continue_with(producer, metadata)
        else:
            self._last_epoch = max(self._last_epoch + 1, now_ms())
            stream.start(self._last_epoch, owner_id, producer, metadata)
            self._online.setdefault(owner_id, set()).add(stream_id)
        if before is not None and before is not producer:
            before.superseded()
        return stream

    def producer(self, stream_id: str) -> Producer | None:
        """The connection that produces a stream now."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.producer

    def release(self, stream: Stream, producer: Producer, *, at_once: bool = False) -> None:
        """End a connection's production; unless `at_once`, the stream waits for it to come back."""
        if stream.producer is not producer:
            return
        stream.producer = None
        if at_once or self._nursery is None:
            self._end(stream)
        else:
            stream.grace = trio.CancelScope()
            self._nursery.start_soon(self._await_producer, stream, stream.grace)

    def count_streams_of(self, owner_id: str, *, but: Collection[str]) -> int:
        """How many streams of a user are live, some of them not counted."""
        return len(self._online.get(owner_id, set()).difference(but))

    def subscribe(self, consumer: Consumer) -> Stream:
        """The stream that a consumer asks for, which may not exist yet; call its `watch` next."""
        return self._stream(consumer.stream_id)

    def unsubscribe(self, stream: Stream, consumer: Consumer) -> None:
        stream.unwatch(consumer)
        self._forget(stream)

    def deliver(self, alert: AlertEvent, owner_id: str) -> None:
        """Give an alert to all who are connected and consume the alerts of its stream."""
        stream = self._streams.get(alert.stream_id)
        if stream is None:
            return
        # A connection that produces a stream and watches it too gets its alerts once.
        peers: set[Peer] = {
            consumer.peer
            for consumer in stream.watchers
            if consumer.wants_alerts
            and policy.may_watch(consumer.identity, alert.stream_id, owner_id)
        }
        if stream.producer is not None and stream.producer.wants_alerts:
            peers.add(stream.producer)
        for peer in peers:
            self._metrics.alerts_delivered += 1
            peer.tell_alert(alert, owner_id)

    def observe(self, observer: Peer) -> list[Stream]:
        """The live streams that an observer may see; from now on it is told of each change."""
        self._observers[observer] = None
        return self.visible_to(observer.identity)

    def visible_to(self, identity: Identity) -> list[Stream]:
        """The live streams that somebody may see."""
        return [
            stream
            for stream in self._streams.values()
            if stream.live and policy.may_watch(identity, stream.stream_id, stream.owner_id)
        ]

    def figures(self) -> list[dict[str, Any]]:
        """What operators see of each stream, and of each connection that consumes it."""
        return [stream.figures() for stream in self._streams.values()]

    def unobserve(self, observer: Peer) -> None:
        self._observers.pop(observer, None)

    def reconsider(self, peer: Peer, before: Identity, consumers: Mapping[str, Consumer]) -> None:
        """Let a peer see what it may see now, and nothing else; `before` is who it was."""
        for stream in self._streams.values():
            sees = policy.may_watch(peer.identity, stream.stream_id, stream.owner_id)
            if sees == policy.may_watch(before, stream.stream_id, stream.owner_id):
                continue
            consumer = consumers.get(stream.stream_id)
            if consumer is not None:
                change = stream.reveal if sees else stream.conceal
                change(consumer)
            elif peer in self._observers and stream.live:
                peer.tell(stream.public_status(visible=sees))

    def ledger(self) -> tuple[Ledger, int]:
        """What became of all frames offered to consumers, and how many of them wait."""
        total, waiting = Ledger(), 0
        total.add(self._departed)
        for stream in self._streams.values():
            ledger, waits = stream.ledger()
            total.add(ledger)
            waiting += waits
        return total, waiting

    def count(self) -> dict[str, int]:
        """How many streams are in which state, and how many consumers there are."""
        counts = {status.value: 0 for status in StreamStatus}
        for stream in self._streams.values():
            counts[stream.status] += 1
        del counts[StreamStatus.OFFLINE]
        return counts | {"consumers": sum(len(s.watchers) for s in self._streams.values())}

    async def _await_producer(self, stream: Stream, grace: trio.CancelScope) -> None:
        with grace:
            await trio.sleep(self._offline_grace)
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.grace = None
        stream.end()
        assert stream.owner_id is not None
        online = self._online[stream.owner_id]
        online.discard(stream.stream_id)
        if not online:
            del self._online[stream.owner_id]
        self._forget(stream)

    def _stream(self, stream_id: str) -> Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._streams[stream_id] = Stream(
                stream_id,
                self._metrics,
                on_status=self._tell_observers,
                on_recount=self._recount,
            )
        return stream

    def _recount(self, stream: Stream) -> None:
        async def wait() -> None:
            await trio.sleep(COUNT_INTERVAL)
            stream.tell_count()

        if self._nursery is not None:
            stream.counting = True
            self._nursery.start_soon(wait)

    def _forget(self, stream: Stream) -> None:
        if not stream.watchers and not stream.live:
            del self._streams[stream.stream_id]
            self._departed.add(stream.departed)

    def _tell_observers(self, stream: Stream) -> None:
        status = stream.public_status(visible=True)
        # Those that watch the stream were told already.
        told: set[Peer] = {consumer.peer for consumer in stream.watchers}
        for observer in self._observers:
            visible = policy.may_watch(observer.identity, stream.stream_id, stream.owner_id)
            if visible and observer not in told:
                observer.tell(status)
