"""Rows of `relay.alerts` as alerts. Floor 1, a part of `alerts.py`.

What relay stores it can read. But people have a database to write to, and a row that no alert could
have must not end a conversation, or stop the alerts behind it: it becomes an alert as far as it
goes, which says what of it is not as it stands there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, LiteralString, get_args

import msgspec

from relay.model import StoredAlert
from relay.protocol.codec import LARGEST_BUT_FRAMES, MAX_DEPTH
from relay.protocol.messages import LARGEST_NUMBER, LONGEST_ALERT, Severity

COLUMNS: LiteralString = (
    "a.alert_id, a.stream_id, s.owner_id, a.sender, a.severity, a.message, a.timestamp,"
    " a.metadata::text"
)
"""Of alerts `a` and streams `s`. As text, since psycopg would stop at metadata that nests too deep,
and with it all that is asked for together."""

SEVERITIES = get_args(Severity)
DEFAULT_SEVERITY = "medium"
LONGEST_METADATA = 8 * LARGEST_BUT_FRAMES
"""Characters as they stand in the table, where a byte of what a client sends can become seven: a
`false` of MessagePack in a list."""


def read_alert(row: tuple[Any, ...]) -> StoredAlert:
    """From the values of `COLUMNS`."""
    alert_id, stream_id, owner_id, sender, severity, message, timestamp, text = row
    metadata = _metadata(text)
    as_expected = {
        "severity": severity in SEVERITIES,
        "message": len(message) <= LONGEST_ALERT,
        "timestamp": 0 <= timestamp <= LARGEST_NUMBER,
        "metadata": metadata is not None or text is None or text == "null",
    }
    return StoredAlert(
        alert_id=alert_id,
        stream_id=stream_id,
        owner_id=owner_id,
        sender=sender,
        severity=severity if as_expected["severity"] else DEFAULT_SEVERITY,
        message=message[:LONGEST_ALERT],
        timestamp=min(max(timestamp, 0), LARGEST_NUMBER),
        metadata=metadata,
        odd=tuple(name for name, so in as_expected.items() if not so),
    )


def _metadata(text: str | None) -> Mapping[str, Any] | None:
    """An object that can be sent; None where there is none."""
    if text is None or len(text) > LONGEST_METADATA:
        return None
    try:
        metadata = json.loads(text)
        if not isinstance(metadata, dict) or _is_deeper(metadata, MAX_DEPTH):
            return None
        msgspec.msgpack.encode(metadata)  # which takes less than JSON does
    except (ValueError, OverflowError, RecursionError):
        return None
    return metadata


def _is_deeper(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deeper(each, most - 1) for each in inside)
