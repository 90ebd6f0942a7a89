"""One connection's bytes: before the handshake, during it, as frames, and at the end. The pitfalls
of the handshake, of control frames and of TCP are here, as a peer would bring them about."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from wsproto import events

from relay.protocol.endings import Ending
from relay.transport import wire
from relay.transport.budget import Budget
from relay.transport.framing.frame_parser import MAX_MESSAGES_PER_FEED, Message
from relay.transport.link import SocketLink
from relay.transport.stream import (
    MAX_HEAD_BYTES,
    MAX_PAUSE,
    MAX_READS_IN_A_ROW,
    FrameStream,
    HeadTooBig,
)
from tests.unit.memory import ANN, SIZE, MemoryLink, MemoryRelay, link_pair
from tests.unit.transport.test_frame_parser import masked

pytestmark = pytest.mark.mock_clock

HEAD = b"GET /streams/register HTTP/1.1\r\nHost: relay\r\n\r\n"
UPGRADE = (
    b"GET /streams/register HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)
UNUSUAL_UPGRADE = UPGRADE.replace(b"Host: relay", b"Host: [::1]:3000")
"""A request that trio-websocket reads."""
CLOSE = masked(wire.CLOSE, b"\x03\xe8")


def json_message(**content: Any) -> bytes:
    """A message as a masked frame."""
    return masked(wire.TEXT, json.dumps(content).encode())


@define(eq=False)
class Pair:
    """A stream and the link at its other end."""

    stream: FrameStream
    link: MemoryLink
    peer: MemoryLink
    ends: int = 0
    messages: list[Message] = field(factory=list)
    faults: list[Ending] = field(factory=list)

    async def keep(self, messages: list[Message]) -> None:
        self.messages += messages

    async def parse(
        self, on_messages: Callable[[list[Message]], Awaitable[None]] | None = None
    ) -> None:
        """Bring the stream behind the request head."""
        self.peer.send(HEAD)
        assert await self.stream.read_head() == HEAD
        self.stream.begin_frames(
            max_message=1000,
            budget=Budget(1 << 20),
            party="somebody",
            on_messages=on_messages or self.keep,
            on_overhead=lambda _count: None,
            on_fault=self.faults.append,
        )
        self.stream.outlet.open(lambda: None)

    async def receive(self) -> None:
        """Read on, in whichever way the stream is read now."""
        if self.stream._parser is None:
            await self.stream.receive_some()
        else:
            await self.stream.read_frames()

    async def read_frames(self) -> None:
        """Read frames until all wait."""
        await until_blocked(self.stream.read_frames())


def pair(capacity: int = SIZE) -> Pair:
    link, peer = link_pair(capacity)
    pair = Pair(FrameStream(link, 30.0), link, peer)

    def count() -> None:
        pair.ends += 1

    pair.stream.on_end = count
    return pair


def received(link: MemoryLink) -> bytes:
    """All that has arrived."""
    buffer = bytearray(1 << 20)
    return bytes(buffer[: link.recv_into(memoryview(buffer))])


async def until_blocked(work: Awaitable[object]) -> None:
    """Do something until all wait, then give it up."""
    async with trio.open_nursery() as nursery:

        async def do() -> None:
            await work

        nursery.start_soon(do)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


# -- before the handshake


async def test_a_stream_is_fresh_until_it_has_waited() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = FrameStream(SocketLink(ours), 120.0)
        theirs.sendall(HEAD)
        assert await stream.read_head() == HEAD
        assert stream.is_fresh
        stream.close()
    ours, theirs = socket.socketpair()
    with theirs:
        stream = FrameStream(SocketLink(ours), 120.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.read_head)
            await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(HEAD)
        assert not stream.is_fresh
        stream.close()


async def test_a_first_answer_that_does_not_fit_is_sent_in_pieces() -> None:
    answer = bytes(range(256)) * 16
    server_end, client_end = link_pair(256)
    stream, received = FrameStream(server_end, 120.0), bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_first, answer)
        buffer = memoryview(bytearray(SIZE))
        while len(received) < len(answer):
            await client_end.wait_readable()
            received += buffer[: client_end.recv_into(buffer)]
    assert received == answer
    assert not stream.outlet.cut


async def test_the_head_is_read_however_it_arrives_and_read_again_with_what_follows() -> None:
    both = pair()
    for byte in HEAD[:-1]:
        both.peer.send(bytes((byte,)))
        await until_blocked(both.stream.read_head())
    both.peer.send(HEAD[-1:] + b"body")
    assert await both.stream.read_head() == HEAD
    assert await both.stream.read_head() == HEAD
    assert await both.stream.receive_some(5) == HEAD + b"body"
    both.peer.send(b"more of the body")
    assert await both.stream.receive_some(4) == b"more"
    assert await both.stream.receive_some() == b" of the body"
    both.peer.close()
    assert await both.stream.receive_some() == b""


async def test_a_head_that_never_ends_is_refused() -> None:
    both = pair()
    both.peer.send(b"x" * (2 * MAX_HEAD_BYTES))
    with pytest.raises(HeadTooBig):
        await both.stream.read_head()


@pytest.mark.parametrize(("size", "refused"), [(MAX_HEAD_BYTES, False), (MAX_HEAD_BYTES + 1, True)])
async def test_a_head_that_ends_is_refused_when_it_is_too_big(size: int, refused: bool) -> None:
    both, end = pair(), b"\r\n\r\n"
    both.peer.send(b"x" * (MAX_HEAD_BYTES - 100))
    await until_blocked(both.stream.read_head())
    both.peer.send(b"x" * (size - (MAX_HEAD_BYTES - 100) - len(end)) + end + b"more")
    if refused:
        with pytest.raises(HeadTooBig):
            await both.stream.read_head()
    else:
        assert len(await both.stream.read_head()) == size


async def test_bytes_that_end_before_the_head_does_are_told_apart() -> None:
    both = pair()
    both.peer.send(HEAD[:-1])
    both.peer.close()
    with pytest.raises(trio.EndOfChannel):
        await both.stream.read_head()
    assert both.ends == 1


# -- the end of a stream


async def test_what_was_sent_before_a_close_arrives() -> None:
    both = pair()
    await both.stream.send_all(b"all of it")
    await both.stream.aclose()
    assert received(both.peer) == b"all of it"
    assert received(both.peer) == b""
    assert not both.link.was_reset


async def test_with_half_a_frame_out_a_close_is_a_reset() -> None:
    both = pair(10)
    await until_blocked(both.stream.send_all(b"x" * 50))
    await both.stream.aclose()
    assert both.link.was_reset
    with pytest.raises(ConnectionResetError):
        received(both.peer)


async def test_closing_does_not_wait_for_a_write_that_stalls() -> None:
    both = pair(10)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await both.stream.send_all(b"x" * 50)

        nursery.start_soon(send)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await both.stream.aclose()
    assert trio.current_time() == start


async def test_closing_twice_is_closing_once() -> None:
    both = pair()
    await both.stream.aclose()
    await both.stream.aclose()
    both.stream.abort()
    assert both.ends == 1
    assert not both.link.was_reset


async def test_a_cancelled_close_has_closed() -> None:
    both = pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await both.stream.aclose()
    assert both.link.closed


async def test_an_abort_throws_away_what_did_not_arrive() -> None:
    both = pair()
    await both.stream.send_all(b"some")
    both.stream.abort()
    assert both.link.was_reset
    assert both.ends == 1


async def with_nothing(both: Pair) -> None:
    pass


async def with_a_head(both: Pair) -> None:
    both.peer.send(HEAD)
    await both.stream.read_head()


async def parsing(both: Pair) -> None:
    await both.parse()


async def with_a_control_frame(both: Pair) -> None:
    await both.parse()
    both.peer.send(masked(wire.PING) + masked(wire.PONG))
    await both.read_frames()


async def with_messages(both: Pair) -> None:
    await both.parse()
    both.peer.send(masked(wire.TEXT, b"a") * 3)


@pytest.mark.parametrize(
    "prepare", [with_nothing, with_a_head, parsing, with_a_control_frame, with_messages]
)
async def test_on_a_closed_stream_every_call_says_so(
    prepare: Callable[[Pair], Awaitable[None]],
) -> None:
    both = pair()
    await prepare(both)
    await both.stream.aclose()
    calls: list[Callable[[], Awaitable[object]]] = [
        both.receive,
        lambda: both.stream.send_all(b"bytes"),
        both.stream.wait_send_all_might_not_block,
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()
    assert both.stream.outlet.closing
    assert both.messages == []


@pytest.mark.parametrize("prepare", [with_nothing, parsing])
async def test_a_task_that_waits_for_bytes_learns_of_a_close(
    prepare: Callable[[Pair], Awaitable[None]],
) -> None:
    both = pair()
    await prepare(both)
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await both.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await both.stream.aclose()


@pytest.mark.parametrize("prepare", [with_nothing, parsing])
async def test_a_peer_that_breaks_the_link_is_noticed(
    prepare: Callable[[Pair], Awaitable[None]],
) -> None:
    both = pair()
    await prepare(both)
    both.peer.reset()
    with pytest.raises(trio.BrokenResourceError):
        await both.receive()
    assert both.ends > 0


# -- frames


async def test_messages_are_handed_on_and_control_frames_answered() -> None:
    both = pair()
    await both.parse()
    both.peer.send(
        masked(wire.TEXT, b"a")
        + masked(wire.PING, b"1")
        + masked(wire.BINARY, b"b")
        + masked(wire.PONG, b"2")
        + CLOSE
        + masked(wire.TEXT, b"never")
    )
    await both.stream.read_frames()
    assert [message.payload for message in both.messages] == [b"a", b"b"]
    assert received(both.peer) == wire.frame(wire.PONG, b"1") + wire.frame(wire.CLOSE, b"\x03\xe8")
    assert both.stream.peer_closed
    assert both.link.closed
    assert both.ends == 1
    assert not both.link.was_reset


async def test_a_breach_is_told_after_the_messages_before_it() -> None:
    order: list[object] = []

    async def keep(messages: list[Message]) -> None:
        await trio.sleep(1)
        order.extend(message.payload for message in messages)

    both = pair()
    await both.parse(keep)
    both.stream._on_fault = order.append
    both.peer.send(masked(wire.TEXT, b"a") + masked(wire.TEXT, b"b") + b"\xff\xff")
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both.stream.read_frames)
        await trio.sleep(5)
        both.peer.send(masked(wire.TEXT, b"c"))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert order == [b"a", b"b", Ending.PROTOCOL_ERROR]


async def test_a_close_behind_a_message_whose_handling_was_cancelled_is_known() -> None:
    async def hang(_messages: list[Message]) -> None:
        await trio.sleep_forever()

    both = pair()
    await both.parse(hang)
    both.peer.send(masked(wire.TEXT, b"a") + CLOSE)
    await both.read_frames()
    assert not both.stream.peer_closed  # one message at a time
    both.stream.allow_messages_of(1000, "somebody")
    both.peer.send(masked(wire.TEXT, b"b") + CLOSE)
    both.stream._rest = b""
    await both.read_frames()
    assert both.stream.peer_closed
    with trio.fail_after(1):
        await both.stream.discard_rest()


async def test_reading_goes_on_while_pongs_wait_and_the_last_one_is_written() -> None:
    both = pair(100)
    await both.parse()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both.stream.outlet.run)
        nursery.start_soon(both.stream.read_frames)
        await trio.testing.wait_all_tasks_blocked()
        both.peer.incoming.content += bytes(100)
        for number in range(100):
            both.peer.send(masked(wire.PING, b"%02d" % number) + masked(wire.TEXT, b"a"))
            await trio.testing.wait_all_tasks_blocked()
        assert len(both.messages) == 100
        assert received(both.peer) == bytes(100)
        await trio.testing.wait_all_tasks_blocked()
        answers = [wire.frame(wire.PONG, each) for each in (b"00", b"99")]
        assert received(both.peer) == b"".join(answers)
        nursery.cancel_scope.cancel()


async def test_what_is_discarded_ends_with_the_close_of_the_peer_or_its_bytes() -> None:
    both = pair()
    await both.parse()
    both.peer.send(masked(wire.TEXT, b"a") + CLOSE)
    with trio.fail_after(1):
        await both.stream.discard_rest()
    both = pair()
    await both.parse()
    both.peer.send(masked(wire.TEXT, b"a"))
    await until_blocked(both.stream.discard_rest())
    both.peer.send(CLOSE)
    with trio.fail_after(1):
        await both.stream.discard_rest()
    both = pair()
    await both.parse()
    both.peer.close()
    with trio.fail_after(1):
        await both.stream.discard_rest()


async def test_while_a_message_is_handled_those_behind_it_wait_in_the_link() -> None:
    both = pair()
    handled: list[int] = []

    async def be_slow(messages: list[Message]) -> None:
        handled.append(len(messages))
        await trio.sleep(10)

    await both.parse(be_slow)
    sent = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both.stream.read_frames)
        with trio.move_on_after(25):
            while True:
                await both.peer.wait_writable()
                sent += both.peer.send(masked(wire.TEXT, b"x" * 500))
        nursery.cancel_scope.cancel()
    assert len(handled) == 3
    assert sent < 3 * SIZE


async def test_one_read_full_of_messages_leaves_others_their_turns() -> None:
    both = pair()
    handled: list[int] = []
    number = SIZE // 12
    all_handled = trio.Event()
    turns = 0

    async def handle(messages: list[Message]) -> None:
        handled.extend(int(message.payload) for message in messages)
        if len(handled) == number:
            all_handled.set()

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    await both.parse(handle)
    both.peer.send(b"".join(masked(wire.TEXT, b"%05d" % each) for each in range(number)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        nursery.start_soon(both.stream.read_frames)
        await all_handled.wait()
        nursery.cancel_scope.cancel()
    assert handled == list(range(number))
    assert turns >= number // MAX_MESSAGES_PER_FEED


@pytest.mark.parametrize("more", [0, 1])
async def test_a_limit_that_a_message_lifts_counts_for_the_very_next_one(more: int) -> None:
    both = pair()

    async def lift(messages: list[Message]) -> None:
        both.messages += messages
        both.stream.allow_messages_of(5000, "somebody")

    await both.parse(lift)
    both.peer.send(masked(wire.TEXT, b"please") + masked(wire.TEXT, b"x" * (5000 + more)))
    await both.read_frames()
    assert [len(message.payload) for message in both.messages] == ([6] if more else [6, 5000])
    assert both.faults == ([Ending.MESSAGE_TOO_BIG] if more else [])


@define(eq=False)
class CountingLink(MemoryLink):
    """Counts the waits for bytes, and the reads that find none."""

    waits: int = 0
    vain_reads: int = 0

    async def wait_readable(self) -> None:
        self.waits += 1
        await super().wait_readable()

    def recv_into(self, buffer: memoryview) -> int:
        try:
            return super().recv_into(buffer)
        except BlockingIOError:
            self.vain_reads += 1
            raise


def counting_pair() -> tuple[Pair, CountingLink]:
    link, peer = link_pair()
    counting = CountingLink(link.incoming, link.outgoing)
    return Pair(FrameStream(counting, 30.0), counting, peer), counting


async def test_nothing_is_read_in_vain_from_a_peer_that_pauses() -> None:
    both, link = counting_pair()
    await both.parse()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(both.stream.read_frames)
        for _ in range(10):
            await trio.sleep(2 * MAX_PAUSE)
            both.peer.send(masked(wire.TEXT, b"{}"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(both.messages) == 10
    assert link.vain_reads == 0


async def test_a_peer_that_does_not_pause_is_read_several_times_in_a_row() -> None:
    both, link = counting_pair()
    left = 10 * MAX_READS_IN_A_ROW

    async def send_next(_messages: list[Message]) -> None:
        nonlocal left
        left -= 1
        if left:
            both.peer.send(masked(wire.TEXT, b"{}"))

    await both.parse(send_next)
    link.waits = 0
    both.peer.send(masked(wire.TEXT, b"{}"))
    await both.read_frames()
    assert left == 0
    assert link.waits == 11  # the last one waits for more


# -- a whole connection: the handshake


@pytest.mark.parametrize(
    "sent", [b"", HEAD[:20], UPGRADE[:-2], UPGRADE[:60], b"\x16\x03\x01", b"\0" * 100]
)
async def test_bytes_that_end_during_the_handshake_end_the_connection(
    relay: MemoryRelay, sent: bytes
) -> None:
    client = relay.connect()
    await client.send_bytes(sent)
    client.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.connections[0].peer.ending is Ending.CLIENT_GONE


@pytest.mark.parametrize("request_head", [UPGRADE, UNUSUAL_UPGRADE])
async def test_bytes_that_end_right_behind_the_request_end_the_connection(
    relay: MemoryRelay, request_head: bytes
) -> None:
    client = relay.connect()
    await client.send_bytes(request_head)
    client.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.connections[0].peer.ending is Ending.CLIENT_GONE
    assert relay.metrics.connections == 0


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /streams/register HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n\r\n",
        UPGRADE.replace(b"GET", b"POST"),
        UPGRADE.replace(b"Version: 13", b"Version: 8"),
        UPGRADE.replace(b"Host: relay\r\n", b""),
        b"nonsense\r\nUpgrade: websocket\r\n\r\n",
        b"\0\0\r\nUpgrade: websocket\r\n\r\n",
        b" GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_a_broken_request_for_a_websocket_ends_at_once(
    relay: MemoryRelay, request_head: bytes
) -> None:
    client = relay.connect()
    await client.send_bytes(request_head)
    await client.has_ended()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() < 1
    assert relay.connections[0].peer.ending is not Ending.INTERNAL_ERROR


@pytest.mark.parametrize(
    "early",
    [
        masked(wire.TEXT, b"{}"),
        json_message(type="auth", token=ANN),
        masked(wire.BINARY, bytes(1000)),
        masked(wire.TEXT, b"{", final=False),
        masked(wire.PING),
        masked(wire.PONG),
        CLOSE,
        b"\xff" * 20,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("request_head", [UPGRADE, UNUSUAL_UPGRADE])
async def test_a_client_that_sends_frames_before_our_101_harms_no_other(
    relay: MemoryRelay, request_head: bytes, early: bytes, whole: bool
) -> None:
    healthy = await relay.login()
    client = relay.connect()
    if whole:
        await client.send_bytes(request_head + early)
    else:
        await client.send_bytes(request_head[:-1])
        await trio.testing.wait_all_tasks_blocked()
        await client.send_bytes(request_head[-1:] + early)
    await trio.testing.wait_all_tasks_blocked()
    ending = relay.connections[1].peer.ending
    if early[0] in (wire.FIN | wire.TEXT, wire.FIN | wire.BINARY):
        assert ending is Ending.PROTOCOL_ERROR
    assert ending is not Ending.INTERNAL_ERROR
    client.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.connections[1].peer.ending is not None
    assert (await healthy.ask({"type": "register"}))["code"] == "REGISTERED"


# -- a whole connection: messages


@pytest.mark.parametrize("behind", [60_000, 200_000])
async def test_a_large_frame_may_follow_right_behind_the_auth_that_allows_it(
    relay: MemoryRelay, behind: int
) -> None:
    viewer = await relay.viewer("s")
    client = await relay.open()
    await client.send_bytes(
        json_message(type="auth", token=ANN)
        + json_message(type="register", streamId="s")
        + json_message(type="video-frame", data="A" * behind)
    )
    assert (await client.receive())["code"] == "AUTHENTICATED"
    assert (await client.receive())["code"] == "REGISTERED"
    with trio.fail_after(5):
        assert len((await viewer.receive_type("video-frame"))["data"]) == behind


async def test_of_a_flood_of_pings_few_are_answered_and_the_last_is(relay: MemoryRelay) -> None:
    client = await relay.login()
    flood = b"".join(masked(wire.PING, b"%06d" % number) for number in range(256 * 1024 // 12))
    pongs: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_bytes, flood)
        while not pongs or pongs[-1] != b"%06d" % (256 * 1024 // 12 - 1):
            await client.link.wait_readable()
            client.protocol.receive_data(received(client.link))
            pongs += [
                bytes(event.payload)
                for event in client.protocol.events()
                if isinstance(event, events.Pong)
            ]
    assert len(pongs) <= 100
    assert pongs == sorted(pongs)
    assert (await client.ask({"type": "register"}))["code"] == "REGISTERED"


# -- a whole connection: closing


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x03", 1002),
        (b"\x03\xed", 1002),  # 1005 is never sent
        (b"\x00\x00", 1002),
        (b"\x13\x88", 1002),
        (b"\x03\xe8\xff\xfe", 1007),
        (b"\x03\xe8" + "é".encode()[:1], 1007),
    ],
)
async def test_a_bad_close_is_answered_with_what_is_wrong(
    relay: MemoryRelay, payload: bytes, code: int
) -> None:
    healthy, client = await relay.login(), await relay.login()
    await client.send_bytes(masked(wire.CLOSE, payload))
    assert (await client.closing())[0] == code
    await client.send_bytes(CLOSE)
    client.link.close()
    await client.has_ended()
    assert (await healthy.ask({"type": "register"}))["code"] == "REGISTERED"


@pytest.mark.parametrize(
    ("payload", "close"),
    [
        (b"", (1005, "")),
        (b"\x03\xe8", (1000, "")),
        (b"\x03\xe9" + "é".encode(), (1001, "é")),
        (b"\x0f\xa0" + b"x" * 123, (4000, "x" * 123)),
    ],
)
async def test_a_good_close_is_echoed(
    relay: MemoryRelay, payload: bytes, close: tuple[int, str]
) -> None:
    client = await relay.login()
    await client.send_bytes(masked(wire.CLOSE, payload))
    code, reason = await client.closing()
    assert (code, reason or "") == close
    await client.has_ended()
    assert relay.connections[0].peer.ending is Ending.CLIENT_CLOSED


PINGS = pytest.mark.parametrize("pings", [1, 2, 1000])


@asynccontextmanager
async def bystander(relay: MemoryRelay) -> AsyncIterator[None]:
    """Another client, who is in the middle of something all the while."""
    phone, viewer = await relay.phone("s"), await relay.viewer("s")
    yield
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    assert (await phone.ask({"type": "register", "streamId": "s"}))["code"] == "REGISTERED"
    assert not {connection.peer.ending for connection in relay.connections[:2]} - {None}


async def ended(relay: MemoryRelay, ending: Ending) -> None:
    """Wait for the latest connection to be over, and see why that was."""
    with trio.fail_after(5):
        while not relay.connections[-1]._stream.link.closed:  # noqa: ASYNC110
            await trio.sleep(0.1)
    assert relay.connections[-1].peer.ending is ending


@PINGS
@pytest.mark.parametrize("wait", [True, False])
async def test_pings_after_our_close_harm_nothing(
    relay: MemoryRelay, pings: int, wait: bool
) -> None:
    async with bystander(relay):
        client = await relay.open()
        await client.send({"type": "auth", "token": "wrong"})
        if wait:
            assert (await client.closing())[0] == 1008
        await client.send_bytes(masked(wire.PING) * pings)
        await trio.testing.wait_all_tasks_blocked()
        await client.send_bytes(masked(wire.PING) * pings + CLOSE)
        await ended(relay, Ending.AUTH_FAILED)


@PINGS
async def test_pings_after_a_close_that_a_breach_brought_harm_nothing(
    relay: MemoryRelay, pings: int
) -> None:
    async with bystander(relay):
        client = await relay.login()
        await client.send_bytes(b"\xff\xff" + masked(wire.PING) * pings)
        assert (await client.closing())[0] == 1002
        await client.send_bytes(masked(wire.PING) * pings)
        await ended(relay, Ending.PROTOCOL_ERROR)


@PINGS
@pytest.mark.parametrize("apart", [True, False])
async def test_pings_after_the_peers_own_close_harm_nothing(
    relay: MemoryRelay, pings: int, apart: bool
) -> None:
    async with bystander(relay):
        client = await relay.login()
        await client.send_bytes(CLOSE + (b"" if apart else masked(wire.PING) * pings))
        if apart:
            await trio.testing.wait_all_tasks_blocked()
            client.link.outgoing.content += masked(wire.PING) * pings
            client.link.outgoing.changed.unpark_all()
        assert (await client.closing())[0] == 1000
        await ended(relay, Ending.CLIENT_CLOSED)


@PINGS
async def test_pings_while_our_close_waits_behind_a_frame_harm_nothing(
    relay: MemoryRelay, pings: int
) -> None:
    async with bystander(relay):
        phone = await relay.phone("slow")
        client = await relay.viewer("slow", capacity=1000)
        await phone.send({"type": "video-frame", "data": "A" * 5000})
        await trio.testing.wait_all_tasks_blocked()
        relay.connections[-1].restart(0)
        await client.send_bytes(masked(wire.PING) * pings)
        await trio.testing.wait_all_tasks_blocked()
        await client.send_bytes(masked(wire.PING) * pings)
        assert (await client.closing())[0] == 4012
        await client.send_bytes(masked(wire.PING) * pings + CLOSE)
        await ended(relay, Ending.SERVER_RESTARTING)


async def test_a_client_that_is_still_sending_learns_that_its_message_is_too_big(
    relay: MemoryRelay,
) -> None:
    relay.timing = evolve(relay.timing, max_message_size=16 << 20)
    client = await relay.login()
    size = 17 << 20
    async with trio.open_nursery() as nursery:
        header = struct.pack("!BBQ", 0x81, 0xFF, size) + bytes(4)
        nursery.start_soon(client.send_bytes, header + b"x" * size)
        await trio.testing.wait_all_tasks_blocked()
        # It reads only when all is sent, as many clients do.
    error, close = await client.hear_end()
    assert error["code"] == "MESSAGE_TOO_BIG"
    assert close == (1009, "message too big")
    await client.send_bytes(CLOSE)
    client.link.close()
    await client.has_ended()
    assert not relay.connections[0]._stream.link.was_reset  # type: ignore[attr-defined]


async def test_a_client_that_closes_in_the_breath_of_its_last_straw_is_not_kept_waiting(
    relay: MemoryRelay,
) -> None:
    client = await relay.login()
    start = trio.current_time()
    await client.send_bytes(masked(wire.TEXT, b"{") * 10 + CLOSE)
    _, close = await client.hear_end()
    assert close == (1008, "policy")
    await client.has_ended()
    assert trio.current_time() == start


async def test_a_client_that_closes_while_it_reads_nothing_is_let_go(relay: MemoryRelay) -> None:
    phone = await relay.phone("s")
    client = await relay.viewer("s", capacity=1000)
    await phone.send({"type": "video-frame", "data": "A" * 5000})
    await client.send_bytes(CLOSE)
    with trio.fail_after(relay.timing.idle_timeout + 5):
        while relay.connections[1].peer.ending is None:  # noqa: ASYNC110
            await trio.sleep(1)
    assert client.link.incoming.broken
