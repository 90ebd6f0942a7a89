"""Numbers and absent fields as other languages write them."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgpack
import msgspec
import pytest
import trio

from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC, Codec, InvalidMessage
from relay.protocol.messages import VideoFrame
from tests.unit.memory import ANN, MemoryRelay

STREAM = "front-door"
LARGE = 2**53 - 1
MESSAGES: list[dict[str, Any]] = [
    {"type": "register", "streamId": "s", "alertsAfter": 7, "id": 5},
    {"type": "register", "alertsAfter": 0},
    {"type": "register", "alertsAfter": LARGE},
    {"type": "subscribe", "streamId": "s", "consumes": ["alert"], "window": 4, "maxFps": 15},
    {"type": "subscribe", "streamId": "s", "consumes": [], "alertsAfter": 2**33, "window": 1024},
    {"type": "ack", "streamId": "s", "seq": 1},
    {"type": "ack", "streamId": "s", "seq": 2**40, "epoch": 1700000000123},
    {"type": "alerts-since", "streamId": "s", "after": 42, "limit": 100},
    {"type": "alerts-since", "last": 1000},
    {"type": "alert", "streamId": "s", "severity": "low", "message": "m", "timestamp": 2**41},
    {"type": "video-frame", "data": "AAAA", "timestamp": 1700000000789},
    {"type": "streams", "id": -3},
    {"type": "unsubscribe", "streamId": "s", "id": 0},
]
OPTIONAL = [
    {"type": "auth", "token": "t", "id": None},
    {
        "type": "register",
        "streamId": None,
        "clientType": None,
        "produces": None,
        "consumes": None,
        "metadata": None,
        "alertsAfter": None,
    },
    {
        "type": "subscribe",
        "streamId": "s",
        "consumes": [],
        "clientType": None,
        "produces": None,
        "policy": None,
        "maxFps": None,
        "window": None,
        "alertsAfter": None,
    },
    {"type": "ack", "streamId": "s", "seq": 1, "epoch": None},
    {"type": "alerts-since", "streamId": None, "after": None, "last": None, "limit": None},
    {
        "type": "video-frame",
        "data": "AAAA",
        "streamId": None,
        "timestamp": None,
        "keyframe": None,
        "discardable": None,
        "metadata": None,
    },
    {
        "type": "alert",
        "streamId": "s",
        "severity": "low",
        "message": "m",
        "metadata": None,
        "timestamp": None,
        "alertKey": None,
    },
]
OTHER_SPELLINGS = ["{}.0", "{}e0", "{}E+0", "{}.0e-0", "{}.000"]


def facts(message: Any) -> dict[str, Any]:
    """What a message says, with the type of each value."""
    values = msgspec.structs.asdict(message).items()
    plain = {k: bytes(v) if isinstance(v, msgspec.Raw) else v for k, v in values}
    return {name: (type(value), value) for name, value in plain.items() if name != "max_fps"}


def respelled(message: dict[str, Any], spelling: str) -> bytes:
    parts = (
        f"{json.dumps(name)}: "
        + (spelling.format(value) if isinstance(value, int) else json.dumps(value))
        for name, value in message.items()
    )
    return f"{{{', '.join(parts)}}}".encode()


def packed(message: dict[str, Any], number: Any) -> bytes:
    if "data" in message:
        message = {**message, "data": b"AAAA"}
    values = {k: number(v) if isinstance(v, int) else v for k, v in message.items()}
    return bytes(msgpack.packb(values))


@pytest.mark.parametrize("spelling", OTHER_SPELLINGS)
@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_whole_numbers_are_integers_however_they_are_spelled(
    message: dict[str, Any], spelling: str
) -> None:
    plain = JSON_CODEC.decode(json.dumps(message).encode())
    assert facts(JSON_CODEC.decode(respelled(message, spelling))) == facts(plain)


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_floats_in_messagepack_that_are_whole_are_integers(message: dict[str, Any]) -> None:
    plain = MSGPACK_CODEC.decode(packed(message, int))
    assert facts(MSGPACK_CODEC.decode(packed(message, float))) == facts(plain)


def test_floats_of_32_bits_in_messagepack_are_numbers_too() -> None:
    head = msgpack.packb({"type": "ack", "streamId": "s", "seq": 0})[:-1]
    ack = MSGPACK_CODEC.decode(head + b"\xca" + struct.pack("!f", 17))
    assert ack == MSGPACK_CODEC.decode(head + b"\x11")


@pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC], ids=["json", "msgpack"])
@pytest.mark.parametrize("message", OPTIONAL, ids=lambda message: message["type"])
def test_nil_is_absent(message: dict[str, Any], codec: Codec) -> None:
    def decoded(fields: dict[str, Any]) -> Any:
        if codec is JSON_CODEC:
            return facts(codec.decode(json.dumps(fields).encode()))
        return facts(codec.decode(packed(fields, int)))

    without = {name: value for name, value in message.items() if value is not None}
    assert decoded(message) == decoded(without)
    for name in message.keys() - without.keys():
        assert decoded({**without, name: None}) == decoded(without)


@pytest.mark.parametrize("number", ["1.5", "-1.0", "1e300", "-1e300", "9007199254740994.0", '"1"'])
@pytest.mark.parametrize("field", ["seq", "epoch"])
def test_what_is_not_a_whole_number_in_range_is_refused_with_its_field(
    field: str, number: str
) -> None:
    text = f'{{"type": "ack", "streamId": "s", "seq": 1, "{field}": {number}, "id": 7.0}}'
    with pytest.raises(InvalidMessage) as caught:
        JSON_CODEC.decode(text.encode())
    assert f"`$.{field}`" in caught.value.message
    assert (caught.value.request_id, caught.value.stream_id) == (7, "s")
    assert caught.value.is_ack


def test_a_number_that_is_not_whole_stays_what_it_is() -> None:
    frame = JSON_CODEC.decode(b'{"type": "video-frame", "data": "", "timestamp": 1.5}')
    assert isinstance(frame, VideoFrame)
    assert frame.timestamp == 1.5


@pytest.mark.mock_clock
async def test_acks_in_floats_open_the_window(relay: MemoryRelay) -> None:
    phone = await relay.login(ANN)
    epoch = float((await phone.ask({"type": "register", "streamId": STREAM}))["epoch"])
    viewer = await relay.viewer(STREAM, window=1)
    for seq in range(1, 30):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        frame = await viewer.receive_type("video-frame")
        assert frame["seq"] == seq
        await viewer.send({"type": "ack", "streamId": STREAM, "seq": float(seq), "epoch": epoch})


@pytest.mark.mock_clock
@pytest.mark.parametrize("seq", ["1.5", "-1", '"1"', "null", "[]", "1e300"])
async def test_wrong_acks_are_answered_now_and_then_and_end_nothing(
    relay: MemoryRelay, seq: str
) -> None:
    viewer = await relay.viewer(window=1)
    for second in range(3):
        for _ in range(50):
            await viewer.send(f'{{"type": "ack", "streamId": "s", "seq": {seq}, "id": {second}}}')
        error = await viewer.receive_type("error")
        assert (error["code"], error["id"]) == ("INVALID_MESSAGE", second)
        await trio.sleep(1)
    assert (await viewer.ask({"type": "streams", "id": 9}))["code"] == "STREAMS"
