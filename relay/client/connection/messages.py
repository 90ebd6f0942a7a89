"""The messages of the client as JSON text or MessagePack, and those of the relay as values.

The relay's messages are read leniently: a type or a field that this client does not know is
passed over, so that it can talk to a newer relay.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec
from attrs import frozen

from relay.client.errors import ServerError
from relay.client.events import Alert, Event, Frame, FramesReceived, Notice, Problem, Status
from relay.errors import RelayError

T = TypeVar("T")
Fields = dict[str, Any]

EVENT_CLASSES: dict[str, type[Event]] = {
    "video-frame": Frame,
    "alert": Alert,
    "status": Status,
    "notice": Notice,
    "error": Problem,
    "received": FramesReceived,
}

_decoder = msgspec.json.Decoder(Fields)
_encoder = msgspec.json.Encoder()
_unpacker = msgspec.msgpack.Decoder(Fields)
_packer = msgspec.msgpack.Encoder()


class Unreadable(RelayError):
    """The relay sent something that is not in the protocol."""


@frozen
class Reply:
    """The answer to the request with this id."""

    request_id: int
    answer: Fields | ServerError


@frozen
class MessagePart:
    """A part of a long message."""

    index: int
    count: int
    data: Any
    """A piece of its text, or some of its bytes."""
    stream_id: str | None = None


@frozen
class Arriving:
    """What this client is sending arrives."""


def encode(kind: str, **fields: object) -> str:
    """A message of the client as JSON. A field that is None is left out; bytes become base64."""
    return _encoder.encode(_wire(kind, fields)).decode()


def pack(kind: str, **fields: object) -> bytes:
    """A message of the client as MessagePack, with bytes unchanged."""
    return _packer.encode(_wire(kind, fields))


def check(kind: str, **fields: object) -> None:
    """`ValueError` where one of the two encodings cannot express it: better now than when it is
    sent."""
    try:
        encode(kind, **fields)
        pack(kind, **fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise ValueError(f"{kind}: {problem}") from None


def decode(
    message: str | bytes, *, packed: bool = False
) -> Event | Reply | MessagePart | Arriving | None:
    """A message of the relay; None for one that this client does not know. `Unreadable`."""
    try:
        if not packed:
            wire = _decoder.decode(message)
        elif isinstance(message, bytes):
            wire = _unpacker.decode(message)
        else:
            raise Unreadable("text on a connection that speaks MessagePack")
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise Unreadable(str(problem)) from None
    kind = wire.get("type")
    fields = snake(wire)
    request_id = fields.get("id")
    if isinstance(request_id, int) and kind == "success":
        return Reply(request_id, fields)
    if isinstance(request_id, int) and kind == "error":
        return Reply(request_id, server_error(read(Problem, fields)))
    if kind == "video-frame":
        fields["raw" if packed else "encoded"] = fields.get("data")
        fields.setdefault("encoded", "")
    if kind == "part" and isinstance(fields.get("data"), bytes if packed else str):
        return read(MessagePart, fields)
    if kind == "progress":
        return Arriving()
    event = EVENT_CLASSES.get(kind) if isinstance(kind, str) else None
    return read(event, fields) if event else None


def read(kind: type[T], fields: Fields) -> T:
    """`fields` as a value of this class; `Unreadable` when one is missing or of another type."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as problem:
        raise Unreadable(f"{kind.__name__}: {problem}") from None


def snake(wire: object) -> Fields:
    """A JSON object with the names of its fields in snake case; `Unreadable` if it is none."""
    if not isinstance(wire, dict):
        raise Unreadable("a message that is not an object")
    return {_snake(name): value for name, value in wire.items()}


def server_error(problem: Problem) -> ServerError:
    return ServerError(problem.code, problem.message, problem.retry_after)


def _wire(kind: str, fields: Fields) -> Fields:
    given = {_camel(name): value for name, value in fields.items() if value is not None}
    return {"type": kind, **given}


@cache
def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
