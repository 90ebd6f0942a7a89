"""The JSON Schema and the decoder say the same."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.codec import JSON_CODEC, InvalidMessage
from relay.protocol.schema import message_schema
from tests.unit.protocol.test_codec import (
    only_some,
    requests,
    stream_ids,
    text,
)

SCHEMA = message_schema()
CLIENT = jsonschema.Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": "#/$defs/ClientMessage"}]})

whole_numbers = st.integers(0, 2**53) | st.integers(0, 2**53).map(float)
more_requests = st.one_of(
    requests,
    only_some(
        {"type": st.just("subscribe"), "streamId": stream_ids, "consumes": st.just([])},
        policy=st.sampled_from(["latest", "lossless"]),
        maxFps=st.integers(1, 1000) | st.floats(0.001, 1000),
        window=st.integers(1, 1024),
        alertsAfter=whole_numbers,
    ),
    only_some({"type": st.just("register")}, alertsAfter=whole_numbers),
    only_some({"type": st.just("ack"), "streamId": stream_ids, "seq": whole_numbers}),
    only_some(
        {"type": st.just("alerts-since")},
        streamId=stream_ids,
        after=whole_numbers,
        last=st.integers(1, 1000),
        limit=st.integers(1, 1000),
    ),
    only_some({"type": st.just("streams")}),
)
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**60),
    st.floats(-2, 2**60),
    st.sampled_from([0, 0.0, 1, 1000, 1001, 1024, 1025, 2**53, 2**53 + 1, 2.0, 1000.5]),
    st.sampled_from(["", "low", "latest", "a\n", "a b", "x" * 128, "x" * 129, "x" * 257]),
    text(5, but="\0"),
    st.lists(text(3) | st.integers(0, 3), max_size=2),
    st.dictionaries(text(3, but="\0"), st.integers(0, 3), max_size=2),
)


def accepted(message: dict[str, Any]) -> bool:
    try:
        JSON_CODEC.decode(json.dumps(message).encode())
    except InvalidMessage:
        return False
    return True


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@given(more_requests)
def test_what_a_client_may_send_is_valid(message: dict[str, Any]) -> None:
    assert accepted(message)
    CLIENT.validate(message)


@given(more_requests, st.data())
def test_a_changed_message_is_valid_exactly_if_the_relay_takes_it(
    message: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(message)))
    if data.draw(st.integers(0, 4)):
        message[name] = data.draw(odd_values)
    else:
        del message[name]
    assert CLIENT.is_valid(message) == accepted(message)


@pytest.mark.parametrize("stream_id", ["", "x" * 129, "a b", "a\n", "straße"])
def test_both_refuse_what_is_no_stream_id(stream_id: str) -> None:
    message = {"type": "unsubscribe", "streamId": stream_id}
    assert not CLIENT.is_valid(message)
    assert not accepted(message)


REQUIRED: list[dict[str, Any]] = [
    {"type": "auth", "token": "t"},
    {"type": "register"},
    {"type": "subscribe", "streamId": "s", "consumes": []},
    {"type": "unsubscribe", "streamId": "s"},
    {"type": "ack", "streamId": "s", "seq": 1},
    {"type": "video-frame", "data": "AAAA"},
    {"type": "alert", "streamId": "s", "severity": "low", "message": "m"},
    {"type": "alerts-since"},
    {"type": "streams"},
]


@pytest.mark.parametrize("message", REQUIRED, ids=lambda message: str(message["type"]))
def test_both_take_null_for_what_may_be_absent_and_for_nothing_else(
    message: dict[str, Any],
) -> None:
    (definition,) = (
        each
        for each in SCHEMA["$defs"].values()
        if each.get("properties", {}).get("type", {}).get("enum") == [message["type"]]
        and set(each["required"]) == set(message)
        and "id" in each["properties"]
    )
    for name in definition["properties"]:
        with_null = {**message, name: None}
        assert accepted(with_null) == CLIENT.is_valid(with_null) == (name not in message)
