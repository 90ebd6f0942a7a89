"""Of a large message nothing is built but a frame's data: it must cost neither time nor memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest

from relay.hub.frames.frame import Frame
from relay.protocol.codec import (
    JSON_CODEC,
    MAX_NON_FRAME_BYTES,
    MSGPACK_CODEC,
    Codec,
    InvalidMessage,
)
from relay.protocol.messages import ErrorCode, MalformedFrame, VideoFrame
from tests.unit.memory import MemoryRelay

SIZE = 200_000
MANY = SIZE // 3
LONG = '"' + "x" * SIZE + '"'
CODECS = pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC], ids=["json", "msgpack"])


def encoded(codec: Codec, text: str, many: int = MANY) -> bytes:
    """A message, with as many empty lists, and a number behind them, wherever it says MANY."""
    if not codec.binary:
        return text.replace("MANY", "[" + "[]," * many + "0]").encode()
    # Nothing is built of them here, either.
    message = json.loads(text.replace("MANY", '"MANY"'))
    if isinstance(message, dict) and "data" in message:
        message["data"] = b""
    packed: bytes = msgpack.packb(message)
    lists = b"\xdd" + (many + 1).to_bytes(4) + b"\x90" * many + b"\0"
    return packed.replace(msgpack.packb("MANY"), lists)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 4 * SIZE
    finally:
        tracemalloc.stop()


@CODECS
@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ('{"type":"video-frame","data":"","id":3,"metadata":{"a":MANY}}', None, "$.metadata"),
        ('{"type":"video-frame","data":"","metadata":{"a":LONG},"id":3}', None, "$.metadata"),
        ('{"type":"video-frame","data":"","id":MANY}', None, "$.id"),
        ('{"type":"video-frame","data":"","id":LONG}', None, "$.id"),
        ('{"type":"video-frame","data":"","streamId":LONG}', None, "$.streamId"),
        ('{"type":"video-frame","data":"","timestamp":MANY}', None, "$.timestamp"),
        ('{"type":"register","id":3,"metadata":{"a":MANY}}', None, "65536"),
        ('{"metadata":{"a":MANY},"type":"register","id":3}', None, "65536"),
        ('{"type":"register","id":MANY}', None, "65536"),
        ('{"type":"auth","token":LONG}', None, "65536"),
        ('{"type":"streams","unknown":MANY}', None, "65536"),
        ('{"type":MANY,"id":3}', None, "$.type"),
        ('{"type":LONG,"id":3}', ErrorCode.UNKNOWN_MESSAGE_TYPE, "$.type"),
        ('{"type":"nonsense","id":3,"a":MANY}', ErrorCode.UNKNOWN_MESSAGE_TYPE, "$.type"),
        ('{"id":3,"a":MANY}', None, "field `type`"),
        ('{"id":3,"data":LONG}', None, "field `type`"),
        ('{"type":"video-frame","id":3,"a":MANY}', None, "data"),
        ('MANY', None, "object"),
    ],
)  # fmt: skip
def test_what_is_large_and_no_frame_is_refused_before_it_is_taken_apart(
    codec: Codec, text: str, code: ErrorCode | None, names: str
) -> None:
    payload = encoded(codec, text.replace("LONG", LONG))
    with little_memory(), pytest.raises(InvalidMessage) as caught:
        codec.decode(payload)
    problem = caught.value
    assert problem.code is (code or ErrorCode.INVALID_MESSAGE)
    assert names in problem.message
    assert len(problem.message) < 500
    assert problem.request_id in (None, 3)
    if '"id":3' in text and "$.type" not in problem.message:
        assert problem.request_id == 3


@CODECS
@pytest.mark.parametrize(
    "text",
    [
        '{"type":"video-frame","data":"AAAA","id":3,"unknown":MANY}',
        '{"type":"video-frame","data":"AAAA","metadata":{"a":MANY},"id":3}',
        '{"unknown":MANY,"type":"video-frame","data":"AAAA","id":3}',
        '{"id":3,"type":"video-frame","unknown":{"data":"MORE"},"data":"AAAA","a":MANY}',
        '{"type":"register","id":3,"metadata":{"a":MANY}}',
        '{"type":"nonsense","id":3,"a":MANY}',
    ],
)
def test_beside_its_data_a_large_frame_has_little(codec: Codec, text: str) -> None:
    payload = encoded(codec, text.replace("MORE", "A" * 300_000), 1_000_000)
    with pytest.raises(InvalidMessage) as caught:
        codec.decode(payload)
    assert "8192 values" in caught.value.message or "131072" in caught.value.message
    assert caught.value.request_id == 3


def test_data_within_another_field_is_not_the_data_of_a_large_frame() -> None:
    other = {"x": {"data": "A" * 400_000}, "type": "video-frame", "data": "BBBB"}
    with pytest.raises(InvalidMessage, match="131072"):
        JSON_CODEC.decode(json.dumps(other).encode())


@pytest.mark.parametrize("odd", ["\x00", "\n", "\xff", "!", '\\"', "\\u00e9"])
def test_a_large_text_that_json_viewers_could_not_read_is_refused(odd: str) -> None:
    text = "!" + "A" * 300_000 + odd + "A" * 300_000
    payload = b'{"type":"video-frame","data":"%s","id":3}' % text.encode()
    if odd in {"\xff", "!"}:
        frame = JSON_CODEC.decode(payload)
        assert isinstance(frame, MalformedFrame)
        assert json.loads(bytes(frame.data)) == text
    else:
        with pytest.raises(InvalidMessage) as caught:
            JSON_CODEC.decode(payload)
        assert caught.value.request_id == 3


@CODECS
def test_a_large_frame_is_taken(codec: Codec) -> None:
    picture = b"x" * (1 << 20)
    data = picture if codec.binary else picture.decode()
    message: dict[str, Any] = {"type": "video-frame", "data": data, "unknown": [[]] * 1000}
    payload = msgpack.packb(message) if codec.binary else json.dumps(message).encode()
    frame = codec.decode(payload)
    assert isinstance(frame, VideoFrame)
    assert memoryview(frame.data).nbytes > 1 << 20


@CODECS
@pytest.mark.parametrize("size", [MAX_NON_FRAME_BYTES, MAX_NON_FRAME_BYTES + 1])
def test_metadata_of_a_frame_may_be_so_long(codec: Codec, size: int) -> None:
    around = len(msgpack.packb({"a": "x" * 60_000}) if codec.binary else '{"a":""}')
    text = "x" * (size - (around - 60_000 if codec.binary else around))
    message: dict[str, Any] = {"type": "video-frame", "metadata": {"a": text}}
    if codec.binary:
        payload = msgpack.packb({**message, "data": b""})
    else:
        payload = json.dumps({**message, "data": ""}, separators=(",", ":")).encode()
    if size == MAX_NON_FRAME_BYTES:
        codec.decode(payload)
    else:
        with pytest.raises(InvalidMessage, match="metadata"):
            codec.decode(payload)


@pytest.mark.parametrize("odd", ["5", '"text"', "[]", "true", "1.5"])
@CODECS
def test_metadata_of_a_frame_is_an_object_or_null(codec: Codec, odd: str) -> None:
    with pytest.raises(InvalidMessage, match="metadata"):
        codec.decode(
            encoded(codec, '{"type":"video-frame","data":"","metadata":%s}'.replace("%s", odd))
        )
    frame = codec.decode(encoded(codec, '{"type":"video-frame","data":"","metadata":null}'))
    assert isinstance(frame, VideoFrame)
    for other in (JSON_CODEC, MSGPACK_CODEC):
        assert b"metadata" not in bytes(Frame("s", 1, 1, 1.0, frame, codec).encoded(other) or b"")


def test_metadata_travels_as_it_came_within_an_encoding() -> None:
    odd = '{"b" : 1.50, "a":\\t"\\\\u00e9",  "b": -0}'.replace("\\t", "\t")
    frame = JSON_CODEC.decode(f'{{"type":"video-frame","data":"","metadata":{odd}}}'.encode())
    assert isinstance(frame, VideoFrame)
    accepted = Frame("s", 1, 1, 1.0, frame, JSON_CODEC)
    assert odd.encode() in bytes(accepted.encoded(JSON_CODEC) or b"")
    assert b"\xa1b" in bytes(accepted.encoded(MSGPACK_CODEC) or b"")


@pytest.mark.parametrize(
    "odd",
    ['{"a": 1e999}', '{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": %s}' % ("[" * 40 + "]" * 40)],
)
def test_metadata_that_one_encoding_cannot_hold_is_refused(odd: str) -> None:
    with pytest.raises(InvalidMessage, match="metadata"):
        JSON_CODEC.decode(f'{{"type":"video-frame","data":"","metadata":{odd}}}'.encode())


async def test_a_large_message_that_is_no_frame_is_answered(relay: MemoryRelay) -> None:
    client = await relay.login()
    reply = await client.ask({"type": "register", "id": "r", "metadata": {"a": [[]] * 100_000}})
    assert (reply["code"], reply["id"]) == ("INVALID_MESSAGE", "r")
    assert (await client.ask({"type": "streams"}))["code"] == "STREAMS"
