"""What operators do over HTTP, with a service token that may operate: `/operate/…`.

Each request is a JSON object, and each change is audited under the name of the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from attrs import define
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from relay.audit.log import AuditLog
from relay.connection.session.refusals import STORE_REJECTS
from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.access.identity import Service
from relay.model.access.operator import EndAnswer, Operator, OwnedStream
from relay.model.access.person import Person
from relay.protocol.codec import DECODE_ERRORS
from relay.protocol.invalid_message import in_words
from relay.protocol.messages import ErrorCode, StreamId
from relay.web.api import (
    Api,
    ApiError,
    address_of,
    json_response,
    query_of,
    read_body,
    store_unavailable,
)

UserId = Annotated[str, Meta(min_length=1, max_length=256)]
Body = TypeVar("Body", bound="_Request")


class _Request(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The body, or the query, of a request."""


class OwnedStreamsQuery(_Request):
    """The parameters of `GET /operate/streams`."""

    user_id: UserId | None = None
    gone: bool = False
    after: StreamId | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class TransferRequest(_Request):
    """The body of `POST /operate/streams/transfer`."""

    stream_id: StreamId
    user_id: UserId
    with_history: bool = False
    any_user: bool = False
    """Whether the user may be one that has no row."""


class FreeRequest(_Request):
    """The body of `POST /operate/streams/free`."""

    stream_id: StreamId


class EndUserRequest(_Request):
    """The body of `POST /operate/users/end`."""

    user_id: UserId


class EndConnectionRequest(_Request):
    """The body of `POST /operate/connections/end`."""

    connection: Annotated[int, Meta(ge=1, le=2**53)]
    node: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    """The node that numbered it; None: this machine has."""


class PeopleRequest(_Request):
    """The body of `POST /operate/people`."""

    user_ids: Annotated[list[UserId], Meta(max_length=200)]


class StreamOwnership(Protocol):
    """The owners of streams; `ConfigError` when there is no such stream, `StoreUnavailable`."""

    async def all(
        self, *, owner_id: str | None, gone: bool, after: str, most: int
    ) -> Sequence[OwnedStream]:
        """Streams in the order of their ids."""

    async def transfer(
        self, stream_id: str, user_id: str, *, with_history: bool, by: Operator
    ) -> str | None:
        """Give a stream to a user; returns the owner before."""

    async def free(self, stream_id: str, *, by: Operator) -> str | None:
        """Take a stream from its owner, who is returned."""


class Users(Protocol):
    """The table of users."""

    async def find_user(self, name: str) -> str:
        """The id of the user with this id or e-mail address; `ConfigError` if there is none."""

    async def people(self, user_ids: Sequence[str]) -> Mapping[str, Person]:
        """What users are called, as far as that can be read; `StoreUnavailable`."""


class EndRequests(Protocol):
    """Requests to all relays; `StoreUnavailable`."""

    async def end(
        self,
        *,
        user_id: str | None = None,
        connection_number: int | None = None,
        node: str | None = None,
        by: Operator,
    ) -> EndAnswer:
        """End the connections of a user, or one of a node, and wait for what the relays did."""


