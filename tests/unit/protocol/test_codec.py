"""The codec against `json`: what one side encodes the other decodes, and garbage is refused."""

from __future__ import annotations

import base64
import io
import json
import pprint
import string
import time
from typing import Any

import msgpack
import msgspec
import pytest
import rich.console
import rich.pretty
import structlog
import wsproto
from hypothesis import given
from hypothesis import strategies as st

from relay.hub.frames.frame import Frame
from relay.logs.setup import configure_logging
from relay.protocol.codec import JSON_CODEC, MAX_DEPTH, MSGPACK_CODEC, Codec, InvalidMessage
from relay.protocol.messages import (
    Alert,
    AlertEvent,
    Auth,
    ClientMessage,
    Error,
    ErrorCode,
    MalformedFrame,
    Register,
    Subscribe,
    Success,
    Unsubscribe,
    VideoFrame,
)

SECRET = "5ecret-t0ken"


def text(most: int, *, but: str = "") -> st.SearchStrategy[str]:
    """Text that is UTF-8: no half of a surrogate pair."""
    return st.text(st.characters(codec="utf-8", exclude_characters=but), max_size=most)


plain_text = text(12, but="\0")
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | integers | floats | plain_text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=6,
)
metadata = st.dictionaries(plain_text, values, max_size=4)
stream_ids = st.text(string.ascii_letters + string.digits + "._:-", min_size=1, max_size=128)
ids = text(20) | st.integers(-(2**53), 2**53) | floats
times = st.integers(0, 2**53) | st.floats(0, 2**53)


