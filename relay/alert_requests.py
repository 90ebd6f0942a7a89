"""What a peer asks about alerts: to store one, and to have earlier ones again. Floor 3."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from relay.alerts.intake import AlertIntake, alert_from
from relay.alerts.replay import Replays
from relay.answers import Answers
from relay.errors import StoreUnavailable
from relay.guard.rates import Rate
from relay.metrics import Limit
from relay.model import Identity
from relay.postgres.alerts import AlertTable, History
from relay.protocol.messages import Alert, AlertsSince, ErrorCode, ServerMessage, Success

ALERTS_IN_A_PAGE = 100


@define(eq=False)
class AlertRequests:
    """Those of one session."""

    _identity: Callable[[], Identity]
    """Whose the session is now."""
    _tell: Callable[[ServerMessage], object]
    _answers: Answers
    _replays: Replays
    _intake: AlertIntake
    _history: AlertTable
    _rate: Rate | None
    """Of one sender."""

    async def store(self, message: Alert) -> None:
        """Acknowledge an alert when it is stored."""
        wait = None if self._rate is None else self._rate.hit(self._identity().sender)
        if wait is not None:
            self._answers.refuse_for_rate(message, Limit.ALERTS, wait, message.stream_id)
            return
        try:
            stored = await self._intake.accept(alert_from(self._identity(), message))
        except StoreUnavailable:
            self._answers.refuse_for_store(message, message.stream_id)
            return
        if stored is None:
            text = "You may not send alerts for this stream"
            self._answers.refuse(message, ErrorCode.UNAUTHORIZED, text, message.stream_id)
            return
        self._tell(
            Success(
                code="ALERT_ACCEPTED",
                message="Alert accepted",
                id=message.id,
                stream_id=stored.stream_id,
                alert_id=stored.alert_id,
            )
        )

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
        self._tell(
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
            reader = self._identity()
            page = await self._history.history(
                reader,
                stream_id=message.stream_id,
                after=message.after,
                last=message.last,
                limit=message.limit or ALERTS_IN_A_PAGE,
            )
            if reader is self._identity():
                return page
