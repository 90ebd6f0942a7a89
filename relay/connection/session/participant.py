"""An authenticated connection, as the hub sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define, field

from relay.alerts.replay import Replays
from relay.connection.peer import Peer
from relay.model.access.identity import Identity
from relay.protocol.codec import Codec
from relay.protocol.endings import Ending
from relay.protocol.messages import AlertEvent, ServerMessage, Status


@define(eq=False, repr=False)
class Participant:
    """One for each session, so that a peer that produces and consumes one stream gets an alert
    once."""

    _peer: Peer
    _start_soon: Callable[[Callable[[], Awaitable[None]]], object]
    """Starts a task that ends with the connection."""
    wants_alerts: bool = False
    """Whether it wants the alerts of the stream that it produces."""
    _replays: Replays | None = field(default=None, init=False)
    """None while it has not asked for any: most never do."""

    @property
    def identity(self) -> Identity:
        assert self._peer.identity is not None
        return self._peer.identity

    @property
    def number(self) -> int:
        return self._peer.number

    @property
    def codec(self) -> Codec:
        return self._peer.codec

    @property
    def takes_parts(self) -> bool:
        return self._peer.takes_parts

    def tell(self, message: ServerMessage) -> None:
        self._peer.tell(message)

    def tell_status(self, status: Status) -> None:
        self._peer.tell_status(status)

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> None:
        if self._replays is None:
            self._peer.tell(alert)
        else:
            self._replays.deliver(alert, owner_id)

    @property
    def replays(self) -> Replays:
        """Its replays of earlier alerts, which hold back the live ones."""
        if self._replays is None:
            peer = self._peer
            self._replays = Replays(peer.tell, peer.size_of, peer.may_watch, self._start_soon)
        return self._replays

    def leave_alerts(self, stream_id: str) -> None:
        """Note that it gets no more alerts of a stream."""
        if self._replays is not None:
            self._replays.leave(stream_id)

    def too_slow(self) -> None:
        self._peer.end(Ending.TOO_SLOW)

    @property
    def unsent_frame(self) -> object | None:
        return self._peer.stream.outlet.held

    def cut_off(self) -> None:
        self._peer.end(Ending.TOO_SLOW)
        self._peer.stream.abort()
        self._peer.stream.outlet.held = None

    def superseded(self) -> None:
        self._peer.end(Ending.SUPERSEDED)

    def lost_stream(self) -> None:
        self._peer.end(Ending.STREAM_LOST)
