"""The HTTP API behind `Authorization: Bearer TOKEN`.

Tokens and permissions are those of a WebSocket's `auth`: both ways use the same verifier and the
same permissions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec import Meta, structs
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from relay.alerts import event as alerts
from relay.alerts.intake import FULL_RETRY_AFTER, AlertIntake, alert_from
from relay.audit.log import AuditLog, subject_of, unless_token
from relay.audit.repetitions import HTTP_REASON
from relay.auth.login import Limited, Login, Rejected, Unavailable, Verified
from relay.concurrency.time_slice import TimeSlice
from relay.connection.session.refusals import MAY_NOT_ALERT, STORE_REJECTS, STORE_UNAVAILABLE
from relay.errors import AlertsFull, StoreRejects, StoreUnavailable
from relay.guard.client_address import ClientAddress
from relay.guard.guard import SessionLimits
from relay.guard.rates import ExpiringKeys
from relay.hub.figures import encode_figures
from relay.hub.hub import Hub
from relay.hub.stream_page import StreamLists
from relay.metrics import Limit, Metrics
from relay.model.access import permissions
from relay.model.access.change import Change
from relay.model.access.identity import Identity, Service, User
from relay.model.alerts.alert import History, StoredAlert
from relay.model.trace_context import TraceContext
from relay.protocol.codec import DECODE_ERRORS, JSON_CODEC, MAX_NON_FRAME_BYTES, InvalidMessage
from relay.protocol.endings import Ending
from relay.protocol.invalid_message import in_words
from relay.protocol.messages import ALERT, AUTH, Alert, ErrorCode, PageSize, StreamId, Success
from relay.protocol.spelling import fields_of
from relay.tracing.tracer import NO_TRACER, TracedStep, Tracer
from relay.web.machine import Machine
from relay.web.revocations import revocation_in

BODY_TIMEOUT = 10.0
"""Seconds for the body of a request."""
VISIT_TIMEOUT = 120.0
"""Seconds after which the next request for the figures is audited again."""
JSON_NULL = b"null"
Query = TypeVar("Query")
RETRY_AFTER = {"Retry-After": "2"}
CHALLENGE = {"WWW-Authenticate": "Bearer"}


class ApiError(HTTPException):
    """An HTTP error with an error code of the protocol."""

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


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of all that has none."""


