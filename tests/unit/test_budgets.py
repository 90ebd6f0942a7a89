"""Nothing grows without bound, and each bound is answered."""

from __future__ import annotations

import json
import struct

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from relay.closing import Ending
from tests.unit.hostile import masked_frame
from tests.unit.memory import BOB, SENTRY, Client, Relay

pytestmark = pytest.mark.mock_clock

LARGE = 1 << 20


async def begin_message(client: Client, size: int, *, sent: int = 1) -> None:
    """Announce a message of so many bytes and send the first of them."""
    await client.send_bytes(b"\x81\xff" + struct.pack("!Q", size) + bytes(4) + b"{")
    await client.send_bytes(b" " * (sent - 1))
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_announced_and_not_sent_takes_nothing_from_others(relay: Relay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    for _ in range(16):
        await begin_message(await relay.login(BOB), LARGE)
    assert relay.budget.lent < 1000
    await phone.send({"type": "video-frame", "data": "A" * (LARGE - 100)})
    assert len((await viewer.receive_type("video-frame"))["data"]) == LARGE - 100


async def test_who_holds_most_half_received_bytes_goes_when_there_are_too_many(
    relay: Relay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    greedy = [await relay.login(BOB) for _ in range(3)]
    for client, sent in zip(greedy, (900_000, 950_000, 210_000), strict=True):
        await begin_message(client, LARGE, sent=sent)
    half = masked_frame(1, json.dumps({"type": "video-frame", "data": "A" * 65_536}).encode())
    await phone.send_bytes(half[:40_000])  # with which it is too much
    await wait_all_tasks_blocked()
    await phone.send_bytes(half[40_000:])
    assert len((await viewer.receive_type("video-frame"))["data"]) == 65_536
    error, close = await greedy[1].hear_end()
    assert (error["code"], close) == ("MESSAGE_TOO_BIG", (4013, "try again later"))
    assert error["retryAfter"] > 0
    endings = [connection.ending for connection in relay.connections]
    assert endings == [None, None, None, Ending.OVERLOADED, None]
    await greedy[0].send_bytes(b" " * (LARGE - 900_000))
    assert (await greedy[0].receive())["code"] == "INVALID_MESSAGE"


async def test_who_loses_what_it_holds_may_still_be_sending(relay: Relay) -> None:
    greedy, other = await relay.login(BOB), await relay.login()
    relay.budget.limit = 100_000
    await begin_message(greedy, LARGE, sent=99_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin_message, other, 80_000)
        nursery.start_soon(begin_message, other, 1000)
        nursery.start_soon(greedy.send_bytes, b" " * 50_000)
    _, close = await greedy.hear_end()
    assert close[0] == 4013
    assert relay.metrics.endings[Ending.INTERNAL_ERROR] == 0


async def test_what_was_lent_comes_back_when_a_message_is_whole_or_its_sender_gone(
    relay: Relay,
) -> None:
    clients = [await relay.login() for _ in range(2)]
    for client in clients:
        await begin_message(client, 100_000, sent=50_000)
    assert 100_000 < relay.budget.lent < 101_000
    await clients[0].send_bytes(b" " * 50_000)
    clients[1].link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.budget.lent == 0
    assert (await clients[0].receive())["code"] == "INVALID_MESSAGE"


async def test_fragments_count_too_and_come_back(relay: Relay) -> None:
    client = await relay.login()
    for opcode in (0x01, 0x00, 0x00):
        head = bytes((opcode, 0xFF)) + struct.pack("!Q", 70_000) + bytes(4)
        await client.send_bytes(head + b" " * 70_000)
    await trio.testing.wait_all_tasks_blocked()
    assert relay.budget.lent == 210_000
    await client.send_bytes(bytes((0x80, 0x80)) + bytes(4))
    assert (await client.receive())["code"] == "INVALID_MESSAGE"
    assert relay.budget.lent == 0


async def test_only_frames_may_be_large(relay: Relay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    sentry = await relay.login(SENTRY)
    big = "x" * 70_000
    for client, message in (
        (phone, {"type": "register", "streamId": "s", "metadata": {"a": big}}),
        (
            sentry,
            {
                "type": "alert",
                "streamId": "front-door",
                "severity": "low",
                "message": "m",
                "metadata": {"a": big},
            },
        ),
    ):
        reply = await client.ask(message)
        assert reply["code"] == "INVALID_MESSAGE"
        assert "65536" in reply["message"]
    await phone.send({"type": "video-frame", "data": big})
    assert (await viewer.receive_type("video-frame"))["data"] == big


async def test_queued_alerts_are_bounded_in_bytes(relay: Relay) -> None:
    await relay.phone()
    deaf, sentry = await relay.viewer(capacity=1024), await relay.login(SENTRY)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    for _ in range(80):
        reply = await sentry.ask({**alert, "metadata": {"a": "x" * 60_000}})
        assert reply["code"] == "ALERT_ACCEPTED"
    assert relay.connections[1].ending is Ending.TOO_SLOW
    _, close = await deaf.hear_end()
    assert close == (4002, "too slow")


async def test_little_is_read_ahead_of_who_is_not_authenticated(relay: Relay) -> None:
    relay.tokens.delay = 5
    client = await relay.open()
    await client.send({"type": "auth", "token": "?"})
    sent = 0
    with trio.move_on_after(1):
        while True:
            await client.send("x" * 8_000)
            sent += 8_000
    # What the link itself holds, and what one read may bring.
    assert sent <= client.link.outgoing.capacity + 2 * 16_384
    _, close = await client.hear_end()
    assert close[0] == 1008


async def test_stalled_viewers_hold_one_frame_each_at_most(relay: Relay) -> None:
    phone = await relay.phone()
    viewers = [await relay.viewer(capacity=600) for _ in range(100)]
    for _ in range(5):
        await phone.send({"type": "video-frame", "data": "A" * 5000})
        await trio.testing.wait_all_tasks_blocked()
    _, waiting = relay.hub.ledger()
    assert waiting == len(viewers)
