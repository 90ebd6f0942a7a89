"""Decodes `metadata`, whose content is the client's own, at a cost that its shape does not change.

The values are counted before any is built: from 64 KiB a decoder makes 65,000 of them, which takes
many milliseconds of everybody's time, and keys that are arrays can be chosen to collide.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec

from relay.protocol.encoding import JSON, Encoding
from relay.protocol.spelling import DECODE_ERRORS

MAX_DEPTH = 32
"""Levels of nesting in `metadata`: fewer than any decoder or encoder on its way accepts."""
MAX_VALUES = 4096
"""Values in `metadata`: the entries of its objects and arrays, and one for each that is empty."""

NUL = "\0"
"""The one character that Postgres cannot store in text."""
TOO_MANY_VALUES = f"More than {MAX_VALUES} values"
TOO_DEEP = f"Nests deeper than {MAX_DEPTH}"
OTHER_KEY = "Expected `str` as key"
CONTAINS_NUL = "Contains U+0000"
MAX_UNCHECKED_BYTES = 256
"""MessagePack up to this size is decoded at once: it cannot hold enough to be costly."""


read_json = msgspec.json.Decoder(float_hook=float).decode
"""Decodes JSON of any content. msgspec's own floats take 12 µs where the exponent is near its end,
Python's never one."""


class InvalidMetadata(Exception):
    """Says why not, as in an error to the client."""

    unreadable: bool = False
    """Whether it is not even valid in its encoding."""


class _Unreadable(InvalidMetadata):
    unreadable = True

    def __init__(self) -> None:
        super().__init__("Cannot be read")


def decode_metadata(raw: msgspec.Raw, encoding: Encoding) -> dict[str, Any]:
    """Decode an object of few values, all of which both encodings and the database can hold;
    `InvalidMetadata`."""
    content = bytes(raw)
    if encoding is JSON:
        if len(content) > 2 * MAX_VALUES and not _has_few_in_json(content, MAX_VALUES):
            raise InvalidMetadata(TOO_MANY_VALUES)
    elif len(content) > MAX_UNCHECKED_BYTES:
        check_msgpack(content, 0, MAX_VALUES)
    try:
        decode = read_json if encoding is JSON else encoding.format.decode
        metadata: dict[str, Any] = decode(content)
    except msgspec.ValidationError as problem:
        raise InvalidMetadata(str(problem).partition(" - at ")[0]) from None
    except DECODE_ERRORS:
        raise _Unreadable from None
    _check(metadata)
    return metadata


def _has_few_in_json(content: bytes, most: int) -> bool:
    if _separators(content) <= most:
        return True
    # Many may be inside texts. Without escapes, every second piece between quotes is a text.
    bare = content.replace(rb"\\", b"").replace(rb"\"", b"")
    pieces = bare.split(b'"', 4 * most + 2)
    if len(pieces) > 4 * most + 2:  # a key and a value have two quotes each
        return False
    return _separators(b"".join(pieces[::2])) <= most


def _separators(content: bytes) -> int:
    """Count what precedes values."""
    return content.count(b",") + content.count(b"[") + content.count(b"{")


def _sizes() -> list[int]:
    """Return how many bytes a value of MessagePack takes, by its first byte: all of them if that is
    known, and else 0."""
    sizes = [1] * 0x80 + [0] * 0x20 + [1 + length for length in range(32)] + [0] * 0x20 + [1] * 0x20
    sizes[0xC0] = sizes[0xC2] = sizes[0xC3] = 1
    for first, size in ((0xCA, 5), (0xCB, 9), (0xCC, 2), (0xCD, 3), (0xCE, 5), (0xCF, 9)):
        sizes[first] = size
    for first, size in ((0xD0, 2), (0xD1, 3), (0xD2, 5), (0xD3, 9)):
        sizes[first] = size
    for exponent, first in enumerate(range(0xD4, 0xD9)):  # extension types
        sizes[first] = 2 + (1 << exponent)
    return sizes


_SIZES = _sizes()
_TEXT = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))
_OBJECTS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_CONTAINERS = frozenset((*range(0x80, 0xA0), *range(0xDC, 0xE0)))
"""By the first byte."""
_LENGTHS = {
    **dict.fromkeys((0xC4, 0xD9), (struct.Struct("!xB"), 2)),
    **dict.fromkeys((0xC5, 0xDA, 0xDC, 0xDE), (struct.Struct("!xH"), 3)),
    **dict.fromkeys((0xC6, 0xDB, 0xDD, 0xDF), (struct.Struct("!xI"), 5)),
    0xC7: (struct.Struct("!xB"), 3),
    0xC8: (struct.Struct("!xH"), 4),
    0xC9: (struct.Struct("!xI"), 6),
}
"""How the length behind the first byte is read, and how many bytes precede the content."""


def check_msgpack(  # noqa: C901, PLR0912 (a loop; each call would cost more than what it does)
    content: bytes, at: int, most: int, max_depth: int = MAX_DEPTH
) -> int:
    """Return the end of a MessagePack value; `InvalidMetadata` when it has more than `most` values
    inside, nests too deep, has other keys than text, or is cut off."""
    outer: list[tuple[int, bool]] = []
    left, in_object, seen = 1, False, 0
    try:
        while True:
            while not left:
                if not outer:
                    return at
                left, in_object = outer.pop()
            left -= 1
            first = content[at]
            if in_object:
                if first not in _TEXT:
                    raise InvalidMetadata(OTHER_KEY)
                at += _SIZES[first] or _size_of_long(content, at)
                first = content[at]
            size = _SIZES[first]
            if size:
                at += size
            elif first in _CONTAINERS:
                outer.append((left, in_object))
                in_object = first in _OBJECTS
                if first < 0xA0:
                    left = first & 15
                    at += 1
                else:
                    read, header = _LENGTHS[first]
                    [left] = read.unpack_from(content, at)
                    at += header
                seen += left or 1
                if seen > most:
                    raise InvalidMetadata(TOO_MANY_VALUES)
                if len(outer) > max_depth:
                    raise InvalidMetadata(TOO_DEEP)
            else:
                at += _size_of_long(content, at)
    except (IndexError, KeyError, struct.error):
        raise _Unreadable from None


def _size_of_long(content: bytes, at: int) -> int:
    read, header = _LENGTHS[content[at]]
    return header + int(read.unpack_from(content, at)[0])


def _check(metadata: dict[str, Any]) -> None:
    """Refuse what cannot be encoded in both encodings, or stored; `InvalidMetadata`."""
    level: list[Any] = [metadata]
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for parent in level:
            if type(parent) is dict:
                _check_keys(parent)
            for value in parent.values() if type(parent) is dict else parent:
                kind = type(value)
                if kind is dict or kind is list:
                    inside.append(value)
                elif wrong := _why_not(value, kind):
                    raise InvalidMetadata(wrong)
        if not inside:
            return
        level = inside
    raise InvalidMetadata(TOO_DEEP)


def _check_keys(parent: dict[Any, Any]) -> None:
    for key in parent:
        if type(key) is not str:
            raise InvalidMetadata(OTHER_KEY)
        if NUL in key:
            raise InvalidMetadata(CONTAINS_NUL)


def _why_not(value: Any, kind: type) -> str | None:
    """Return why a value cannot be encoded in both encodings, or stored; None if it can."""
    if kind is str:
        return CONTAINS_NUL if NUL in value else None
    if kind is int:
        return None if -(2**63) <= value < 2**64 else "Integer value out of range"
    if kind is float:
        return None if math.isfinite(value) else "Number not finite"
    return None if value is None or kind is bool else f"No `{kind.__name__}` may be here"
