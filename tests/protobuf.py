"""Reads Protocol Buffers without their schema, to check what relay writes."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Any

Fields = dict[int, list[Any]]


def fields(message: bytes) -> Fields:
    """The values of each field: whole numbers, `float` for those of 64 bits, or bytes."""
    found: Fields = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        value: Any
        match key & 7:
            case 0:
                value, at = varint(message, at)
            case 1:
                (value,) = struct.unpack_from("<d", message, at)
                at += 8
            case 2:
                size, at = varint(message, at)
                value, at = message[at : at + size], at + size
                assert len(value) == size
            case other:
                raise AssertionError(f"a field of type {other}")
        found[key >> 3].append(value)
    return found


def only(found: Fields, field: int) -> Any:
    (value,) = found[field]
    return value


def varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while True:
        number |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if message[at - 1] < 0x80:
            return number, at
