"""Peers that are broken or mean, and bystanders on the same relay whom they must not disturb.

The bystanders, a phone and a viewer, play through every test here, and each test fails when they
lose a frame or the relay logs a bug. (pytest-trio knows no `autouse`: every test asks for them.)
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from attrs import define
from websockets.exceptions import ConnectionClosed

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.raw import (
    CLOSE,
    CONTINUATION,
    PING,
    REQUEST,
    TEXT,
    RawClient,
    close,
    frame,
    message,
    open_raw,
)
from tests.integration.relay_process import RelayProcess, until

MIB = 1 << 20


@define(eq=False)
class Bystanders:
    """The next frame is sent when the one before has arrived."""

    phone: Peer
    viewer: Peer
    arrived: int = 0

    async def exchange(self) -> None:
        await self.phone.send_frame(b"a frame")
        self.arrived += 1
        assert (await self.viewer.receive_type("video-frame"))["seq"] == self.arrived

    async def play(self, enough: trio.Event) -> None:
        while not enough.is_set():
            await self.exchange()
            with trio.move_on_after(0.01):
                await enough.wait()


@pytest.fixture
async def bystanders(relay: RelayProcess, accounts: Accounts) -> AsyncIterator[Bystanders]:
    stream_id = new_stream_id()
    token = accounts.session(f"owner-of-{stream_id}")  # a user may have so many streams online
    async with login(relay, token) as phone, login(relay, token) as viewer:
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        both, enough = Bystanders(phone, viewer), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.play, enough)
            yield both
            enough.set()
        await both.exchange()
    assert (await relay.get("/health")).status == 200


async def until_only_bystanders_are_left(relay: RelayProcess) -> None:
    async def only_they() -> bool:
        return bool((await relay.stats())["connections"] == 2)

    await until(only_they)


# -- before there is a WebSocket


async def test_garbage_and_silence_instead_of_a_handshake(
    relay: RelayProcess, bystanders: Bystanders
) -> None:
    async with AsyncExitStack() as stack:
        for begin in (
            b"",
            os.urandom(5000),
            bytes(5000),
            b"GET /streams/register HTTP/1.1\r\nUpgrade: websocket\r\n",
            REQUEST[:-2],
            REQUEST.replace(b"GET", b"G\xc3\x89T"),
            REQUEST.replace(b"Host: relay", b"Host: " + b"\xff" * 100),
            REQUEST + os.urandom(5000),
            REQUEST + REQUEST,
            REQUEST.replace(b"/streams/register", b"//["),
            REQUEST.replace(b"Host: relay", b"Host: xn--" + b"a" * 70),
            REQUEST.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"),
            REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 10\r\n\r\n") + b"0123456789",
            REQUEST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + b"5\r\nhel",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        ):
            for reset in (False, True):
                client = await stack.enter_async_context(open_raw(relay))
                await client.send(begin)
                if reset:
                    client.reset()
    await until_only_bystanders_are_left(relay)


@pytest.mark.slow
async def test_many_connections_that_open_and_vanish(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    auth = message(type="auth", token=accounts.session())
    async with AsyncExitStack() as stack:
        for number in range(200):
            client = await stack.enter_async_context(open_raw(relay, upgrade=number % 4 > 0))
            if number % 4 > 1:
                await client.send(auth)
            if number % 4 > 2:
                await client.receive()
            client.reset()
    await until_only_bystanders_are_left(relay)


# -- breaches of the WebSocket protocol

BREACHES = {
    "unmasked": (1002, frame(TEXT, b"{}", masked=False)),
    "reserved bits": (1002, frame(TEXT, b"{}", reserved=4)),
    "unknown data": (1002, frame(3, b"{}")),
    "unknown control": (1002, frame(11)),
    "nothing to continue": (1002, frame(CONTINUATION, b"{}")),
    "interrupted fragments": (1002, frame(TEXT, b"{", final=False) + frame(TEXT, b"}")),
    "fragmented ping": (1002, frame(PING, final=False)),
    "long ping": (1002, frame(PING, bytes(126))),
    "long close": (1002, close(1000, bytes(124))),
    "short close": (1002, frame(CLOSE, b"\x03")),
    "close with no code of ours": (1002, close(999)),
    "close with a code that is never sent": (1002, close(1006)),
    "close with an unknown code": (1002, close(1100)),
    "close with a code beyond all": (1002, close(5000)),
    "close that is not UTF-8": (1007, close(1000, b"\xff")),
    "wasteful length": (1002, b"\x81\xfe\x00\x01" + bytes(5)),
    "negative length": (1002, b"\x81\xff" + b"\xff" * 8 + bytes(4)),
    "not UTF-8": (1007, frame(TEXT, b'"\xff"')),
    "too big before auth": (1009, frame(TEXT, bytes(16 * 1024 + 1))),
    "endless": (1009, b"\x81\xff\x7f" + b"\xff" * 7 + bytes(4)),
}


@pytest.mark.parametrize("breach", BREACHES)
async def test_a_breach_of_the_protocol_is_named_and_closed(
    relay: RelayProcess, bystanders: Bystanders, breach: str
) -> None:
    code, sent = BREACHES[breach]
    async with open_raw(relay, upgrade=True) as client:
        await client.send(sent)
        (error,), closed_with = await client.hear_end()
        assert error["type"] == "error"
        assert closed_with == code


async def test_pings_behind_a_close(relay: RelayProcess, bystanders: Bystanders) -> None:
    """This once was the end of servers on trio-websocket: its issue 184."""
    wrong, ping = message(type="auth", token="wrong"), frame(PING, b"still there?")
    async with open_raw(relay, upgrade=True) as client:
        await client.send(wrong, ping)
        _, code = await client.hear_end()
        assert code == 1008
        await client.send(ping * 10)
        assert b"still there?" not in await client.read_to_end()
    async with open_raw(relay, upgrade=True) as client:
        await client.send(ping, close(1000), ping * 10)
        _, code = await client.hear_end()
        assert code == 1000
    async with open_raw(relay) as client:
        await client.send(REQUEST, wrong, ping * 100, close(1000), ping * 100)
        await client.read_to_end()


async def test_a_flood_of_pings(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    flood = frame(PING, bytes(125)) * 1000
    async with open_raw(relay, upgrade=True) as client:
        for _ in range(20):
            await client.send(flood)
        await client.send(message(type="auth", token=accounts.session()))
        heard = await client.receive()
        assert heard["code"] == "AUTHENTICATED"
        for _ in range(20):
            await client.send(flood)


async def test_a_flood_of_empty_fragments(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    auth = json.dumps({"type": "auth", "token": accounts.session()}).encode()
    flood = frame(CONTINUATION, final=False) * 10_000
    async with open_raw(relay, upgrade=True) as client:
        await client.send(frame(TEXT, auth[:9], final=False), *([flood] * 10))
        await client.send(frame(CONTINUATION, auth[9:]))
        assert (await client.receive())["code"] == "AUTHENTICATED"


async def test_a_connection_that_is_reset_in_the_middle_of_a_frame(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    token = accounts.session()
    whole = message(type="video-frame", data="A" * 100_000)
    for size in (1, 2, 5, 13, 70_000):
        async with open_raw(relay, upgrade=True) as client:
            await client.authenticate(token)
            await client.send(whole[:size])
            client.reset()
    await until_only_bystanders_are_left(relay)


# -- messages


def nested(depth: int) -> str:
    return '{"a":' * depth + "0" + "}" * depth


BAD_MESSAGES: dict[str, str | bytes] = {
    "broken JSON": '{"type": "register"',
    "nothing": "",
    "no object": "[]",
    "null": "null",
    "no type": "{}",
    "a type that is no text": '{"type": 5}',
    "a field of the wrong type": '{"type": "register", "streamId": 7}',
    "a missing field": '{"type": "subscribe", "streamId": "s"}',
    "an id with spaces": '{"type": "register", "streamId": "a b"}',
    "an endless id": json.dumps({"type": "register", "streamId": "x" * 129}),
    "NaN": '{"type": "video-frame", "data": "", "timestamp": NaN}',
    "a huge number": '{"type": "video-frame", "data": "", "timestamp": 1e999}',
    "a long number": '{"type": "video-frame", "data": "", "timestamp": ' + "9" * 5000 + "}",
    "half a surrogate": '{"type": "auth", "token": "\\ud800"}',
    "deep metadata": f'{{"type": "register", "metadata": {nested(100)}}}',
    "deep brackets": "[" * 60_000,
    "deep objects": nested(10_000),
    "binary": b"\x00\x01\x02",
    "base64 that is none": '{"type": "video-frame", "data": 3}',
}


@pytest.fixture
async def nuisance(
    relay: RelayProcess, accounts: Accounts, bystanders: Bystanders
) -> AsyncIterator[Peer]:
    async with login(relay, accounts.session("bob")) as peer:
        yield peer


@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_a_bad_message_is_answered_and_the_connection_goes_on(
    nuisance: Peer, name: str
) -> None:
    await nuisance.send(BAD_MESSAGES[name])
    error = await nuisance.receive()
    assert (error["type"], error["code"]) == ("error", "INVALID_MESSAGE")
    assert len(error["message"]) > 15
    reply = await nuisance.ask({"type": "register", "streamId": new_stream_id(), "new": [1]})
    assert reply["code"] == "REGISTERED"


async def test_an_unknown_type_is_named(nuisance: Peer) -> None:
    error = await nuisance.ask({"type": "video-farm"})
    assert error["code"] == "UNKNOWN_MESSAGE_TYPE"
    assert "video-farm" in error["message"]


async def test_the_tenth_bad_message_closes(nuisance: Peer) -> None:
    with suppress(ConnectionClosed):
        for _ in range(20):
            await nuisance.send("{")
    heard, ending = await nuisance.hear_end()
    assert [message["code"] for message in heard] == ["INVALID_MESSAGE"] * 11
    assert ending == (1008, "policy")


async def test_a_message_of_17_mib_is_told_that_it_is_too_big(nuisance: Peer) -> None:
    with suppress(ConnectionClosed):
        await nuisance.send("x" * (17 * MIB))
    (error,), ending = await nuisance.hear_end()
    assert error["code"] == "MESSAGE_TOO_BIG"
    assert ending == (1009, "message too big")


# -- peers that do not read


async def test_viewers_that_never_read_cost_no_memory(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    subscribe = message(type="subscribe", streamId=stream_id, consumes=["video-frame"])

    async def sip(client: RawClient) -> None:
        while True:
            await client.stream.receive_some(1)
            await trio.sleep(0.05)

    async with login(relay, token) as phone, AsyncExitStack() as stack:
        await phone.register(stream_id)
        viewers = [
            await stack.enter_async_context(open_raw(relay, upgrade=True, receive_buffer=4096))
            for _ in range(10)
        ]
        for viewer in viewers:
            await viewer.authenticate(token)
            await viewer.send(subscribe)
            assert (await viewer.receive())["code"] == "SUBSCRIBED"
        before = relay.memory
        async with trio.open_nursery() as nursery:
            for viewer in viewers[:3]:
                nursery.start_soon(sip, viewer)
            for _ in range(300):  # 80 MB in base64, shared among the viewers
                await phone.send_frame(bytes(200 * 1024))
            reply = await phone.ask({"type": "unsubscribe", "streamId": stream_id})
            assert reply["code"] == "INVALID_MESSAGE"  # the frames before it have been offered
            nursery.cancel_scope.cancel()
        assert relay.memory - before < 30 * MIB
    await until_only_bystanders_are_left(relay)


async def test_large_messages_that_are_announced_and_never_come_cost_nothing(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    announced = b"\x82\xff" + (16 * MIB - 14).to_bytes(8, "big") + b"mask"
    async with AsyncExitStack() as stack:
        phone = await stack.enter_async_context(login(relay, token))
        viewer = await stack.enter_async_context(login(relay, token))
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        before = relay.memory
        for _ in range(40):  # more than twice what all together may have half sent
            client = await stack.enter_async_context(open_raw(relay, upgrade=True))
            await client.authenticate(token)
            await client.send(announced)
        for size in (400_000, 5 * MIB):
            await phone.send_frame(bytes(size))
            frame = await viewer.receive_type("video-frame")
            assert len(frame["data"]) > size
        assert relay.memory - before < 64 * MIB


async def test_a_client_that_asks_and_never_reads_the_answers(
    relay: RelayProcess, bystanders: Bystanders, accounts: Accounts
) -> None:
    async with open_raw(relay, upgrade=True, receive_buffer=4096) as client:
        await client.authenticate(accounts.session())
        before = relay.memory
        ask = message(type="subscribe", streamId="x" * 128, consumes=[]) * 1000
        with trio.move_on_after(2):  # it is read no further
            while True:
                await client.stream.send_all(ask)
        assert relay.memory - before < 30 * MIB
        assert "too_slow" not in (await relay.stats())["endings"]
