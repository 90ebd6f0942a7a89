"""Reads numbers and absent fields as other languages write them.

Many encoders have one kind of number, or write a nil for each field without a value: `1.0` or `1e0`
for 1, float64 in MessagePack for integers above 32 bits, `nil` for `policy`. A message that does
not decode is rewritten here as the decoder expects it, and decoded again; others never come here.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, get_args

import msgspec
from msgspec import Raw

from relay.protocol.messages import MAX_SAFE_INTEGER, ClientMessage

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a message that it cannot decode."""

_OUT_OF_RANGE = 2 * MAX_SAFE_INTEGER
_ABSENT = Raw()


def _is_integer(kind: msgspec.inspect.Type) -> bool:
    """Whether a field takes integers, but no other numbers."""
    kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    number = {type(each) for each in kinds}
    return msgspec.inspect.IntType in number and msgspec.inspect.FloatType not in number


def _names() -> tuple[dict[str, str], set[str]]:
    """Return the names of all fields, by what they are called on the wire, and of those that are
    integers."""
    names, integers = {"type": "type"}, set()
    for kind in get_args(ClientMessage):
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            names[field.encode_name] = field.name
            if _is_integer(field.type):
                integers.add(field.encode_name)
    return names, integers


NAMES, INTEGERS = _names()

Fields: Any = msgspec.defstruct(
    "Fields",
    [(name, Raw, msgspec.field(default_factory=lambda: _ABSENT)) for name in NAMES.values()],
    rename="camel",
)
"""The fields of any small message, undecoded."""


def fields_of(payload: bytes, format_: ModuleType) -> dict[str, Raw]:
    """Return the fields of a message by their names on the wire, undecoded; `DECODE_ERRORS`."""
    found = format_.decode(payload, type=Fields)
    values = {name: getattr(found, attribute) for name, attribute in NAMES.items()}
    return {name: value for name, value in values.items() if value is not _ABSENT}


def respelled(payload: bytes, format_: ModuleType) -> bytes | None:
    """Rewrite a message without its nils, and with whole numbers as integers where only these are
    taken; None when that changes nothing."""
    try:
        fields = fields_of(payload, format_)
    except DECODE_ERRORS:
        return None
    null = format_.encode(None)
    rewritten = {
        name: _as_integer(value, format_) if name in INTEGERS else value
        for name, value in fields.items()
        if bytes(value) != null
    }
    return None if rewritten == fields else bytes(format_.encode(rewritten))


def whole(number: float) -> int | float:
    """The same number, as an integer if that is exact."""
    return int(number) if number.is_integer() and abs(number) <= MAX_SAFE_INTEGER else number


def _as_integer(value: Raw, format_: ModuleType) -> Raw:
    try:
        number = format_.decode(value, type=int | float)
    except DECODE_ERRORS:
        return value
    if isinstance(number, int) or not number.is_integer():
        return value
    if abs(number) > MAX_SAFE_INTEGER:  # too large for any field, however it is spelled
        number = _OUT_OF_RANGE if number > 0 else -_OUT_OF_RANGE
    return Raw(format_.encode(int(number)))
