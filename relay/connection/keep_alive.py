"""Keeps a WebSocket alive with pings, and ends one whose peer gives no sign of life."""

from __future__ import annotations

import trio
from attrs import define

from relay.concurrency.alarms import Alarm, Alarms
from relay.connection.peer import Peer
from relay.protocol.endings import Ending
from relay.transport import wire
from relay.transport.framing.frame_parser import IncompleteMessage

MIN_PROGRESS_BYTES = 1024
"""A message that grows by less is not being sent, only held."""

_PING = wire.frame(wire.PING)
_NO_MESSAGE = IncompleteMessage(0, 0)


@define(eq=False, repr=False)
class KeepAlive:
    """Pings a peer, and ends it when for too long it sent no byte and made no room for a waiting
    frame, or when a message that it has begun made no progress.

    Any byte counts as a sign of life, since a pong may be late behind a large frame. While frames
    are under way whose answers may take longer, it is given that time.
    """

    _peer: Peer
    _alarms: Alarms
    _every: float
    """Seconds between two pings."""
    _idle: float
    """Seconds without a sign of life."""
    _next_ping: float = 0.0
    _alarm: Alarm | None = None
    _seen: IncompleteMessage = _NO_MESSAGE
    """The message that the peer had begun when it last made progress, as far as was looked."""
    _seen_at: float = 0.0

    def start(self) -> None:
        """Begin, until `stop`."""
        now = trio.current_time()
        self._next_ping = now + self._every
        self._set_alarm(self._peer.stream.last_received + self._idle)

    def stop(self) -> None:
        """Set no alarm any more."""
        self._alarms.cancel(self._alarm)
        self._alarm = None

    def _set_alarm(self, silent_until: float) -> None:
        when = min(self._next_ping, silent_until)
        self._alarm = self._alarms.set(when, self._look, self._peer)

    def _look(self) -> None:
        now = trio.current_time()
        silent_until = self._silent_until(now)
        if now >= silent_until:
            self._end(now)
            return
        if now >= self._next_ping:
            self._next_ping = now + self._every
            outlet = self._peer.stream.outlet
            if not outlet.expects_pong and not outlet.post_control(_PING):
                self._peer.lost()
                return
        self._set_alarm(silent_until)

    def _end(self, now: float) -> None:
        stream = self._peer.stream
        self._peer.end(Ending.IDLE_TIMEOUT)
        if stream.outlet.cut and now >= stream.outlet.last_progress + self._idle:
            stream.abort()  # it has not taken the rest of a frame, and would take no goodbye

    def _silent_until(self, now: float) -> float:
        """When the peer ends unless it gives a sign of life."""
        stream = self._peer.stream
        last_sign = max(stream.last_received, stream.outlet.last_progress)
        until = max(last_sign + self._idle, stream.outlet.answers_until)
        return min(until, self._last_progress(now) + self._idle)

    def _last_progress(self, now: float) -> float:
        """When the message that the peer has begun last made progress; now if there is none."""
        message = self._peer.stream.incomplete_message
        if message is None:
            return now
        grown = message.arrived - self._seen.arrived
        if message.number != self._seen.number or grown >= MIN_PROGRESS_BYTES:
            self._seen, self._seen_at = message, now
        return self._seen_at
