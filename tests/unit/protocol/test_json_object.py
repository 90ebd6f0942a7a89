"""Stored JSON stays text until somebody needs what is in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from relay.alerts.event import alert_event
from relay.alerts.targets.delivery import Delivery
from relay.alerts.targets.webhook_message import message_of
from relay.model.alerts.alert import StoredAlert
from relay.model.json_object import JsonObject
from relay.postgres.tables.alerts.alert_rows import read_alert
from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC


def stored(text: str | None) -> StoredAlert:
    return read_alert((7, "porch", "ann", "user:ann", "high", "fire", 1, text, None, None))


def is_parsed(alert: StoredAlert) -> bool:
    return "content" in vars(alert.metadata)


MANY = '{"many": [' + "0, " * 500 + "0],"
ORDINARY = [
    MANY + '"a": 1e-400, "b": "text"}',
    '{"zone": 3, "names": ["caf\\u00e9", "\\ud83d\\ude00", "☂"], "at": [1.5, 2e-7, -0.0, 1e22]}',
    "{}",
    ' {"a" : {"b": [[], {}, null, true, "\\u0001"]}}\n',
    json.dumps({"numbers": [1.2345e-305, 123456789012345678, 0.1234567890123456]}),
    json.dumps({"brackets": "[{" * 500}),
]


@pytest.mark.parametrize("text", ORDINARY)
def test_json_is_passed_on_to_json_as_it_is_stored(text: str) -> None:
    alert = stored(text)
    assert alert.odd == ()
    encoded = JSON_CODEC.encode(alert_event(alert))
    posted = message_of(Delivery(alert))
    assert text.encode() in encoded
    assert text.strip().encode() in posted
    assert json.loads(encoded)["metadata"] == json.loads(text)
    assert json.loads(posted)["data"]["metadata"] == json.loads(text)
    assert not is_parsed(alert)


@pytest.mark.parametrize("text", ORDINARY)
def test_messagepack_gets_what_the_json_says(text: str) -> None:
    encoded = MSGPACK_CODEC.encode(alert_event(stored(text)))
    assert msgspec.msgpack.decode(encoded)["metadata"] == json.loads(text)


def test_stored_json_is_a_mapping() -> None:
    stored = JsonObject('{"a": 1, "b": [2]}')
    assert stored == {"a": 1, "b": [2]}
    assert stored["b"] == [2]
    assert list(stored) == ["a", "b"]
    assert len(stored) == 2
    assert "1" in repr(stored)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '"text"',
        "5",
        '{"a": 1e999}',
        '{"a": -1E+400}',
        '{"a": 12e0400}',
        '{"a": 18446744073709551616}',
        '{"a": -9223372036854775809}',
        '{"a": 1' + "0" * 5000 + "}",
        '{"a": "\\ud800"}',
        '{"a": "\\uDC00x"}',
        '{"\\udbff": 1}',
        '{"a": ' + "[" * 33 + "]" * 33 + "}",
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": ' + '["]",' * 1000 + "1" + ',"["]' * 1000 + "}",
        '{"a": ' + '["\\\\","\\"]",' * 1000 + "1" + ',"[\\""]' * 1000 + "}",
        '{"a": ',
    ],
)
def test_what_not_every_encoding_can_hold_is_no_metadata(text: str) -> None:
    for each in (text, text.replace("{", MANY, 1)):
        alert = stored(each)
        assert (alert.metadata, alert.odd) == (None, ("metadata",))


@pytest.mark.parametrize(
    "value",
    [
        1e300,
        18446744073709551615,
        -9223372036854775808,
        "\\ud800",
        "1e999",
        "9" * 40,
        [[[]] * 40] * 3,
        ["[" * 99, '"]', '\\"', "}{"] * 3,
        0.12345678901234567,
    ],
)
def test_what_only_looks_as_if_is_kept(value: Any) -> None:
    alert = stored(json.dumps({"a": value}))
    assert alert.odd == ()
    assert alert.metadata == {"a": value}
    alert = stored(json.dumps({"a": value, "many": [0] * 500}))
    assert alert.odd == ()
    assert alert.metadata == {"a": value, "many": [0] * 500}