@define(eq=False)
class OperateApi:
    """Answers operators."""

    _api: Api
    _ownership: StreamOwnership
    _users: Users
    _requests: EndRequests
    _audit: AuditLog
    _end_connection: Callable[[int], bool]
    """Ends a connection of this relay by its number; whether there is one."""

    async def streams(self, request: Request) -> Response:
        """`GET /operate/streams`: whose the streams are, in the order of their ids."""
        await self._api.authenticate_operator(request, "streams", looks=True)
        query = query_of(request, OwnedStreamsQuery)
        try:
            owner_id = None if query.user_id is None else await self._user_id(query.user_id)
            found = await self._ownership.all(
                owner_id=owner_id,
                gone=query.gone,
                after=query.after or "",
                most=query.limit + 1,
            )
        except StoreUnavailable:
            raise store_unavailable() from None
        except StoreRejects:
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, STORE_REJECTS) from None
        streams = [_entry(each) for each in found[: query.limit]]
        return json_response({"streams": streams, "more": len(found) > query.limit})

    async def people(self, request: Request) -> Response:
        """`POST /operate/people`: what users are called, as far as relay can read that."""
        await self._api.authenticate_operator(request, "people", looks=True)
        body = _decoded(await read_body(request), PeopleRequest)

        async def work() -> dict[str, Any]:
            people = await self._users.people(body.user_ids)
            return {
                "people": [
                    {"userId": user_id, "name": each.name, "email": each.email}
                    for user_id, each in people.items()
                ]
            }

        return json_response(await _done(work))

    async def transfer(self, request: Request) -> Response:
        """`POST /operate/streams/transfer`: give a stream to a user."""
        operator, body = await self._read(request, "transfer", TransferRequest)

        async def work() -> dict[str, Any]:
            user_id = body.user_id
            if not body.any_user:
                user_id = await self._users.find_user(user_id)
            before = await self._ownership.transfer(
                body.stream_id, user_id, with_history=body.with_history, by=operator
            )
            return {"streamId": body.stream_id, "ownerId": user_id, "formerOwnerId": before}

        return json_response(await _done(work))

    async def free(self, request: Request) -> Response:
        """`POST /operate/streams/free`: take a stream from its owner."""
        operator, body = await self._read(request, "free", FreeRequest)

        async def work() -> dict[str, Any]:
            before = await self._ownership.free(body.stream_id, by=operator)
            return {"streamId": body.stream_id, "ownerId": None, "formerOwnerId": before}

        return json_response(await _done(work))

    async def end_user(self, request: Request) -> Response:
        """`POST /operate/users/end`: end the connections of a user, on all relays."""
        operator, body = await self._read(request, "end", EndUserRequest)

        async def work() -> dict[str, Any]:
            user_id = await self._user_id(body.user_id)
            answer = await self._requests.end(user_id=user_id, by=operator)
            return {"userId": user_id, "ended": answer.ended, "relays": answer.relays}

        return json_response(await _done(work))

    async def end_connection(self, request: Request) -> Response:
        """`POST /operate/connections/end`: end a connection of this machine, or of a node."""
        operator, body = await self._read(request, "end", EndConnectionRequest)
        number, node, cluster = body.connection, body.node, self._api.cluster
        if node is None or (cluster is not None and node == cluster.node_id):
            await self._end_here(operator, number)
            return json_response({"connection": number, "ended": 1})

        async def work() -> dict[str, Any]:
            answer = await self._requests.end(connection_number=number, node=node, by=operator)
            if not answer.relays:
                raise ConfigError(f"no node {node} has answered")
            if not answer.ended:
                raise ConfigError(f"there is no connection {number} of the node {node}")
            return {"connection": number, "node": node, "ended": 1}

        return json_response(await _done(work))

    async def _end_here(self, operator: Operator, number: int) -> None:
        """End a connection of this machine; `ApiError` if there is none."""
        machine = self._api.machine
        ended = self._end_connection(number) if machine is None else await machine.end(number)
        self._audit.record(
            "end",
            outcome="succeeded" if ended else "refused",
            reason=f"connection {number}{'' if ended else ': there is none'}",
            address=operator.address,
            service=operator.service,
        )
        if not ended:
            raise ApiError(404, ErrorCode.INVALID_MESSAGE, f"There is no connection {number}")

    async def _user_id(self, name: str) -> str:
        """The id of the user with this e-mail address, or else the text itself: users who were
        deleted, or are another issuer's, have an id and no row."""
        if "@" not in name:
            return name
        try:
            return await self._users.find_user(name)
        except ConfigError:
            return name

    async def _read(self, request: Request, what: str, kind: type[Body]) -> tuple[Operator, Body]:
        service: Service = await self._api.authenticate_operator(request, what)
        body = _decoded(await read_body(request), kind)
        return Operator(service.name, address_of(request).text), body


async def _done(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = await work()
    except ConfigError as problem:
        text = str(problem).partition(";")[0]
        raise ApiError(404, ErrorCode.INVALID_MESSAGE, text[:1].upper() + text[1:]) from None
    except StoreUnavailable:
        raise store_unavailable() from None
    except StoreRejects:
        raise ApiError(400, ErrorCode.INVALID_MESSAGE, STORE_REJECTS) from None
    return answer


def _decoded(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as problem:
        text = f"Invalid request: {in_words(problem, kind)}"
        raise ApiError(400, ErrorCode.INVALID_MESSAGE, text) from None
    except DECODE_ERRORS:
        raise ApiError(400, ErrorCode.INVALID_MESSAGE, "Expected a JSON object") from None


def _entry(stream: OwnedStream) -> dict[str, Any]:
    def ms(at: Any) -> int | None:
        return None if at is None else int(at.timestamp() * 1000)

    return {
        "streamId": stream.stream_id,
        "ownerId": stream.owner_id,
        "since": ms(stream.since),
        "goneSince": ms(stream.gone_since),
    }
