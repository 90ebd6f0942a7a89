"""JSON and MessagePack beside each other, each read and written by other hands on the client's
side."""

from __future__ import annotations

import base64
from typing import Any

import msgpack
import msgspec
import pytest

from relay.protocol import codec as codecs
from tests.unit.memory import SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

PICTURE = bytes(range(256)) * 3
BASE64 = base64.b64encode(PICTURE).decode()


async def frame_of(client: Client) -> dict[str, Any]:
    return await client.receive_type("video-frame")


async def test_every_message_works_in_messagepack(relay: MemoryRelay) -> None:
    phone = await relay.login(msgpack=True)
    reply = await phone.ask({"type": "register", "streamId": "s", "metadata": {"a": [1, None]}})
    assert (reply["code"], reply["streamId"]) == ("REGISTERED", "s")
    assert (await phone.receive())["status"] == "online"
    viewer = await relay.login(msgpack=True)
    reply = await viewer.ask(
        {"type": "subscribe", "streamId": "s", "consumes": ["video-frame", "alert"], "id": "x"}
    )
    assert (reply["code"], reply["id"], reply["metadata"]) == ("SUBSCRIBED", "x", {"a": [1, None]})
    await phone.send({"type": "video-frame", "data": PICTURE, "metadata": {"n": 1.5}})
    frame = await frame_of(viewer)
    assert (frame["data"], frame["seq"], frame["metadata"]) == (PICTURE, 1, {"n": 1.5})
    sentry = await relay.login(SENTRY, msgpack=True)
    reply = await sentry.ask({"type": "alert", "streamId": "s", "severity": "low", "message": "é"})
    assert reply["code"] == "ALERT_ACCEPTED"
    assert (await viewer.receive_type("alert"))["message"] == "é"
    replayed = await viewer.ask({"type": "alerts-since", "streamId": "s"})
    assert replayed["code"] == "ALERTS_REPLAYED"
    assert (await viewer.ask({"type": "unsubscribe", "streamId": "s"}))["code"] == "UNSUBSCRIBED"
    assert (await viewer.ask({"type": "streams"}))["streams"][0]["streamId"] == "s"


@pytest.mark.parametrize("binary_phone", [False, True])
async def test_a_mixed_audience_gets_the_same_picture(
    relay: MemoryRelay, binary_phone: bool
) -> None:
    phone = await relay.phone(msgpack=binary_phone)
    text, binary = await relay.viewer(), await relay.viewer(msgpack=True)
    await phone.send({"type": "video-frame", "data": PICTURE if binary_phone else BASE64})
    of_text, of_binary = await frame_of(text), await frame_of(binary)
    assert of_text["data"] == BASE64
    assert of_binary["data"] == PICTURE
    del of_text["data"], of_binary["data"]
    assert of_text == of_binary


