"""How a request is refused: the error that answers it, and the record of it. Floor 2."""

from __future__ import annotations

from typing import Protocol

from attrs import define

from relay.metrics import Limit, Metrics
from relay.protocol.messages import Error, ErrorCode, Register, Request, ServerMessage

STORE_RETRY_AFTER = 2000
"""Milliseconds."""


class Line(Protocol):
    """The connection that the requests come by."""

    def tell(self, message: ServerMessage) -> object: ...

    def audit(
        self, what: str, *, outcome: str, reason: str = "", stream_id: str | None = None
    ) -> object: ...


@define(eq=False)
class Answers:
    """To the requests of one connection."""

    _line: Line
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
        """Say why not; what is about rights goes on record."""
        if code is ErrorCode.UNAUTHORIZED or isinstance(request, Register):
            what = str(request.__struct_config__.tag)
            self._line.audit(what, outcome="refused", reason=text, stream_id=stream_id)
        self._line.tell(
            Error(
                code=code,
                message=text,
                id=request.id,
                stream_id=stream_id,
                retry_after=retry_after,
            )
        )

    def refuse_for_rate(
        self, request: Request, limit: Limit, wait: float, stream_id: str | None
    ) -> None:
        """Say that there are too many, for so many seconds; counted."""
        self._metrics.limits_hit[limit] += 1
        text = f"Too many {limit} in too short a time"
        retry_after = max(1, round(wait * 1000))
        self.refuse(request, ErrorCode.RATE_LIMITED, text, stream_id, retry_after=retry_after)

    def refuse_for_store(self, request: Request, stream_id: str | None = None) -> None:
        """Say that the database is away."""
        self._line.tell(
            Error(
                code=ErrorCode.STORE_UNAVAILABLE,
                message="The database cannot be asked now; try again later",
                id=request.id,
                stream_id=stream_id,
                retry_after=STORE_RETRY_AFTER,
            )
        )
