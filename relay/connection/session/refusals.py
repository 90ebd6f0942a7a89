"""Refuses requests: with an error, and a record in the audit log where it is about permissions."""

from __future__ import annotations

from typing import Protocol

from attrs import define

from relay.connection.peer import Peer
from relay.metrics import Limit, Metrics
from relay.protocol.messages import Error, ErrorCode, Register, Request, RequestId

STORE_UNAVAILABLE = "The database cannot be asked now; try again later"
STORE_REJECTS = "Invalid message: the database cannot store one of its values"
STORE_RETRY_AFTER = 2000
"""Milliseconds."""
MAY_NOT_ALERT = "You may not send alerts for this stream"


class HasId(Protocol):
    """A request, as far as the reply to it has to name it."""

    @property
    def id(self) -> RequestId: ...


@define(eq=False, repr=False)
class Refusals:
    """Refuses the requests of one connection."""

    _peer: Peer
    _metrics: Metrics

    def refuse(
        self,
        request: Request,
        code: ErrorCode,
        text: str,
        stream_id: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        """Say why not; what is about permissions goes on record."""
        if code is ErrorCode.UNAUTHORIZED or isinstance(request, Register):
            what = str(request.__struct_config__.tag)
            self._peer.record(what, outcome="refused", reason=text, stream_id=stream_id)
        self.answer(request, code, text, stream_id, retry_after=retry_after)

    def refuse_for_rate(
        self, request: Request, limit: Limit, wait: float, stream_id: str | None
    ) -> None:
        """Say that there were too many requests, and count it; `wait` is in seconds."""
        self._metrics.limits_hit[limit] += 1
        text = f"Too many {limit} in too short a time"
        retry_after = max(1, round(wait * 1000))
        self.refuse(request, ErrorCode.RATE_LIMITED, text, stream_id, retry_after=retry_after)

    def refuse_for_store(self, request: HasId, stream_id: str | None = None) -> None:
        """Refuse because the database is unavailable."""
        code = ErrorCode.STORE_UNAVAILABLE
        self.answer(request, code, STORE_UNAVAILABLE, stream_id, retry_after=STORE_RETRY_AFTER)

    def refuse_for_value(self, request: HasId, stream_id: str | None = None) -> None:
        """Say that the database cannot take what the request holds, such as a character."""
        self.answer(request, ErrorCode.INVALID_MESSAGE, STORE_REJECTS, stream_id)

    def answer(
        self,
        request: HasId,
        code: ErrorCode,
        text: str,
        stream_id: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        """Answer with an error that is not recorded."""
        self._peer.tell(
            Error(
                code=code, message=text, id=request.id, stream_id=stream_id, retry_after=retry_after
            )
        )