async def test_base64_is_undone_once_however_many_watch(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[object] = []
    unpack = codecs.JsonCodec.unpack

    def counted(self: codecs.JsonCodec, data: msgspec.Raw) -> bytes | None:
        unpacked.append(data)
        return unpack(self, data)

    monkeypatch.setattr(codecs.JsonCodec, "unpack", counted)
    phone, texts = await relay.phone(), [await relay.viewer() for _ in range(3)]
    await phone.send({"type": "video-frame", "data": BASE64})
    for viewer in texts:
        await frame_of(viewer)
    assert unpacked == []
    binaries = [await relay.viewer(msgpack=True) for _ in range(5)]
    await phone.send({"type": "video-frame", "data": BASE64})
    for viewer in binaries:
        while (await frame_of(viewer))["seq"] < 2:
            pass
    assert len(unpacked) == 2  # the latest frame for the first of them, and the new one


NOT_BASE64 = "data:image/svg+xml,<svg/>"


async def test_data_that_is_not_base64_reaches_text_viewers_only_and_is_told_once(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    text, binary = await relay.viewer(), await relay.viewer(msgpack=True)
    await phone.receive_type("status")
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": NOT_BASE64})
        assert (await frame_of(text))["data"] == NOT_BASE64
    await phone.send({"type": "video-frame", "data": BASE64})
    assert (await frame_of(binary))["seq"] == 4
    error = await phone.receive()
    assert error["code"] == "INVALID_MESSAGE"
    assert "base64" in error["message"]
    assert (await phone.ask({"type": "unsubscribe", "streamId": "s"}))["type"] == "error"
    ledger = relay.hub.ledger()
    assert ledger.dropped == {"unencodable": 3}


@pytest.mark.parametrize("viewers", [0, 1])
async def test_a_phone_is_told_that_its_data_is_not_base64_though_no_viewer_misses_it(
    relay: MemoryRelay, viewers: int
) -> None:
    phone = await relay.phone()
    for _ in range(viewers):
        await relay.viewer()
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": NOT_BASE64})
    error = await phone.receive_type("error")
    assert (error["code"], error["streamId"]) == ("INVALID_MESSAGE", "front-door")
    assert "base64" in error["message"]
    assert (await phone.ask({"type": "unsubscribe", "streamId": "s", "id": 1}))["id"] == 1


async def test_a_phone_that_comes_back_is_told_again_that_its_data_is_not_base64(
    relay: MemoryRelay,
) -> None:
    for _ in range(2):
        phone = await relay.phone()
        await phone.send({"type": "video-frame", "data": NOT_BASE64})
        assert "base64" in (await phone.receive_type("error"))["message"]


@pytest.mark.parametrize("spelled", ["/9j/\n2Q==\r\n", "data:image/jpeg;base64,_9j_2Q", "_9j_2Q"])
async def test_base64_as_phones_write_it_reaches_all_viewers_clean(
    relay: MemoryRelay, spelled: str
) -> None:
    phone, text, binary = (
        await relay.phone(),
        await relay.viewer(),
        await relay.viewer(msgpack=True),
    )
    await phone.send({"type": "video-frame", "data": spelled})
    assert (await frame_of(text))["data"] == "/9j/2Q=="
    assert (await frame_of(binary))["data"] == b"\xff\xd8\xff\xd9"
    assert (await phone.ask({"type": "streams", "id": 1}))["code"] == "STREAMS"


async def test_escaped_slashes_in_base64_are_understood(relay: MemoryRelay) -> None:
    phone, binary = await relay.phone(), await relay.viewer(msgpack=True)
    await phone.send('{"type": "video-frame", "data": "\\/\\/\\/\\/"}')
    assert (await frame_of(binary))["data"] == b"\xff\xff\xff"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"type": "video-frame", "data": "text"}, "data"),
        ({"type": "video-frame", "data": 7}, "data"),
        ({"type": "register", "metadata": {"a": b"bytes"}}, "metadata"),
        ({"type": "register", "metadata": {"a": {1: 2}}}, "metadata"),
        ({"type": "register", "metadata": {"a": float("nan")}}, "metadata"),
        ({"type": "register", "metadata": {"a": [float("inf")]}}, "metadata"),
        ({"type": "register", "metadata": {"a": msgpack.ExtType(5, b"x")}}, "metadata"),
        ({"type": "register", "metadata": {"a": msgpack.Timestamp(1)}}, "metadata"),
        ({"type": "register", "streamId": b"s"}, "streamId"),
        ({"type": "auth", "token": b"token"}, "token"),
    ],
)
async def test_what_json_has_no_word_for_is_refused(
    relay: MemoryRelay, message: dict[str, Any], field: str
) -> None:
    client = await relay.login(msgpack=True)
    error = await client.ask({"id": 9, **message})
    assert (error["code"], error["id"]) == ("INVALID_MESSAGE", 9)
    assert field in error["message"]
    assert (await client.ask({"type": "register"}))["code"] == "REGISTERED"


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"\x93\x01", b"{}", b"\x81\x01\x02", b"\x80\x00"]
)
async def test_broken_messagepack_is_answered_and_disturbs_nothing(
    relay: MemoryRelay, content: bytes
) -> None:
    client = await relay.login(msgpack=True)
    await client.send(content)
    assert (await client.receive())["code"] == "INVALID_MESSAGE"
    assert (await client.ask({"type": "register"}))["code"] == "REGISTERED"


async def test_a_text_message_is_refused_on_a_messagepack_connection(relay: MemoryRelay) -> None:
    client = await relay.login(msgpack=True)
    await client.send('{"type": "register"}')
    assert (await client.receive())["code"] == "INVALID_MESSAGE"


async def test_integers_beyond_64_bits_are_refused_since_messagepack_has_none(
    relay: MemoryRelay,
) -> None:
    client = await relay.login()
    error = await client.ask({"type": "register", "metadata": {"n": 2**64}})
    assert error["code"] == "INVALID_MESSAGE"


async def test_the_goodbye_is_in_the_peers_encoding(relay: MemoryRelay) -> None:
    client = await relay.open(msgpack=True)
    await client.send({"type": "auth", "token": "wrong"})
    error, close = await client.hear_end()
    assert (error["code"], close[0]) == ("AUTH_FAILED", 1008)
