"""Reads rows of `relay.alerts` as alerts. A part of `alerts.py`.

Other programs can write to the table, and a row that no alert can have must not end a connection,
or stop the alerts behind it: such values are replaced, and `StoredAlert.odd` names them.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, LiteralString, get_args

import msgspec

from relay.model.alerts.alert import StoredAlert
from relay.model.alerts.alert_picture import MAX_PENDING_SECONDS
from relay.model.json_object import JsonObject
from relay.model.trace_context import MAX_TRACE_CONTEXT_LENGTH, TraceContext
from relay.protocol.codec import MAX_DEPTH, MAX_NON_FRAME_BYTES
from relay.protocol.messages import MAX_ALERT_LENGTH, MAX_SAFE_INTEGER, Severity

ALERT_SEVERITIES = get_args(Severity)
DEFAULT_SEVERITY = "medium"
MAX_METADATA_LENGTH = 8 * MAX_NON_FRAME_BYTES
"""Characters in the table, where one byte of a client's message can become seven: a `false` of
MessagePack in a list."""

NEITHER_BRACKETS_NOR_QUOTES = bytes({*range(256)} - {*b'[]{}"'})
BRACKETS_IN_TEXTS = re.compile(rb'"[^"]*"')
MAX_FEW_VALUES = 256
"""Values that are parsed sooner than looked at, about."""
PLAIN_NUMBERS = bytes.maketrans(b"123456789E", b"000000000e")
TOO_LARGE_NUMBERS = (b"0" * 19, b"0e000")
"""How numbers look that may be too large, with these digits and letters, and without plus signs."""

PICTURE_STATES: LiteralString = ", ".join(
    f"case when k.{kind} = 'pending' and k.alert_id <"
    f" extract(epoch from clock_timestamp()) * 1000000 - {MAX_PENDING_SECONDS} * 1000000"
    f" then 'failed' else k.{kind} end as {kind}"
    for kind in ("still", "clip")
)
"""Of a row `k` of `relay.alert_pictures`, by the ids of alerts, which say when they were stored."""
ALERT_COLUMNS: LiteralString = (
    "a.alert_id, a.stream_id, s.owner_id, a.sender, left(a.severity, 100),"  # noqa: S608 (constants)
    f" left(a.message, {MAX_ALERT_LENGTH + 1}), a.timestamp,"
    f" case when pg_column_size(a.metadata) > {MAX_METADATA_LENGTH}"
    f" or octet_length(a.metadata::text) > {MAX_METADATA_LENGTH}"
    " then '' else a.metadata::text end,"
    " (select array[p.still, p.clip] from ("
    f"select {PICTURE_STATES} from relay.alert_pictures k where k.alert_id = a.alert_id) p),"
    f" left(a.trace_context, {MAX_TRACE_CONTEXT_LENGTH + 1})"
)
"""Columns of alerts `a` and streams `s`. The metadata is read as text, since psycopg would fail the
whole query at metadata that nests too deep. Values longer than any alert's do not leave the
server."""
OF_THIS_LIFE: LiteralString = (
    "s.owner_id is not null and a.alert_id > s.alerts_from and coalesce(a.life, s.life) = s.life"
)
"""Whether an alert `a` belongs to the present life of its stream `s`: nobody sees those of lives
before, or of a stream without an owner."""
UNREADABLE_COLUMNS: LiteralString = "a.alert_id, a.stream_id, s.owner_id"
"""What has to be readable to deliver an alert at all."""
ALERT_COST: LiteralString = (
    f"200 + least(octet_length(a.message), {4 * MAX_ALERT_LENGTH})"
    f" + coalesce(case when pg_column_size(a.metadata) > {MAX_METADATA_LENGTH}"
    f" or octet_length(a.metadata::text) > {MAX_METADATA_LENGTH}"
    " then 0 else octet_length(a.metadata::text) end, 0)"
)
"""The bytes of `ALERT_COLUMNS`, about."""


def read_alert(row: tuple[Any, ...]) -> StoredAlert:
    """The alert of a row of `ALERT_COLUMNS`."""
    alert_id, stream_id, owner_id, sender, severity, message, timestamp, text, *others = row
    pictures, trace_context = others
    still, clip = pictures or (None, None)
    metadata = _metadata(text)
    as_expected = {
        "severity": severity in ALERT_SEVERITIES,
        "message": len(message) <= MAX_ALERT_LENGTH,
        "timestamp": 0 <= timestamp <= MAX_SAFE_INTEGER,
        "metadata": metadata is not None or text is None or text == "null",
    }
    return StoredAlert(
        alert_id=alert_id,
        stream_id=stream_id,
        owner_id=owner_id,
        sender=sender,
        severity=severity if as_expected["severity"] else DEFAULT_SEVERITY,
        message=message[:MAX_ALERT_LENGTH],
        timestamp=min(max(timestamp, 0), MAX_SAFE_INTEGER),
        metadata=metadata,
        still=still,
        clip=clip,
        odd=tuple(name for name, so in as_expected.items() if not so),
        trace=TraceContext.read(trace_context),
    )


def read_unreadable(row: tuple[Any, ...]) -> StoredAlert:
    """The alert of a row of `UNREADABLE_COLUMNS`: its consumers are told that there is one."""
    alert_id, stream_id, owner_id = row
    return StoredAlert(
        alert_id=alert_id,
        stream_id=stream_id,
        owner_id=owner_id,
        sender="",
        severity=DEFAULT_SEVERITY,
        message="",
        timestamp=0,
        odd=("sender", "severity", "message", "timestamp", "metadata"),
    )


def _metadata(text: str | None) -> JsonObject | None:
    """The metadata as an object that can be sent; None for anything else. Most of it is not parsed:
    a thread that parses holds up all others."""
    if text is None or len(text) > MAX_METADATA_LENGTH or not text.lstrip().startswith("{"):
        return None
    return JsonObject(text) if _is_plain(text) or _can_be_sent(text) else None


def _is_plain(text: str) -> bool:
    """Whether it has many values, all of which every decoder and encoder takes for sure; the
    database has checked the syntax."""
    content = text.encode(errors="replace")
    return (
        _has_many_values(content)
        and "\\ud" not in text  # half a character
        and "\\uD" not in text
        and not _may_have_large_numbers(content)
        and not _may_be_deep(content)
    )


def _has_many_values(content: bytes) -> bool:
    return content.count(b",") + content.count(b"[") + content.count(b"{") > MAX_FEW_VALUES


def _may_have_large_numbers(content: bytes) -> bool:
    numbers = content.translate(PLAIN_NUMBERS, b"+")
    return any(large in numbers for large in TOO_LARGE_NUMBERS)


def _may_be_deep(content: bytes) -> bool:
    """Whether brackets may nest too deep. This is quick, also for many values: each step removes
    the innermost pairs of all of them, of one level or two."""
    unescaped = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = unescaped.translate(None, NEITHER_BRACKETS_NOR_QUOTES)
    # Those in texts could make up pairs with the others, and hide them.
    brackets = BRACKETS_IN_TEXTS.sub(b"", brackets.replace(b'""', b""))
    for _ in range(MAX_DEPTH // 2):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _can_be_sent(text: str) -> bool:
    try:
        metadata = json.loads(text)
        msgspec.msgpack.encode(metadata)  # which accepts less than JSON
    except (ValueError, OverflowError, RecursionError):
        return False
    return isinstance(metadata, dict) and _is_as_expected(metadata, MAX_DEPTH)


def _is_as_expected(value: Any, depth: int) -> bool:
    """Whether all numbers are finite, and nothing nests deeper."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_as_expected(each, depth - 1) for each in inside)
