"""What may be asked over HTTP with `Authorization: Bearer TOKEN`. Floor 4.

The tokens are those of the WebSocket's `auth`, and so are the permissions: both ways ask the same
verifier and the same policy.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec import Meta
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from relay import policy
from relay.alerts.event import page_of
from relay.alerts.intake import AlertIntake, alert_from
from relay.audit import AuditLog, unless_token, who
from relay.authentication import Verifier
from relay.closing import Ending
from relay.errors import StoreUnavailable
from relay.guard.address import ClientAddress
from relay.guard.attempts import Attempts
from relay.guard.rates import Marks, Rate
from relay.hub.hub import Hub
from relay.metrics import Limit, Metrics
from relay.model import Identity
from relay.postgres.alerts import AlertTable
from relay.protocol.codec import JSON, LARGEST_BUT_FRAMES, UNREADABLE, InvalidMessage
from relay.protocol.messages import ALERT, AUTH, Alert, ErrorCode, StreamEntry, StreamId, Success

BODY_PATIENCE = 10.0
"""Seconds for the body of a request."""
VISIT = 120.0
"""Seconds without a look at the figures after which the next one is a row of the audit again."""
RETRY_AFTER = {"Retry-After": "2"}
CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Refusal(HTTPException):
    """An answer that is an error of the protocol."""

    def __init__(
        self, status: int, code: ErrorCode, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code


class AlertsQuery(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The parameters of `GET /alerts`."""

    stream_id: StreamId | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    before: Annotated[int, Meta(ge=1, le=2**53)] | None = None