def only_some(required: dict[str, Any], **optional: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


requests = st.one_of(
    only_some({"type": st.just("auth"), "token": text(20).filter(bool)}, id=ids),
    only_some(
        {"type": st.just("register")},
        id=ids,
        streamId=stream_ids,
        clientType=plain_text,
        produces=st.lists(plain_text, max_size=3),
        consumes=st.lists(plain_text, max_size=3),
        metadata=metadata,
    ),
    only_some(
        {
            "type": st.just("subscribe"),
            "streamId": stream_ids,
            "consumes": st.lists(plain_text, max_size=3),
        },
        id=ids,
        clientType=plain_text,
        policy=st.just("latest"),
    ),
    only_some({"type": st.just("unsubscribe"), "streamId": stream_ids}, id=ids),
    only_some(
        {"type": st.just("video-frame"), "data": st.binary(max_size=30).map(in_base64)},
        id=ids,
        streamId=stream_ids,
        timestamp=times,
        keyframe=st.booleans(),
        discardable=st.booleans(),
        metadata=metadata,
    ),
    only_some(
        {
            "type": st.just("alert"),
            "streamId": stream_ids,
            "severity": st.sampled_from(["low", "medium", "high", "critical"]),
            "message": plain_text,
        },
        id=ids,
        metadata=metadata,
        timestamp=times,
        alertKey=plain_text.filter(bool),
    ),
)
classes: dict[str, type[ClientMessage]] = {
    "auth": Auth,
    "register": Register,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "video-frame": VideoFrame,
    "alert": Alert,
}


def as_json(value: Any, *, ascii_only: bool = False, spaces: int | None = None) -> bytes:
    """As other programs write it."""
    return json.dumps(value, ensure_ascii=ascii_only, indent=spaces).encode()


def refusal(text: bytes) -> InvalidMessage:
    """What a broken message is refused with, which can always be told to the client."""
    with pytest.raises(InvalidMessage) as caught:
        JSON_CODEC.decode(text)
    problem = caught.value
    reply = JSON_CODEC.encode(
        Error(
            code=problem.code,
            message=problem.message,
            id=problem.request_id,
            stream_id=problem.stream_id,
        )
    )
    told = json.loads(reply)
    assert told.get("id") == problem.request_id
    assert len(reply) < 2000
    return problem


def arrived(frame: Frame, codec: Codec) -> dict[str, Any]:
    """What a client that speaks this encoding makes of a frame."""
    client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    client.receive_data(bytes(frame.encoded(codec) or b""))
    (event,) = client.events()
    kind = wsproto.events.BytesMessage if codec.binary else wsproto.events.TextMessage
    assert isinstance(event, kind)
    assert event.message_finished
    received: dict[str, Any] = (msgpack.unpackb if codec.binary else json.loads)(event.data)
    return received


def on_the_wire(message: bytes, *, seq: int = 1) -> dict[str, Any]:
    """What a client makes of a `video-frame` that another one sent."""
    request = JSON_CODEC.decode(message)
    assert isinstance(request, VideoFrame)
    return arrived(Frame("s", seq, 1234, 1.5, request, JSON_CODEC), JSON_CODEC)


@given(requests, st.booleans(), st.sampled_from([None, 0, 2]))
def test_every_valid_message_decodes_to_what_it_says(
    request: dict[str, Any], ascii_only: bool, spaces: int | None
) -> None:
    message = JSON_CODEC.decode(as_json(request, ascii_only=ascii_only, spaces=spaces))
    assert type(message) is classes[request.pop("type")]
    decoded = {
        name: json.loads(bytes(value) or b"null") if isinstance(value, msgspec.Raw) else value
        for name, value in msgspec.structs.asdict(message).items()
    }
    renamed = {field.encode_name: field.name for field in msgspec.structs.fields(message)}
    for name, value in request.items():
        assert decoded.pop(renamed[name]) == value
    assert all(value in (None, "latest") for value in decoded.values())


@given(metadata)
def test_metadata_reaches_clients_as_it_was_sent(metadata: dict[str, Any]) -> None:
    register = JSON_CODEC.decode(as_json({"type": "register", "metadata": metadata}))
    assert isinstance(register, Register)
    success = JSON_CODEC.encode(Success(code="SUBSCRIBED", message="", metadata=register.metadata))
    assert json.loads(success)["metadata"] == metadata
    frame = on_the_wire(as_json({"type": "video-frame", "data": "", "metadata": metadata}))
    assert frame["metadata"] == metadata
    alert = JSON_CODEC.decode(
        as_json(
            {
                "type": "alert",
                "streamId": "s",
                "severity": "low",
                "message": "",
                "metadata": metadata,
            }
        )
    )
    assert isinstance(alert, Alert)
    event = AlertEvent(
        alert_id=1,
        stream_id="s",
        severity="low",
        message="",
        timestamp=1,
        # On its way it is stored as JSON_CODEC.
        metadata=json.loads(json.dumps(alert.metadata)),
    )
    assert json.loads(JSON_CODEC.encode(event))["metadata"] == metadata


def is_no_base64(data: str) -> bool:
    """Whether data is passed on as it came, because nobody can tell what it says."""
    return isinstance(
        JSON_CODEC.decode(as_json({"type": "video-frame", "data": data})), MalformedFrame
    )


@given(
    text(60).filter(is_no_base64) | st.binary(max_size=300).map(in_base64),
    st.booleans(),
    st.sampled_from([None, 0, 3]),
    times,
)
def test_whatever_string_the_data_is_it_arrives(
    data: str, ascii_only: bool, spaces: int | None, timestamp: float
) -> None:
    sent = {"data": data, "type": "video-frame", "timestamp": timestamp, "keyframe": False}
    received = on_the_wire(as_json(sent, ascii_only=ascii_only, spaces=spaces), seq=7)
    assert received == {
        "type": "video-frame",
        "streamId": "s",
        "seq": 7,
        "timestamp": timestamp,
        "receivedAt": 1234,
        "keyframe": False,
        "data": data,
    }


@pytest.mark.parametrize(
    "data", [b'"\\q"', b'"\\u12"', b'"a\nb"', b'"\x00"', b'"a', b"'a'", b"a", b"[]", b"{}", b"1"]
)
def test_data_that_is_no_json_string_goes_no_further(data: bytes) -> None:
    problem = refusal(b'{"type": "video-frame", "data": ' + data + b"}")
    assert problem.code is ErrorCode.INVALID_MESSAGE


# -- garbage


@given(text(40) | st.text('{}[]",:\\u0123456789.eE+-truefalsn \n', max_size=40))
def test_any_other_text_is_refused(text: str) -> None:
    refusal(text.encode())


@given(st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    refusal(data)


@given(
    requests.map(as_json),
    st.integers(0, 1 << 16),
    st.integers(0, 1 << 16),
    st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"\\ud800", b"\xff", b"null", b"9" * 400]),
)
def test_a_damaged_message_is_read_or_refused(
    message: bytes, start: int, length: int, damage: bytes
) -> None:
    start %= len(message)
    damaged = message[:start] + damage + message[start + length % 8 :]
    try:
        JSON_CODEC.decode(damaged)
    except InvalidMessage:
        refusal(damaged)


