"""What a peer asks about alerts: to store one, and to have earlier ones again. Floor 3."""

from __future__ import annotations

from attrs import define

from relay.alerts.intake import alert_from
from relay.alerts.replay import Replays
from relay.answers import Answers
from relay.errors import StoreUnavailable
from relay.metrics import Limit
from relay.participant import Participant
from relay.postgres.alerts import History
from relay.protocol.messages import (
    Alert,
    AlertsSince,
    ErrorCode,
    Register,
    Subscribe,
    Success,
)
from relay.services import Services

ALERTS_IN_A_PAGE = 100


@define(eq=False)
class AlertRequests:
    """Those of one session."""

    _participant: Participant
    _answers: Answers
    _replays: Replays
    _services: Services

    async def store(self, message: Alert) -> None:
        """Acknowledge an alert when it is stored."""
        rate = self._services.alert_rate
        wait = None if rate is None else rate.hit(self._participant.identity.sender)
        if wait is not None:
            self._answers.refuse_for_rate(message, Limit.ALERTS, wait, message.stream_id)
            return
        try:
            stored = await self._services.alerts.accept(
                alert_from(self._participant.identity, message)
            )
        except StoreUnavailable:
            self._answers.refuse_for_store(message, message.stream_id)
            return
        if stored is None:
            text = "You may not send alerts for this stream"
            self._answers.refuse(message, ErrorCode.UNAUTHORIZED, text, message.stream_id)
            return
        self._participant.tell(
            Success(
                code="ALERT_ACCEPTED",
                message="Alert accepted",
                id=message.id,
                stream_id=stored.stream_id,
                alert_id=stored.alert_id,
            )
        )

    def promise(
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

    def leave(self, stream_id: str) -> None:
        """Promise nothing of this stream any more."""
        self._replays.leave(stream_id)

    async def replay(self, message: AlertsSince) -> None:
        """Send a page of earlier alerts, and then what became of it."""
        scope = message.stream_id
        self._replays.begin(scope)
        try:
            page = await self._read_page(message)
        except StoreUnavailable:
            self._replays.fail(scope)
            self._answers.refuse_for_store(message, scope)
            return
        if page is None:
            self._replays.refuse(scope)
            text = "Invalid message: there is no such alert - at `$.after`"
            self._answers.refuse(message, ErrorCode.INVALID_MESSAGE, text, scope)
            return
        more = self._replays.send_page(scope, page, message.after or 0)
        self._participant.tell(
            Success(
                code="ALERTS_REPLAYED",
                message="Alerts replayed",
                id=message.id,
                stream_id=scope,
                more=more,
            )
        )

    async def _read_page(self, message: AlertsSince) -> History | None:
        """A page by what may be seen when it has been read, which may take a while."""
        while True:
            reader = self._participant.identity
            page = await self._services.history.history(
                reader,
                stream_id=message.stream_id,
                after=message.after,
                last=message.last,
                limit=message.limit or ALERTS_IN_A_PAGE,
            )
            if reader is self._participant.identity:
                return page
