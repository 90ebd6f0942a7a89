"""Of a large message nothing is built but a frame's data: it must cost neither time nor memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest

from relay.hub.frame import Frame
from relay.protocol.codec import JSON, LARGEST_BUT_FRAMES, MSGPACK, Codec, InvalidMessage
from relay.protocol.messages import ErrorCode, VideoFrame
from tests.unit.memory import Relay

SIZE = 1 << 20
MANY = "[" + "[]," * (SIZE // 3) + "0]"
LONG = '"' + "x" * SIZE + '"'
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])


def encoded(codec: Codec, text: str) -> bytes:
    message = json.loads(text)
    if not codec.binary:
        return text.encode()
    if isinstance(message, dict) and "data" in message:
        message["data"] = b""
    packed: bytes = msgpack.packb(message)
    return packed


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
    payload = encoded(codec, text.replace("MANY", MANY).replace("LONG", LONG))
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
def test_a_large_frame_is_taken(codec: Codec) -> None:
    picture = b"x" * SIZE
    data = picture if codec.binary else picture.decode()
    message: dict[str, Any] = {"type": "video-frame", "data": data, "unknown": [[]] * 1000}
    payload = msgpack.packb(message) if codec.binary else json.dumps(message).encode()
    frame = codec.decode(payload)
    assert isinstance(frame, VideoFrame)
    assert memoryview(frame.data).nbytes > SIZE


@CODECS
@pytest.mark.parametrize("size", [LARGEST_BUT_FRAMES, LARGEST_BUT_FRAMES + 1])
def test_metadata_of_a_frame_may_be_so_long(codec: Codec, size: int) -> None:
    around = len(msgpack.packb({"a": "x" * 60_000}) if codec.binary else '{"a":""}')
    text = "x" * (size - (around - 60_000 if codec.binary else around))
    message: dict[str, Any] = {"type": "video-frame", "metadata": {"a": text}}
    if codec.binary:
        payload = msgpack.packb({**message, "data": b""})
    else:
        payload = json.dumps({**message, "data": ""}, separators=(",", ":")).encode()
    if size == LARGEST_BUT_FRAMES:
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
    for other in (JSON, MSGPACK):
        assert b"metadata" not in bytes(Frame("s", 1, 1, 1.0, frame, codec).encoded(other) or b"")


def test_metadata_travels_as_it_came_within_an_encoding() -> None:
    odd = '{"b" : 1.50, "a":\\t"\\\\u00e9",  "b": -0}'.replace("\\t", "\t")
    frame = JSON.decode(f'{{"type":"video-frame","data":"","metadata":{odd}}}'.encode())
    assert isinstance(frame, VideoFrame)
    accepted = Frame("s", 1, 1, 1.0, frame, JSON)
    assert odd.encode() in bytes(accepted.encoded(JSON) or b"")
    assert b"\xa1b" in bytes(accepted.encoded(MSGPACK) or b"")


@pytest.mark.parametrize(
    "odd",
    ['{"a": 1e999}', '{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": %s}' % ("[" * 40 + "]" * 40)],
)
def test_metadata_that_one_encoding_cannot_hold_is_refused(odd: str) -> None:
    with pytest.raises(InvalidMessage, match="metadata"):
        JSON.decode(f'{{"type":"video-frame","data":"","metadata":{odd}}}'.encode())


async def test_a_large_message_that_is_no_frame_is_answered(relay: Relay) -> None:
    client = await relay.login()
    reply = await client.ask({"type": "register", "id": "r", "metadata": {"a": [[]] * 100_000}})
    assert (reply["code"], reply["id"]) == ("INVALID_MESSAGE", "r")
    assert (await client.ask({"type": "streams"}))["code"] == "STREAMS"
