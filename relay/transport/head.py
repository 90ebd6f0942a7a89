"""Request heads as bytes: what they say, and how one is refused. Floor 1, no I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

_UPGRADE = re.compile(rb"^upgrade[ \t]*:[ \t]*websocket[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
_REASONS = {403: "Forbidden", 429: "Too Many Requests", 503: "Service Unavailable"}


def asks_for_upgrade(head: bytes) -> bool:
    """Whether a request head wants a WebSocket."""
    return _UPGRADE.search(head) is not None


def header_values(head: bytes, name: str) -> list[str]:
    """The values of all headers with this name, in order."""
    # Nothing here may walk back over what it has read: that takes seconds for a line of blanks.
    pattern = rb"^%s[ \t]*:(.*)$" % re.escape(name.encode())
    found = re.findall(pattern, head, re.IGNORECASE | re.MULTILINE)
    return [value.strip(b" \t\r").decode("latin-1") for value in found]


def refusal(status: int, code: str, message: str, *, retry_after: int | None = None) -> bytes:
    """A whole answer that says no, with the code of the protocol; `retry_after` in ms."""
    error: dict[str, object] = {"code": code, "message": message}
    headers: Mapping[str, object] = {}
    if retry_after is not None:
        error["retryAfter"] = retry_after
        headers = {"Retry-After": math.ceil(retry_after / 1000)}
    body = msgspec.json.encode({"error": error}) + b"\n"
    headers = {
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Cache-Control": "no-store",
        "Connection": "close",
        **headers,
    }
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