@given(requests, st.data())
def test_a_field_of_another_type_is_named(request: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(request)))
    request[name] = {"a": 1} if name != "metadata" else 5
    problem = refusal(as_json(request))
    assert problem.code is ErrorCode.INVALID_MESSAGE
    assert f"`$.{name}`" in problem.message


@pytest.mark.parametrize(
    "text",
    [
        b'{"type": "auth", "token": "\xff"}',
        b'{"type": "register", "clientType": "\xc3"}',
        b'{"type": "register", "metadata": {"\xed\xa0\x80": 1}}',
        b'{"type": "\xff"}',
        b'{"type": "register", "\xff": 1, "streamId": 5}',
    ],
)
def test_bytes_that_are_not_utf8_are_refused(text: bytes) -> None:
    assert refusal(text).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(
    "place", ['"metadata": {"a": %s}', '"metadata": {%s: 1}', '"streamId": %s']
)
def test_half_a_surrogate_pair_is_refused(place: str) -> None:
    for half in ('"\\ud83d"', '"\\ude00"', '"\\ude00\\ud83d"'):
        refusal(('{"type": "register", ' + place % half + "}").encode())


@pytest.mark.parametrize(
    "half", ["\\ud83d", "\\uDE00", "\\ude00\\ud83d", "\\ud83d\\u0041", "\\ud83d!"]
)
@pytest.mark.parametrize(
    ("place", "field"),
    [
        ('"message": "😀 \\ud83d\\ude00 \\\\ud83d %s"', "message"),
        ('"message": "m", "metadata": {"a": ["%s"]}', "metadata"),
        ('"message": "m", "metadata": {"%s": 1}', "metadata"),
        ('"message": "m", "alertKey": "%s"', "alertKey"),
    ],
)
def test_half_a_character_is_refused_with_its_field(place: str, field: str, half: str) -> None:
    text = '{"type": "alert", "id": 4, "streamId": "s", "severity": "low", ' + place % half + "}"
    problem = refusal(text.encode())
    assert problem.message == f"Invalid message: Half of a surrogate pair - at `$.{field}`"
    assert (problem.request_id, problem.stream_id) == (4, "s")


def test_a_token_with_half_a_character_is_an_auth_that_can_be_sent_again() -> None:
    problem = refusal(b'{"type": "auth", "token": "\\ud83d"}')
    assert problem.is_auth
    assert "surrogate" in problem.message


@pytest.mark.parametrize(
    "text", [b'{"type": "alert", "message": "\\ud83d\\ude00', b'{"a": "\\ud83d']
)
def test_a_message_that_is_cut_off_is_called_that(text: bytes) -> None:
    assert "truncated" in refusal(text).message


