"""The owners of streams, and the alerts of their streams, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from attrs import define, field

from relay.alerts.event import alert_event
from relay.errors import StoreUnavailable
from relay.hub.hub import Hub
from relay.model.access import permissions
from relay.model.access.identity import Identity
from relay.model.alerts.alert import History, NewAlert, StoredAlert


@define(eq=False)
class MemoryStreamOwners:
    """The owners of streams, in memory."""

    owners: dict[str, str] = field(factory=dict)
    delay: float = 0.0
    away: bool = False
    on_answer: Callable[[], object] = field(default=lambda: None)
    """Called in the moment of the answer."""
    readings: int = 0

    async def claim(self, stream_id: str, user_id: str, *, by_session: bool = True) -> str:
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        owner_id = self.owners.setdefault(stream_id, user_id)
        self.on_answer()
        return owner_id

    async def owners_of(self, stream_ids: Sequence[str]) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        self.readings += 1
        return {each: self.owners[each] for each in stream_ids if each in self.owners}


@define(eq=False)
class MemoryAlertStore:
    """Takes alerts and delivers them, as the intake, the table and the dispatch do together."""

    owners: MemoryStreamOwners
    hub: Hub
    away: bool = False
    delay: float = 0.0
    answer_delay: float = 0.0
    """Between reading the history and answering."""
    stored: list[StoredAlert] = field(factory=list)
    lagging: bool = False
    """Whether nothing is delivered before `catch_up`, as with a dispatch that lags behind."""
    _position: int = 0
    _known: dict[tuple[str, str, str], StoredAlert] = field(factory=dict)
    """What came with a key: by stream, sender and key."""

    def catch_up(self) -> None:
        """Deliver what is stored and was not delivered, in its order."""
        for alert in self.stored[self._position :]:
            self._position += 1
            self.hub.deliver(alert_event(alert), alert.owner_id)

    async def accept(self, alert: NewAlert) -> StoredAlert | None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        owner = self.owners.owners.get(alert.stream_id)
        if (
            owner is None
            or alert.by is None
            or not permissions.may_alert(alert.by, alert.stream_id, owner)
        ):
            return None
        key = (alert.stream_id, alert.sender, alert.alert_key or "")
        if key in self._known:
            return self._known[key]
        stored = StoredAlert(
            len(self.stored) + 1,
            alert.stream_id,
            owner,
            alert.sender,
            alert.severity,
            alert.message,
            alert.timestamp,
            alert.metadata,
        )
        self.stored.append(stored)
        if alert.alert_key is not None:
            self._known[key] = stored
        if not self.lagging:
            self.catch_up()
        return stored

    async def history(
        self,
        reader: Identity,
        *,
        stream_id: str | None,
        after: int | None,
        last: int | None,
        limit: int,
    ) -> History | None:
        """As the table does it."""
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        alerts = [
            alert
            for alert in self.stored
            if stream_id in (None, alert.stream_id)
            and permissions.may_watch(reader, alert.stream_id, alert.owner_id)
        ]
        await trio.sleep(self.answer_delay)
        if after and after not in [alert.alert_id for alert in alerts]:
            return None
        alerts = [alert for alert in alerts if alert.alert_id > (after or 0)]
        if last is not None:
            return History(alerts[-last:], more=False)
        return History(alerts[:limit], more=len(alerts) > limit)
