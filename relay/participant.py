"""An authenticated connection, as the hub sees it. Floor 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import define

from relay.alerts.replay import Replays
from relay.closing import Ending
from relay.model import Identity
from relay.protocol.codec import Codec
from relay.protocol.messages import AlertEvent, RequestId, ServerMessage
from relay.transport.outlet import Outlet


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


@define(eq=False)
class Participant:
    """One for each session: whoever produces and consumes the same stream gets an alert once."""

    identity: Identity
    _line: Line
    _replays: Replays
    wants_alerts: bool = False
    """Of the stream that it produces."""

    @property
    def accepted(self) -> int:
        return self._line.accepted

    @property
    def codec(self) -> Codec:
        return self._line.codec

    def tell(self, message: ServerMessage) -> None:
        self._line.tell(message)

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> None:
        self._replays.deliver(alert, owner_id)

    def too_slow(self) -> None:
        self._line.end(Ending.TOO_SLOW)

    def superseded(self) -> None:
        self._line.end(Ending.SUPERSEDED)