@pytest.mark.parametrize("size", [10_000, 70_000, 5_000_000])
def test_halves_without_end_are_refused_in_time(size: int) -> None:
    begun = time.process_time()
    problem = refusal(b'{"type": "video-frame", "data": "' + b"\\ude00" * (size // 6) + b'"}')
    assert "surrogate" in problem.message or "not base64" in problem.message
    assert time.process_time() - begun < 0.2  # seconds


@pytest.mark.parametrize("digits", [20, 308, 309, 400, 4299, 4300, 4301, 5000, 100_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_huge_integers_are_passed_on_or_refused(digits: int, sign: str) -> None:
    number = sign + "7" * digits
    text = f'{{"type": "video-frame", "data": "", "metadata": {{"a": {number}}}}}'.encode()
    try:
        JSON_CODEC.decode(text)
    except InvalidMessage:
        refusal(text)
        assert not -(2**63) <= int(number[:30]) < 2**64  # MessagePack has no larger ones
    else:
        assert on_the_wire(text)["metadata"] == {"a": int(number)}


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "01", "1."])
def test_numbers_that_json_cannot_hold_are_refused(number: str) -> None:
    refusal(f'{{"type": "register", "metadata": {{"a": {number}}}}}'.encode())
    refusal(f'{{"type": "video-frame", "data": "", "timestamp": {number}}}'.encode())


@pytest.mark.parametrize(
    ("timestamp", "good"), [(0, True), (2**53, True), (-1, False), (2**54, False)]
)
def test_times_lie_where_a_float_counts_every_one(timestamp: int, good: bool) -> None:
    for form in (timestamp, float(timestamp)):
        text = as_json({"type": "video-frame", "data": "", "timestamp": form})
        if good:
            assert on_the_wire(text)["timestamp"] == timestamp
        else:
            assert "`$.timestamp`" in refusal(text).message


@pytest.mark.parametrize(("open_", "close"), [('{"a":', "}"), ("[", "]")])
def test_metadata_nests_as_deep_as_is_allowed(open_: str, close: str) -> None:
    def nested(depth: int) -> bytes:
        inner = open_ * (depth - 1) + "1" + close * (depth - 1)
        return f'{{"type": "register", "id": 3, "metadata": {{"a": {inner}}}}}'.encode()

    JSON_CODEC.decode(nested(MAX_DEPTH))
    problem = refusal(nested(MAX_DEPTH + 1))
    assert "`$.metadata`" in problem.message
    assert problem.request_id == 3


@pytest.mark.parametrize("field", ["metadata", "unknown", "streamId", "id", "type"])
@pytest.mark.parametrize(
    "deep", ["[" * 1_000_000, '{"a":' * 200_000, "[" * 100_000 + "]" * 100_000]
)
def test_nesting_without_end_is_refused(field: str, deep: str) -> None:
    refusal(f'{{"id": 3, "type": "register", "{field}": {deep}}}'.encode())


@pytest.mark.parametrize(
    "metadata", [{"a": "\0"}, {"\0": 1}, {"a": [["b\0"]]}, {"a": [{"b": {"c\0": []}}]}]
)
@pytest.mark.parametrize("kind", [{"type": "register"}, {"type": "video-frame", "data": ""}])
def test_metadata_holds_no_nul(metadata: dict[str, Any], kind: dict[str, Any]) -> None:
    assert "U+0000" in refusal(as_json({**kind, "metadata": metadata})).message


@pytest.mark.parametrize("field", ["message", "alertKey"])
def test_what_is_stored_of_an_alert_holds_no_nul(field: str) -> None:
    alert = {"type": "alert", "streamId": "s", "severity": "low", "message": "m", field: "a\0"}
    problem = refusal(as_json(alert))
    assert f"U+0000 - at `$.{field}`" in problem.message
    assert problem.stream_id == "s"


# -- MessagePack, of which `msgpack` is the judge

odd_keys = plain_text | st.integers(0, 5) | st.binary(max_size=2) | st.none() | floats
odd_values = st.recursive(
    scalars
    | st.floats()
    | st.binary(max_size=5)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=12))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**33), st.integers(0, 10**9 - 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_keys, inner, max_size=3),
    max_leaves=6,
)


