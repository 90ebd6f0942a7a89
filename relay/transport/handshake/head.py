"""Reads request heads as bytes, and refuses requests. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

_ABSOLUTE = re.compile(rb"\A([!-~]+ )[a-z][a-z0-9+.-]*://[^/? \r\n]*([^ \r\n]*)", re.IGNORECASE)
_UPGRADE_LINES = re.compile(rb"^(?:upgrade|connection)[ \t]*:.*\n", re.IGNORECASE | re.MULTILINE)
_REASONS = {
    403: "Forbidden",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


MAX_HEADERS = 100
MAX_PARAMETERS = 100
MAX_COMMAS = 500
"""Header lines, parameters in a query, and commas, at which lists are split, of one request: taking
apart thousands of them takes tens of milliseconds."""


def too_much_in(head: bytes) -> str | None:
    """Say what a request head has too many of; None if it has not."""
    if head.count(b"\n") > MAX_HEADERS + 2:
        return f"The request head has more than {MAX_HEADERS} lines"
    target = head[: head.find(b"\n")]
    if target.count(b"&") + target.count(b";") >= MAX_PARAMETERS:
        return f"The URL has more than {MAX_PARAMETERS} parameters"
    if head.count(b",") > MAX_COMMAS:
        return f"The request head has more than {MAX_COMMAS} commas"
    return None


def asks_for_upgrade(head: bytes) -> bool:
    """Whether a request head asks for a WebSocket, perhaps among other protocols."""
    return "websocket" in _tokens(head, "Upgrade")


def plain_upgrade(head: bytes) -> bytes:
    """Rewrite a head that asks for a WebSocket as the WebSocket library expects it: with a
    path as its target, one `Upgrade` and one `Connection`."""
    head = with_path(head)
    upgrades, connections = header_values(head, "Upgrade"), header_values(head, "Connection")
    lists = len(upgrades) > 1 or len(connections) > 1 or "," in "".join(upgrades)
    if not (lists and asks_for_upgrade(head)):
        return head
    start = head.index(b"\r\n") + 2
    connection = ", ".join(connections).encode("latin-1")
    rest = _UPGRADE_LINES.sub(b"", head[start:])
    return b"%sUpgrade: websocket\r\nConnection: %s\r\n%s" % (head[:start], connection, rest)


def with_path(head: bytes) -> bytes:
    """Replace a whole URL as the target of a request, as a proxy gets it, by its path."""
    found = _ABSOLUTE.match(head)
    if found is None:
        return head
    path = found[2] if found[2].startswith(b"/") else b"/" + found[2]
    return found[1] + path + head[found.end() :]


def _tokens(head: bytes, name: str) -> set[str]:
    """Return what the headers with this name list, in lower case."""
    listed = ",".join(header_values(head, name)).split(",")
    return {token.strip(" \t").lower() for token in listed}


def header_values(head: bytes, name: str) -> list[str]:
    """Return the values of all headers with this name, in order."""
    return [value.strip(b" \t\r").decode("latin-1") for value in _lines_of(name).findall(head)]


@lru_cache
def _lines_of(name: str) -> re.Pattern[bytes]:
    """What finds the values of a header; names are those that the code asks for."""
    # The pattern must not backtrack, which takes seconds for a line of blanks.
    pattern = rb"^%s[ \t]*:(.*)$" % re.escape(name.encode())
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


def refusal(status: int, code: str, message: str, *, retry_after: int | None = None) -> bytes:
    """Build a whole response with an error code of the protocol; `retry_after` in milliseconds."""
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
