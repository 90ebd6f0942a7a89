"""What a peer asks about alerts: to store one, and to have earlier ones again."""

from __future__ import annotations

from attrs import define, frozen

from relay.alerts.intake import FULL_RETRY_AFTER, alert_from
from relay.concurrency.time_slice import TimeSlice
from relay.connection.context import SessionContext
from relay.connection.peer import Peer
from relay.connection.session.participant import Participant
from relay.connection.session.refusals import MAY_NOT_ALERT, Refusals
from relay.errors import AlertsFull, StoreRejects, StoreUnavailable
from relay.metrics import Limit
from relay.model.access.identity import Identity
from relay.model.alerts.alert import History
from relay.model.json_object import JsonObject
from relay.protocol.codec import MSGPACK_CODEC
from relay.protocol.messages import (
    Alert,
    AlertsSince,
    ErrorCode,
    Register,
    RequestId,
    Subscribe,
    Success,
)
from relay.transport.mailbox import QUARTER_FULL

DEFAULT_PAGE_SIZE = 100
"""Alerts."""


@frozen
class PageRequest:
    """A page of earlier alerts that is to be sent."""

    id: RequestId
    stream_id: str | None
    """None for all that the reader may see."""
    after: int | None
    last: int | None = None
    limit: int = DEFAULT_PAGE_SIZE

    @classmethod
    def of(cls, message: AlertsSince) -> PageRequest:
        """What a client asks for by itself."""
        limit = message.limit or DEFAULT_PAGE_SIZE
        return cls(message.id, message.stream_id, message.after, message.last, limit)


StoreRequest = Alert | PageRequest
"""What only the store can answer."""


@define(eq=False, repr=False)
class AlertRequests:
    """The requests of one session that are about alerts."""

    _peer: Peer
    _refusals: Refusals
    _participant: Participant
    _context: SessionContext

    async def answer(self, request: StoreRequest) -> None:
        """Store an alert, or send a page of earlier ones."""
        if isinstance(request, Alert):
            await self._store(request)
        else:
            await self._replay(request)

    def promise(
        self, message: Register | Subscribe, stream_id: str, *, wants_alerts: bool
    ) -> PageRequest | None:
        """The page of what the peer missed of a stream to which it came just now; until that is
        sent, live alerts wait."""
        if message.alerts_after is None:
            return None
        if not wants_alerts:
            text = 'Invalid message: `consumes` is without "alert" - at `$.alertsAfter`'
            self._refusals.refuse(message, ErrorCode.INVALID_MESSAGE, text, stream_id)
            return None
        self._participant.replays.begin(stream_id, promised=True)
        return PageRequest(message.id, stream_id, message.alerts_after)

    def leave(self, stream_id: str) -> None:
        """Promise nothing of this stream any more."""
        self._participant.leave_alerts(stream_id)

    async def _store(self, message: Alert) -> None:
        """Acknowledge an alert when it is stored."""
        identity = self._identity
        rate = self._context.limits.alert_rate
        wait = None if rate is None else rate.hit(identity.sender)
        if wait is not None:
            self._refusals.refuse_for_rate(message, Limit.ALERTS, wait, message.stream_id)
            return
        try:
            stored = await self._context.alerts.accept(alert_from(identity, message))
        except StoreUnavailable:
            self._refusals.refuse_for_store(message, message.stream_id)
            return
        except StoreRejects:
            self._refusals.refuse_for_value(message, message.stream_id)
            return
        except AlertsFull as full:
            self._refusals.refuse(
                message,
                ErrorCode.RATE_LIMITED,
                str(full),
                message.stream_id,
                retry_after=FULL_RETRY_AFTER * 1000,
            )
            return
        if stored is None:
            code = ErrorCode.UNAUTHORIZED
            self._refusals.refuse(message, code, MAY_NOT_ALERT, message.stream_id)
            return
        self._peer.tell(
            Success(
                code="ALERT_ACCEPTED",
                message="Alert accepted",
                id=message.id,
                stream_id=stored.stream_id,
                alert_id=stored.alert_id,
            )
        )

    async def _replay(self, request: PageRequest) -> None:
        """Send a page of earlier alerts, and then the reply that says whether there are more."""
        scope = request.stream_id
        await self._peer.mailbox.wait_for_room(QUARTER_FULL)  # for a whole page
        self._participant.replays.begin(scope)
        try:
            page = await self._read_page(request)
        except StoreUnavailable:
            self._participant.replays.fail(scope)
            self._refusals.refuse_for_store(request, scope)
            return
        except StoreRejects:
            self._participant.replays.refuse(scope)
            self._refusals.refuse_for_value(request, scope)
            return
        if page is None:
            self._participant.replays.refuse(scope)
            text = "Invalid message: there is no such alert - at `$.after`"
            self._refusals.answer(request, ErrorCode.INVALID_MESSAGE, text, scope)
            return
        more = self._participant.replays.send_page(scope, page, request.after or 0)
        self._peer.tell(
            Success(
                code="ALERTS_REPLAYED",
                message="Alerts replayed",
                id=request.id,
                stream_id=scope,
                more=more,
            )
        )

    async def _read_page(self, request: PageRequest) -> History | None:
        """A page by what may be seen when it has been read, which may take a while."""
        while True:
            reader = self._identity
            page = await self._context.history.history(
                reader,
                stream_id=request.stream_id,
                after=request.after,
                last=request.last,
                limit=request.limit,
            )
            if page is not None and self._peer.codec is MSGPACK_CODEC:
                await _parse(page)
            if reader is self._identity:
                return page

    @property
    def _identity(self) -> Identity:
        assert self._peer.identity is not None
        return self._peer.identity


async def _parse(page: History) -> None:
    """Parse what is stored as JSON, for MessagePack; others go on meanwhile."""
    time_slice = TimeSlice()
    for alert in page.alerts:
        if isinstance(alert.metadata, JsonObject):
            _ = alert.metadata.content
        await time_slice.pause_if_over()