def read_or_refuse(payload: bytes) -> None:
    """Whatever it is: it is refused with something that can be told, or passed on to everybody."""
    try:
        message = MSGPACK_CODEC.decode(payload)
    except InvalidMessage as problem:
        error = Error(code=problem.code, message=problem.message, id=problem.request_id)
        assert msgpack.unpackb(MSGPACK_CODEC.encode(error))["type"] == "error"
        return
    if isinstance(message, VideoFrame):
        frame = Frame("s", 1, 1234, 1.5, message, MSGPACK_CODEC)
        assert arrived(frame, JSON_CODEC).get("metadata") == arrived(frame, MSGPACK_CODEC).get(
            "metadata"
        )
    else:
        assert json.loads(JSON_CODEC.encode(Success(code="STREAMS", message="", id=message.id)))


@given(st.binary())
def test_any_bytes_are_refused_as_messagepack(payload: bytes) -> None:
    read_or_refuse(payload)


@given(requests, st.integers(0, 1 << 16), st.integers(0, 8), st.binary(max_size=3))
def test_damaged_messagepack_is_read_or_refused(
    request: dict[str, Any], start: int, length: int, damage: bytes
) -> None:
    if "data" in request:
        request["data"] = request["data"].encode()
    message = msgpack.packb(request)
    start %= len(message)
    read_or_refuse(message[:start] + damage + message[start + length :])


@given(odd_values, st.sampled_from(["id", "data", "timestamp", "streamId", "unknown"]))
def test_what_only_messagepack_can_say_is_passed_on_or_refused(value: Any, field: str) -> None:
    frame = {"type": "video-frame", "data": b"abc"}
    read_or_refuse(msgpack.packb({**frame, "metadata": {"a": value}}))
    read_or_refuse(msgpack.packb({**frame, field: value}))


@given(metadata, st.binary(max_size=300), st.booleans())
def test_a_frame_is_the_same_in_both_encodings(
    metadata: dict[str, Any], picture: bytes, binary: bool
) -> None:
    sent: dict[str, Any] = {"type": "video-frame", "metadata": metadata}
    if binary:
        codec: Codec = MSGPACK_CODEC
        message = codec.decode(msgpack.packb({**sent, "data": picture}))
    else:
        codec = JSON_CODEC
        data = base64.b64encode(picture).decode()
        message = codec.decode(as_json({**sent, "data": data}))
    assert isinstance(message, VideoFrame)
    frame = Frame("s", 1, 1234, 1.5, message, codec)
    text, packed = arrived(frame, JSON_CODEC), arrived(frame, MSGPACK_CODEC)
    assert base64.b64decode(text.pop("data")) == packed.pop("data") == picture
    assert text == packed
    assert text.get("metadata") == metadata


# -- what a refusal names


@given(ids)
def test_ids_come_back(request_id: Any) -> None:
    assert JSON_CODEC.decode(as_json({"id": request_id, "type": "register"})).id == request_id
    assert (
        json.loads(JSON_CODEC.encode(Success(code="STREAMS", message="", id=request_id)))["id"]
        == request_id
    )
    for broken in (
        {"type": "register", "streamId": 5},
        {"type": "unheard of"},
        {"type": "register", "metadata": {"a": "\0"}},
        {"streamId": 5},
    ):
        problem = refusal(as_json({**broken, "id": request_id}))
        assert problem.request_id == request_id


@pytest.mark.parametrize("request_id", [True, [1], {"a": 1}, "x" * 257, "x" * 60_000])
def test_what_is_no_id_is_refused_and_does_not_come_back(request_id: Any) -> None:
    problem = refusal(as_json({"type": "register", "id": request_id}))
    assert "`$.id`" in problem.message
    assert problem.request_id is None
    assert refusal(as_json({"type": "unheard of", "id": request_id})).request_id is None


def test_an_id_with_more_digits_than_can_be_read_does_not_come_back() -> None:
    problem = refusal(b'{"type": "register", "streamId": 5, "id": ' + b"7" * 5000 + b"}")
    assert problem.request_id is None