class StreamsQuery(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The parameters of `GET /streams`."""

    after: StreamId | None = None
    limit: PageSize | None = None


class FiguresQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of `GET /figures`."""

    nodes: Literal["all"] | None = None
    """Those that are asked; None: the one that answers."""


class ClusterFigures(Protocol):
    """The figures of several nodes, as JSON."""

    @property
    def node_id(self) -> str:
        """The id of this node."""

    async def figures(self) -> bytes:
        """Those of this node."""

    async def figures_of_all(self) -> bytes:
        """Those of all nodes that answer."""


class NewestAlerts(Protocol):
    """The stored alerts, the newest first."""

    async def newest(
        self, reader: Identity, *, stream_id: str | None, before: int | None, limit: int
    ) -> History:
        """A page of the alerts that a reader may see: those before the alert `before`, or from the
        newest on; `StoreUnavailable`."""


@define(eq=False)
class Api:
    """Answers requests that carry a token."""

    _login: Login
    _hub: Hub
    _lists: StreamLists
    _intake: AlertIntake
    _history: NewestAlerts
    _limits: SessionLimits
    _audit: AuditLog
    _metrics: Metrics
    _revoke: Callable[[Change], int]
    """Ends the connections that a revocation concerns; returns how many."""
    _tracer: Tracer = NO_TRACER
    machine: Machine | None = field(init=False, default=None)
    """Where there are several worker processes, all of them."""
    cluster: ClusterFigures | None = field(init=False, default=None)
    """None where there are no other nodes."""
    _visitors: ExpiringKeys = field(init=False, factory=lambda: ExpiringKeys(VISIT_TIMEOUT))
    """Who looks at the figures again and again, as `relay top` does, and from where."""

    async def streams(self, request: Request) -> Response:
        """`GET /streams`: the live streams that the sender may watch."""
        identity = await self.authenticate(request)
        query = query_of(request, StreamsQuery)
        rate = self._limits.stream_list_rate
        wait = None if rate is None else rate.hit(identity.sender)
        if wait is not None:
            self._metrics.limits_hit[Limit.STREAM_LISTS] += 1
            raise too_many("Too many requests for the list of streams in too short a time", wait)
        streams, more = await self._lists.page(identity, query.after, query.limit)
        page: dict[str, object] = {"streams": streams}
        return json_response({**page, "more": True} if more else page)

    async def alerts(self, request: Request) -> Response:
        """`GET /alerts`: stored alerts, the newest first."""
        identity = await self.authenticate(request)
        query = query_of(request, AlertsQuery)
        caller = TraceContext.parse(*_trace_headers(request))
        # Those who only look are many: what they ask is traced if they trace it themselves.
        with self._tracer.follow(TracedStep.READ, caller) as span:
            try:
                page = await self._history.newest(
                    identity, stream_id=query.stream_id, before=query.before, limit=query.limit
                )
            except StoreUnavailable:
                raise store_unavailable() from None
            except StoreRejects:
                raise ApiError(400, ErrorCode.INVALID_MESSAGE, STORE_REJECTS) from None
            events = await _encode_page(page.alerts)
            span.note("alerts", len(events))
        return json_response(
            {"alerts": events, "more": page.more or len(events) < len(page.alerts)}
        )

    async def raise_alert(self, request: Request) -> Response:
        """`POST /alerts`: the body and the reply are those of the message."""
        await self.authenticate(request)  # before its body is read
        body = await read_body(request)
        # A slow body may outlive its token.
        identity = await self.authenticate(request, again=True)
        try:
            message = _alert_in(body)
        except InvalidMessage as problem:
            raise ApiError(400, problem.code, problem.message) from None
        if message.traceparent is None:
            traceparent, tracestate = _trace_headers(request)
            message = structs.replace(message, traceparent=traceparent, tracestate=tracestate)
        self._count_alert(identity)
        try:
            stored = await self._intake.accept(alert_from(identity, message))
        except StoreUnavailable:
            raise store_unavailable() from None
        except StoreRejects:
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, STORE_REJECTS) from None
        except AlertsFull as full:
            raise too_many(str(full), FULL_RETRY_AFTER) from None
        if stored is None:
            self.record(
                request, ALERT, "refused", identity, MAY_NOT_ALERT, stream_id=message.stream_id
            )
            raise ApiError(403, ErrorCode.UNAUTHORIZED, MAY_NOT_ALERT)
        reply = Success(
            code="ALERT_ACCEPTED",
            message="Alert accepted",
            id=message.id,
            stream_id=stored.stream_id,
            alert_id=stored.alert_id,
        )
        return json_response(reply)

    async def figures(self, request: Request) -> Response:
        """`GET /figures`: every stream with its consumers, for operators; with `nodes=all`, those
        of all nodes of the cluster."""
        await self.authenticate_operator(request, "figures", looks=True)
        query = query_of(request, FiguresQuery)
        if query.nodes is not None and self.cluster is not None:
            content = await self.cluster.figures_of_all()
        elif self.machine is not None:
            content = await self.machine.figures()
        else:
            content = await self.encode_figures()
        return Response(content, media_type="application/json")

    async def authenticate_operator(
        self, request: Request, what: str, *, looks: bool = False
    ) -> Service:
        """The service that asks, which may operate; `ApiError` for all others."""
        identity = await self.authenticate(request, looks=looks)
        if not permissions.may_operate(identity):
            text = "This needs a service token that may operate"
            self.record(request, what, "refused", identity, text)
            raise ApiError(403, ErrorCode.UNAUTHORIZED, text)
        assert isinstance(identity, Service)
        return identity

    async def encode_figures(self) -> bytes:
        """All figures of this process as JSON."""
        if self.cluster is not None:
            return await self.cluster.figures()
        figures = await encode_figures(self._hub)
        return b'{"streams":[' + b",".join(figures.streams) + b"]}"

    async def revocations(self, request: Request) -> Response:
        """`POST /revocations`: sessions that have ended, told by the application."""
        self._require_revoke(request, await self.authenticate(request))
        body = await read_body(request)
        # A slow body may outlive its token.
        identity = await self.authenticate(request, again=True)
        self._require_revoke(request, identity)
        try:
            changes = revocation_in(body)
        except ValueError as problem:
            text = f"Invalid revocation: {problem}"
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, text) from None
        if self.machine is None:
            ended = sum(map(self._revoke, changes))
        else:
            ended = await self.machine.revoke(changes)
        what = ", ".join(sorted(change.kind for change in changes))
        self.record(request, "revocation", "succeeded", identity, f"{what}: {ended} connections")
        return json_response({"connections": ended})

    def _require_revoke(self, request: Request, identity: Identity) -> None:
        if not permissions.may_revoke(identity):
            text = "This needs a service token that may revoke"
            self.record(request, "revocation", "refused", identity, text)
            raise ApiError(403, ErrorCode.UNAUTHORIZED, text)

    def _count_alert(self, sender: Identity) -> None:
        rate = self._limits.alert_rate
        wait = None if rate is None else rate.hit(sender.sender)
        if wait is not None:
            self._metrics.limits_hit[Limit.ALERTS] += 1
            raise too_many("Too many alerts in too short a time", wait)

    def _count_request(self, sender: Identity) -> None:
        self.count_request(sender.sender)

    def count_request(self, sender: str) -> None:
        """Count a request of a sender; `ApiError` if there are too many."""
        rate = self._limits.request_rate
        wait = None if rate is None else rate.hit(sender)
        if wait is not None:
            self._metrics.limits_hit[Limit.REQUESTS] += 1
            raise too_many("Too many requests in too short a time", wait)

    async def authenticate(
        self, request: Request, *, again: bool = False, looks: bool = False
    ) -> Identity:
        """The identity that asks; `ApiError`. Records a success, but not `again` for the same
        request, and for somebody who `looks` at figures only once per visit."""
        token = token_of(request)
        if not token:
            text = "Send a token in the header: Authorization: Bearer TOKEN"
            raise ApiError(401, ErrorCode.AUTH_REQUIRED, text, CHALLENGE)
        failed = Ending.AUTH_FAILED.value
        identity = await self._verify(request, self._login, token, failed.message)
        if not again:
            self._count_request(identity)
        self._note_success(request, identity, again=again, looks=looks)
        return identity

    async def identify_by_link(
        self, request: Request, login: Login, capability: str, failure: str
    ) -> User:
        """The maker of a link, with the link; `ApiError` that tells the failure if it is not
        valid."""
        identity = await self._verify(request, login, capability, failure)
        assert isinstance(identity, User)
        self._count_request(identity)
        self._note_success(request, identity, looks=True)
        return identity

    async def _verify(self, request: Request, login: Login, token: str, failure: str) -> Identity:
        """The identity that a token stands for; `ApiError`."""
        match await login.attempt(token, address_of(request)):
            case Limited(wait=wait):
                self._record_auth(request, "limited")
                raise too_many("Too many attempts to authenticate have failed", wait)
            case Unavailable():
                self._record_auth(request, "unavailable")
                unavailable = Ending.AUTH_UNAVAILABLE.value
                raise ApiError(503, ErrorCode.AUTH_UNAVAILABLE, unavailable.message, RETRY_AFTER)
            case Rejected():
                self._record_auth(request, "failed")
                raise ApiError(401, ErrorCode.AUTH_FAILED, failure, CHALLENGE)
            case Verified(identity):
                request.state.party = identity.sender
        return identity

    def _note_success(
        self, request: Request, identity: Identity, *, again: bool = False, looks: bool = False
    ) -> None:
        if looks and self._is_visiting(identity, address_of(request)):
            self._metrics.auth_attempts["succeeded"] += 1
        elif not again:
            self._record_auth(request, "succeeded", identity)

    def refusal(self, limit: Limit, text: str) -> ApiError:
        """The answer to one connection or subscription too many, which is counted."""
        self._metrics.limits_hit[limit] += 1
        milliseconds = Ending.TOO_MANY_CONNECTIONS.value.retry_after or 1000
        return ApiError(
            429,
            ErrorCode.TOO_MANY_CONNECTIONS,
            text,
            {"Retry-After": str(milliseconds // 1000)},
        )

    def _is_visiting(self, identity: Identity, address: ClientAddress) -> bool:
        link = identity.link if isinstance(identity, User) else None
        visitor = f"{identity.sender} {address.text} {'' if link is None else link.link_id}"
        known = self._visitors.remaining(visitor) is not None
        self._visitors.add(visitor)
        return known

    def _record_auth(
        self, request: Request, outcome: str, identity: Identity | None = None
    ) -> None:
        self._metrics.auth_attempts[outcome] += 1
        link = identity.link if isinstance(identity, User) else None
        reason = HTTP_REASON if link is None else f"{HTTP_REASON}, link {link.link_id}"
        self.record(request, AUTH, outcome, identity, reason)

    def record(
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
            address=address_of(request).text,
            stream_id=unless_token(stream_id, token_of(request)),
            connection=structlog.contextvars.get_contextvars().get("connection"),
            **subject_of(identity),
        )


def query_of(request: Request, kind: type[Query]) -> Query:
    """The parameters of a request; `ApiError` that names one that is wrong or unknown."""
    try:
        return msgspec.convert(dict(request.query_params), kind, strict=False)
    except msgspec.ValidationError as problem:
        text = f"Invalid query: {in_words(problem, kind)}"
        raise ApiError(400, ErrorCode.INVALID_MESSAGE, text) from None


async def _encode_page(stored: Sequence[StoredAlert]) -> list[msgspec.Raw]:
    """Encode the first alerts, as many as a page may hold and at least one. Others go on
    meanwhile."""
    page: list[msgspec.Raw] = []
    total = 0
    time_slice = TimeSlice()
    for alert in stored:
        encoded = JSON_CODEC.encode(alerts.alert_event(alert))
        total += len(encoded)
        if page and total > alerts.MAX_PAGE_BYTES:
            break
        page.append(msgspec.Raw(encoded))
        await time_slice.pause_if_over()
    return page


def address_of(request: Request) -> ClientAddress:
    address: ClientAddress = request.state.address
    return address


def too_many(text: str, wait: float) -> ApiError:
    headers = {"Retry-After": str(ceil(wait))}
    return ApiError(429, ErrorCode.RATE_LIMITED, text, headers)


def token_of(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _trace_headers(request: Request) -> tuple[str | None, str | None]:
    """The `traceparent` of a request, if it has one, and its `tracestate`."""
    traceparents = request.headers.getlist("traceparent")
    if len(traceparents) != 1:
        return None, None
    return traceparents[0], ",".join(request.headers.getlist("tracestate"))


async def read_body(request: Request) -> bytes:
    """The body of a request; `ApiError` if it is too large or too slow."""
    body = bytearray()
    try:
        with trio.fail_after(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_NON_FRAME_BYTES:
                    text = f"The body must not exceed {MAX_NON_FRAME_BYTES} bytes"
                    raise ApiError(413, ErrorCode.MESSAGE_TOO_BIG, text)
    except trio.TooSlowError:
        text = f"The body did not come within {BODY_TIMEOUT:g} seconds"
        raise ApiError(408, ErrorCode.INVALID_MESSAGE, text) from None
    return bytes(body)


def _alert_in(body: bytes) -> Alert:
    """Decode an alert, whose `type` may be left out; `InvalidMessage`."""
    try:
        body.decode()
        fields = fields_of(body, msgspec.json)
    except DECODE_ERRORS:
        JSON_CODEC.decode(body)  # which says why not
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "Not a JSON object") from None
    if bytes(fields.get("type", JSON_NULL)) == JSON_NULL:
        fields["type"] = msgspec.Raw(msgspec.json.encode(ALERT))
    message = JSON_CODEC.decode(msgspec.json.encode(fields))
    if not isinstance(message, Alert):
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "Expected an alert - at `$.type`")
    return message


def store_unavailable() -> ApiError:
    return ApiError(503, ErrorCode.STORE_UNAVAILABLE, STORE_UNAVAILABLE, RETRY_AFTER)


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with a JSON body, of anything that msgspec encodes."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")
