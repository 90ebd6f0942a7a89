"""The two encodings of messages, and how they tell types apart."""

from __future__ import annotations

from types import ModuleType

import msgspec
from attrs import frozen


@frozen
class Encoding:
    """One encoding, with the bytes that the fields of a frame which are passed on unchanged may
    begin with."""

    name: str
    format: ModuleType
    data_type: str
    data: bytes
    """For `data`."""
    object: bytes
    """For a `metadata` that is an object."""
    null: bytes
    """For a `metadata` that is null."""
    escapes: bool = False
    """Whether characters may be escaped."""


JSON = Encoding("JSON", msgspec.json, "str", b'"', b"{", b"n", escapes=True)
MSGPACK = Encoding(
    "MessagePack",
    msgspec.msgpack,
    "bytes",
    b"\xc4\xc5\xc6",
    bytes((*range(0x80, 0x90), 0xDE, 0xDF)),
    b"\xc0",
)