@pytest.mark.parametrize("kind", ["", "AUTH", "frame", "x" * 200_000])
def test_an_unknown_type_is_told_apart_in_few_words(kind: str) -> None:
    assert refusal(as_json({"type": kind})).code is ErrorCode.UNKNOWN_MESSAGE_TYPE


@pytest.mark.parametrize("kind", [None, 5, ["auth"], {"auth": 1}])
def test_a_type_that_is_no_text_is_invalid(kind: Any) -> None:
    assert refusal(as_json({"type": kind})).code is ErrorCode.INVALID_MESSAGE


def test_the_stream_is_named() -> None:
    assert refusal(b'{"type": "subscribe", "streamId": "s"}').stream_id == "s"
    assert refusal(b'{"type": "subscribe", "streamId": 5}').stream_id is None
    bad = as_json({"type": "subscribe", "consumes": [], "streamId": "x" * 100_000})
    assert refusal(bad).stream_id is None


# -- tokens


def shown(value: Any) -> list[str]:
    """All the ways in which a value ends up before somebody's eyes."""
    out = io.StringIO()
    rich.console.Console(file=out).print(value, [value], {"a": value})
    for log_format in ("console", "json"):
        configure_logging("debug", log_format, out)
        structlog.get_logger("relay.test").info(
            "event", message=value, several=[value], **{"in": {"a": value}}
        )
    return [repr(value), f"{value}", pprint.pformat(value), rich.pretty.pretty_repr(value),
            out.getvalue()]  # fmt: skip


def test_no_way_of_showing_a_message_shows_its_token() -> None:
    auth = JSON_CODEC.decode(as_json({"type": "auth", "token": SECRET, "id": 5}))
    for text in shown(auth) + shown(msgspec.structs.replace(auth, id=6)):
        assert "Auth" in text
        assert SECRET not in text


def test_a_log_line_of_a_message_in_parts_hides_its_token() -> None:
    auth = JSON_CODEC.decode(as_json({"type": "auth", "token": SECRET}))
    for log_format in ("console", "json"):
        out = io.StringIO()
        configure_logging("debug", log_format, out)
        log = structlog.get_logger("relay.test")
        log.info("event", message=msgspec.structs.asdict(auth))
        log.info("event", messages=[msgspec.to_builtins(auth)])
        assert out.getvalue().count("token") == 2
        assert SECRET not in out.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        f'{{"type": "auth", "token": "{SECRET}", "id": []}}',
        f'{{"type": "auth", "token": ["{SECRET}"]}}',
        f'{{"type": "auth", "token": {{"{SECRET}": 1}}}}',
        f'{{"type": "auth", "token": "{SECRET * 1000}"}}',
        f'{{"type": "auth", "token": "{SECRET}"',
        f'{{"type": "auth", "token": "{SECRET}\\q"}}',
        f'{{"type": "auth", "token": {SECRET}}}',
        f'{{"token": "{SECRET}"}}',
        f'{{"type": "authenticate", "token": "{SECRET}"}}',
    ],
)
def test_a_refusal_repeats_no_token(text: str) -> None:
    problem = refusal(text.encode())
    assert SECRET not in repr(problem)
    assert SECRET not in "".join(shown(problem))
    assert problem.__suppress_context__


def test_a_frame_shows_no_picture() -> None:
    message = JSON_CODEC.decode(
        b'{"type": "video-frame", "data": "AAAA", "metadata": {"a": "BBBB"}}'
    )
    assert isinstance(message, VideoFrame)
    frame = Frame("s", 1, 2, 3.5, message, JSON_CODEC)
    assert frame.encoded(JSON_CODEC)
    assert "AAAA" not in repr(frame) + repr(message)
    assert "BBBB" not in repr(frame)


def test_what_is_no_stream_id_is_told_in_words() -> None:
    problem = refusal(b'{"type": "unsubscribe", "streamId": "front door"}')
    assert problem.message == (
        "Invalid message: Expected 1 to 128 characters of A-Z a-z 0-9 - . _ : - at `$.streamId`"
    )
