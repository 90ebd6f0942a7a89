"""The history of alerts, replayed to one connection. Floor 2."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from relay.alerts.event import alert_event
from relay.postgres.alerts import History
from relay.protocol.messages import AlertEvent

MOST_HELD = 1000
"""Live alerts that may wait for one page."""

Scope = str | None
"""The stream that is replayed; None for all that the reader may see."""


@define(eq=False)
class Replays:
    """Holds live alerts back while earlier ones of their streams are replayed.

    Until its last page a replay is open. What is stored meanwhile is part of a page to come; only
    while the last page is read may an alert be live and not in it, so those are kept.
    """

    _send: Callable[[AlertEvent], object]
    _may_watch: Callable[[str, str], bool]
    """Whether the reader may see a stream, by its id and its owner, now."""
    _held: dict[Scope, list[tuple[AlertEvent, str]]] = field(factory=dict)
    """By the open replays, with the owners of their streams."""

    def deliver(self, alert: AlertEvent, owner_id: str) -> bool:
        """Send a live alert, or hold it back; False when too many are held."""
        scope = alert.stream_id if alert.stream_id in self._held else None
        held = self._held.get(scope)
        if held is None:
            self._send(alert)
        else:
            held.append((alert, owner_id))
        return held is None or len(held) <= MOST_HELD

    def begin(self, scope: Scope) -> None:
        """Before a page is read."""
        self._held[scope] = []

    def send_page(self, scope: Scope, page: History) -> None:
        """Send a page; after the last one also what was held back and is not in it."""
        position = 0
        for alert in page.alerts:
            position = alert.alert_id
            self._send(alert_event(alert))
        if page.more:
            self._held[scope] = []
        else:
            self.end(scope, position)

    def end(self, scope: Scope, position: int = 0) -> None:
        """Go on with live alerts."""
        for alert, owner_id in self._held.pop(scope, []):
            if alert.alert_id > position and self._may_watch(alert.stream_id, owner_id):
                self._send(alert)
