"""Reads what answers at a relay's address, which may be something else.

An answer that does not have the shape of a report raises `NotARelay`. Its texts are still hostile
to a terminal.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from relay.errors import RelayError

MAX_REPORT_BYTES = 32 << 20

Report = TypeVar("Report", bound=msgspec.Struct)


class NotARelay(RelayError):
    """The answer is not one that a relay gives."""


def read(body: bytes, kind: type[Report], path: str) -> Report:
    """Decode the answer of a path; `NotARelay`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotARelay(f"the server at {path} is not a relay, or has another version") from None
