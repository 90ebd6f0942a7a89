"""Nothing grows without bound, and each bound is answered."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from relay.protocol.endings import Ending
from tests.unit.hostile import masked_frame
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

LARGE = 1 << 20


async def begin_message(client: Client, size: int, *, sent: int = 1) -> None:
    """Announce a message of so many bytes and send the first of them."""
    length = b"\xff" + struct.pack("!Q", size)
    if size < 1 << 16:
        length = b"\xfe" + struct.pack("!H", size)
    await client.send_bytes(b"\x81" + length + bytes(4) + b"{")
    await client.send_bytes(b" " * (sent - 1))
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_announced_and_not_sent_takes_nothing_from_others(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    for _ in range(16):
        await begin_message(await relay.login(BOB), LARGE)
    assert relay.budget.reserved < 16 * 5000
    await phone.send({"type": "video-frame", "data": "A" * (LARGE - 100)})
    assert len((await viewer.receive_type("video-frame"))["data"]) == LARGE - 100


async def test_the_user_with_the_most_half_received_bytes_pays_with_the_oldest(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    greedy = [await relay.login(BOB) for _ in range(40)]
    for client in greedy:
        await begin_message(client, LARGE, sent=26_000)
    honest = masked_frame(1, json.dumps({"type": "video-frame", "data": "A" * 900_000}).encode())
    await phone.send_bytes(honest[:400_000])  # more than any other holds, and with it too much
    await wait_all_tasks_blocked()
    await phone.send_bytes(honest[400_000:])
    assert len((await viewer.receive_type("video-frame"))["data"]) == 900_000
    error, close = await greedy[0].hear_end()
    assert (error["code"], close) == ("MESSAGE_TOO_BIG", (4013, "try again later"))
    assert error["retryAfter"] > 0
    endings = [connection.peer.ending for connection in relay.connections]
    ended = endings.count(Ending.OVERLOADED)
    assert 0 < ended < 40
    assert endings == [None, None, *[Ending.OVERLOADED] * ended, *[None] * (40 - ended)]
    await greedy[-1].send_bytes(b" " * (LARGE - 26_000))
    assert (await greedy[-1].receive())["code"] == "INVALID_MESSAGE"


async def test_strangers_pay_by_address_and_not_for_who_authenticates_there(
    relay: MemoryRelay,
) -> None:
    relay.budget.limit = 300_000
    honest = await relay.login()
    await begin_message(honest, 100_000, sent=30_000)
    strangers = [await relay.open() for _ in range(30)]
    for client in strangers:
        await begin_message(client, 16_000, sent=8_000)
    endings = [connection.peer.ending for connection in relay.connections]
    assert endings[:3] == [None, Ending.OVERLOADED, Ending.OVERLOADED]
    assert endings[-1] is None
    await honest.send_bytes(b" " * 70_000)
    assert (await honest.receive())["code"] == "INVALID_MESSAGE"


@pytest.mark.parametrize("size", [65_535, LARGE - 1, LARGE])
async def test_the_room_for_a_message_grows_with_the_bytes_that_arrive(
    relay: MemoryRelay, size: int
) -> None:
    clients = [await relay.login(BOB) for _ in range(50)]
    tracemalloc.start()
    try:
        for client in clients:
            await begin_message(client, size, sent=15)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50 * 10_000
    assert held > relay.budget.reserved > 50 * 15


async def test_what_waits_for_the_database_counts_as_half_received(relay: MemoryRelay) -> None:
    relay.verifier.delay = 5.0
    phone = await relay.open()
    auth = json.dumps({"type": "auth", "token": ANN}).encode()
    ack = json.dumps({"type": "ack", "streamId": "front-door", "seq": 1}).encode()
    await phone.send_bytes(masked_frame(1, auth) + masked_frame(1, ack) * 200)
    await wait_all_tasks_blocked()
    assert relay.budget.reserved > 150 * len(ack)
    await trio.sleep(10)
    assert relay.budget.reserved == 0
    assert (await phone.receive())["code"] == "AUTHENTICATED"


async def test_a_message_that_makes_no_progress_ends_its_connection(relay: MemoryRelay) -> None:
    client = await relay.login()
    await client.send_bytes(b"\x01\xfe\x08\x00" + bytes(4) + b" " * 2048)  # and no last fragment
    start = trio.current_time()
    with trio.move_on_after(600):
        while relay.connections[0].peer.ending is None:
            await client.send_bytes(b"\x8a\x80" + bytes(4))  # a pong
            await trio.sleep(5)
    assert relay.connections[0].peer.ending is Ending.IDLE_TIMEOUT
    assert 100 < trio.current_time() - start < 160
    await trio.sleep(10)
    assert relay.budget.reserved == 0


async def test_a_message_that_drips_ends_its_connection(relay: MemoryRelay) -> None:
    client = await relay.login()
    await begin_message(client, LARGE)
    with trio.move_on_after(600):
        while relay.connections[0].peer.ending is None:
            await client.send_bytes(b" ")
            await trio.sleep(5)
    assert relay.connections[0].peer.ending is Ending.IDLE_TIMEOUT


async def test_a_message_that_is_slow_and_makes_progress_lives(relay: MemoryRelay) -> None:
    client = await relay.login()
    await begin_message(client, 200_000)
    for _ in range(199):
        await client.send_bytes(b" " * 1000)
        await trio.sleep(10)
    await client.send_bytes(b" " * 999)
    assert (await client.receive())["code"] == "INVALID_MESSAGE"
    assert relay.connections[0].peer.ending is None


async def test_who_loses_what_it_holds_may_still_be_sending(relay: MemoryRelay) -> None:
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
    relay: MemoryRelay,
) -> None:
    clients = [await relay.login() for _ in range(2)]
    for client in clients:
        await begin_message(client, 100_000, sent=50_000)
    assert 100_000 < relay.budget.reserved <= 201_000
    await clients[0].send_bytes(b" " * 50_000)
    clients[1].link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.budget.reserved == 0
    assert (await clients[0].receive())["code"] == "INVALID_MESSAGE"


async def test_fragments_count_too_and_come_back(relay: MemoryRelay) -> None:
    client = await relay.login()
    for opcode in (0x01, 0x00, 0x00):
        head = bytes((opcode, 0xFF)) + struct.pack("!Q", 70_000) + bytes(4)
        await client.send_bytes(head + b" " * 70_000)
    await trio.testing.wait_all_tasks_blocked()
    assert relay.budget.reserved == 210_000
    await client.send_bytes(bytes((0x80, 0x80)) + bytes(4))
    assert (await client.receive())["code"] == "INVALID_MESSAGE"
    assert relay.budget.reserved == 0


async def test_who_holds_nothing_yet_is_not_asked_to_pay(relay: MemoryRelay) -> None:
    idle = await relay.login(BOB)
    await idle.send_bytes(b"\x01\x80" + bytes(4))  # a first fragment without content
    await wait_all_tasks_blocked()
    assert not relay.budget._parties  # else nothing is left to evict, and the search has no end
    greedy = [await relay.login(BOB) for _ in range(3)]
    for client in greedy:
        await begin_message(client, LARGE, sent=1_000_000)
    endings = [connection.peer.ending for connection in relay.connections]
    assert endings == [None, Ending.OVERLOADED, None, None]
    for client in (idle, *greedy):
        client.link.close()
    await wait_all_tasks_blocked()
    assert not relay.budget._parties


async def test_only_frames_may_be_large(relay: MemoryRelay) -> None:
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


async def test_queued_alerts_are_bounded_in_bytes(relay: MemoryRelay) -> None:
    await relay.phone()
    deaf, sentry = await relay.viewer(capacity=1024), await relay.login(SENTRY)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    for _ in range(80):
        reply = await sentry.ask({**alert, "metadata": {"a": "x" * 60_000}})
        assert reply["code"] == "ALERT_ACCEPTED"
    assert relay.connections[1].peer.ending is Ending.TOO_SLOW
    _, close = await deaf.hear_end()
    assert close == (4002, "too slow")


async def test_little_is_read_ahead_of_who_is_not_authenticated(relay: MemoryRelay) -> None:
    relay.verifier.delay = 5
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


async def test_stalled_viewers_hold_one_frame_each_at_most(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewers = [await relay.viewer(capacity=600) for _ in range(100)]
    for _ in range(5):
        await phone.send({"type": "video-frame", "data": "A" * 5000})
        await trio.testing.wait_all_tasks_blocked()
    ledger = relay.hub.ledger()
    assert ledger.waiting == len(viewers)