@define(eq=False)
class Api:
    """Answers those who say who they are."""

    _verifier: Verifier
    _hub: Hub
    _intake: AlertIntake
    _history: AlertTable
    _auth_timeout: float
    """Seconds."""
    _attempts: Attempts | None
    _alert_rate: Rate | None
    _audit: AuditLog
    _metrics: Metrics
    _visitors: Marks = field(init=False, factory=lambda: Marks(VISIT))
    """Who looks at the figures again and again, as `relay top` does, and from where."""

    async def streams(self, request: Request) -> Response:
        """`GET /streams`: the live streams that may be seen."""
        identity = await self._authenticate(request)
        streams = [
            StreamEntry(stream_id=each.stream_id, status=each.status, metadata=each.metadata)
            for each in self._hub.visible_to(identity)
        ]
        return _json({"streams": streams})

    async def alerts(self, request: Request) -> Response:
        """`GET /alerts`: stored alerts, the newest first."""
        identity = await self._authenticate(request)
        try:
            query = msgspec.convert(dict(request.query_params), AlertsQuery, strict=False)
        except msgspec.ValidationError as problem:
            raise Refusal(400, ErrorCode.INVALID_MESSAGE, f"Invalid query: {problem}") from None
        try:
            page = await self._history.newest(
                identity, stream_id=query.stream_id, before=query.before, limit=query.limit
            )
        except StoreUnavailable:
            raise _store_unavailable() from None
        events = page_of(page.alerts, lambda event: len(msgspec.json.encode(event)))
        return _json({"alerts": events, "more": page.more or len(events) < len(page.alerts)})

    async def raise_alert(self, request: Request) -> Response:
        """`POST /alerts`: the body and the reply are those of the message."""
        await self._authenticate(request)  # for strangers we hold nothing
        body = await _body(request)
        identity = await self._authenticate(
            request, again=True
        )  # a slow body may outlive its token
        try:
            message = _alert_in(body)
        except InvalidMessage as problem:
            raise Refusal(400, problem.code, problem.message) from None
        self._count_alert(identity)
        try:
            stored = await self._intake.accept(alert_from(identity, message))
        except StoreUnavailable:
            raise _store_unavailable() from None
        if stored is None:
            text = "You may not send alerts for this stream"
            self._record(request, ALERT, "refused", identity, text, stream_id=message.stream_id)
            raise Refusal(403, ErrorCode.UNAUTHORIZED, text)
        reply = Success(
            code="ALERT_ACCEPTED",
            message="Alert accepted",
            id=message.id,
            stream_id=stored.stream_id,
            alert_id=stored.alert_id,
        )
        return _json(reply)

    async def figures(self, request: Request) -> Response:
        """`GET /figures`: of each stream and of each connection that consumes it."""
        identity = await self._authenticate(request, looks=True)
        if not policy.may_operate(identity):
            text = "This takes a service token that may operate"
            self._record(request, "figures", "refused", identity, text)
            raise Refusal(403, ErrorCode.UNAUTHORIZED, text)
        return _json({"streams": self._hub.figures()})

    def _count_alert(self, sender: Identity) -> None:
        wait = None if self._alert_rate is None else self._alert_rate.hit(sender.sender)
        if wait is not None:
            self._metrics.limits_hit[Limit.ALERTS] += 1
            raise _too_many("Too many alerts in too short a time", wait)

    async def _authenticate(
        self, request: Request, *, again: bool = False, looks: bool = False
    ) -> Identity:
        """Who asks; `Refusal`. A success is recorded, but not `again` for one request, and of
        somebody who `looks` once for a visit."""
        token = _token_of(request)
        if not token:
            text = "Send a token in the header: Authorization: Bearer TOKEN"
            raise Refusal(401, ErrorCode.AUTH_REQUIRED, text, CHALLENGE)
        address = _address_of(request)
        wait = None if self._attempts is None else self._attempts.wait(address, token)
        if wait is not None:
            self._metrics.limits_hit[Limit.FAILED_AUTHS] += 1
            self._record_auth(request, "limited")
            raise _too_many("Too many attempts to authenticate have failed", wait)
        try:
            with trio.fail_after(self._auth_timeout):
                identity = await self._verifier.verify(token)
        except (StoreUnavailable, trio.TooSlowError):
            self._record_auth(request, "unavailable")
            unavailable = Ending.AUTH_UNAVAILABLE.value
            raise Refusal(
                503, ErrorCode.AUTH_UNAVAILABLE, unavailable.message, RETRY_AFTER
            ) from None
        if self._attempts is not None:
            note = self._attempts.failed if identity is None else self._attempts.succeeded
            note(address, token)
        if identity is None:
            self._record_auth(request, "failed")
            failed = Ending.AUTH_FAILED.value
            raise Refusal(401, ErrorCode.AUTH_FAILED, failed.message, CHALLENGE)
        if looks and self._is_visiting(identity, address):
            self._metrics.auth_attempts["succeeded"] += 1
        elif not again:
            self._record_auth(request, "succeeded", identity)
        return identity

    def _is_visiting(self, identity: Identity, address: ClientAddress) -> bool:
        visitor = f"{identity.sender} {address.text}"
        known = self._visitors.left(visitor) is not None
        self._visitors.set(visitor)
        return known

    def _record_auth(
        self, request: Request, outcome: str, identity: Identity | None = None
    ) -> None:
        self._metrics.auth_attempts[outcome] += 1
        self._record(request, AUTH, outcome, identity, "HTTP")

    def _record(
        self,
        request: Request,
        what: str,
        outcome: str,
        identity: Identity | None,
        reason: str,
        *,
        stream_id: str | None = None,
    ) -> None:
        self._audit.record(
            what,
            outcome=outcome,
            reason=reason,
            address=_address_of(request).text,
            stream_id=unless_token(stream_id, _token_of(request)),
            connection=structlog.contextvars.get_contextvars().get("connection"),
            **who(identity),
        )


def _address_of(request: Request) -> ClientAddress:
    address: ClientAddress = request.state.address
    return address


def _too_many(text: str, wait: float) -> Refusal:
    headers = {"Retry-After": str(ceil(wait))}
    return Refusal(429, ErrorCode.RATE_LIMITED, text, headers)


def _token_of(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        with trio.fail_after(BODY_PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_BUT_FRAMES:
                    text = f"An alert has at most {LARGEST_BUT_FRAMES} bytes"
                    raise Refusal(413, ErrorCode.MESSAGE_TOO_BIG, text)
    except trio.TooSlowError:
        text = f"The body did not come within {BODY_PATIENCE:g} seconds"
        raise Refusal(408, ErrorCode.INVALID_MESSAGE, text) from None
    return bytes(body)


def _alert_in(body: bytes) -> Alert:
    """The alert in a request, which may leave its `type` out; `InvalidMessage`."""
    try:
        body.decode()
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "Not a JSON object") from None
    fields.setdefault("type", msgspec.Raw(msgspec.json.encode(ALERT)))
    message = JSON.decode(msgspec.json.encode(fields))
    if not isinstance(message, Alert):
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "Expected an alert - at `$.type`")
    return message


def _store_unavailable() -> Refusal:
    text = "The database cannot be asked now; try again later"
    return Refusal(503, ErrorCode.STORE_UNAVAILABLE, text, RETRY_AFTER)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
