"""The one way out of a connection: whole frames, in their turn, as late as possible, and no more
after the Close."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
import wsproto
from attrs import define, field
from wsproto import events

from relay.metrics import LinkHistograms
from relay.transport import wire
from relay.transport.link import LOW_WATER_BYTES
from relay.transport.outlet import Outlet
from tests.unit.memory import SIZE, MemoryLink, SocketBuffer

pytestmark = pytest.mark.mock_clock

STALL = 30.0
BOTH = pytest.mark.parametrize("knows_unsent", [True, False])


def text(content: str) -> bytes:
    return wire.frame(wire.TEXT, content.encode())


def ping(content: str = "") -> bytes:
    return wire.frame(wire.PING, content.encode())


@define(eq=False)
class FragileLink(MemoryLink):
    """Breaks when told to."""

    broken: str = ""
    """The call that raises."""

    def unsent(self) -> int | None:
        if self.broken == "unsent":
            raise ConnectionResetError
        return super().unsent()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        if self.broken == "send":
            raise ConnectionResetError
        return super().send(data)


@define(eq=False)
class LowWaterLink(FragileLink):
    """Writable below a mark only, as TCP_NOTSENT_LOWAT makes a socket, though it takes more."""

    async def wait_writable(self) -> None:
        pipe = self.outgoing
        await pipe.wait(lambda: self.closed or len(pipe.content) < LOW_WATER_BYTES)
        if self.closed:
            raise trio.ClosedResourceError


@define(eq=False)
class Queue:
    """A source of frames."""

    frames: deque[bytes] = field(factory=deque)
    in_line: bool = False

    def take(self) -> bytes | None:
        return self.frames.popleft() if self.frames else None

    def waiting(self) -> bool:
        return bool(self.frames)


def queue(*contents: str) -> Queue:
    return Queue(deque(map(text, contents)))


@define(eq=False)
class Newest(Queue):
    """A source that keeps its last frame only."""

    def put(self, content: str) -> None:
        self.frames = deque([text(content)])


@define(eq=False)
class Peer:
    """What comes out at the other end, as wsproto reads it."""

    pipe: SocketBuffer
    protocol: wsproto.connection.Connection = field(
        factory=lambda: wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    )
    frames: list[str] = field(factory=list)
    _text: str = ""

    def read(self, most: int = 1 << 30) -> int:
        """Read what there is; returns how many bytes that was."""
        data = bytes(self.pipe.content[:most])
        del self.pipe.content[:most]
        self.pipe.changed.unpark_all()
        if data and "close" in self.frames:
            self.frames.append(f"after the close: {data!r}")
        elif data:
            self.protocol.receive_data(data)
        for event in self.protocol.events():
            self._take(event)
        return len(data)

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.TextMessage):
            self._text += event.data
            if event.message_finished:
                self.frames.append(self._text)
                self._text = ""
        elif isinstance(event, events.Ping | events.Pong):
            kind = "ping" if isinstance(event, events.Ping) else "pong"
            self.frames.append(f"{kind} {bytes(event.payload).decode()}")
        else:
            assert isinstance(event, events.CloseConnection), event
            assert event.code == 1000, event
            self.frames.append("close")

    async def read_all(self) -> list[str]:
        """Read until nothing more comes; returns all frames so far."""
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not self.read():
                return self.frames


@define(eq=False)
class Line:
    """An outlet, its writer at work, and the peer."""

    outlet: Outlet
    link: FragileLink
    peer: Peer
    nursery: trio.Nursery

    def start(self, work: Callable[..., Awaitable[object]], *arguments: object) -> None:
        self.nursery.start_soon(work, *arguments)


@asynccontextmanager
async def open_line(
    capacity: int = SIZE,
    *,
    knows_unsent: bool = True,
    kind: type[FragileLink] = FragileLink,
    writer: bool = True,
) -> AsyncIterator[Line]:
    pipe = SocketBuffer(capacity)
    link = kind(SocketBuffer(), pipe, knows_unsent=knows_unsent)
    async with trio.open_nursery() as nursery:
        line = Line(Outlet(link, STALL), link, Peer(pipe), nursery)
        if writer:
            line.start(line.outlet.run)
            await trio.testing.wait_all_tasks_blocked()
        yield line
        nursery.cancel_scope.cancel()


# -- at once


async def test_on_an_idle_connection_a_frame_is_written_at_once() -> None:
    async with open_line() as line:
        for number in range(5):
            assert line.outlet.write_now(text(str(number)))
        line.peer.read()  # and nobody else had a turn
        assert line.peer.frames == ["0", "1", "2", "3", "4"]


async def test_without_a_writer_that_could_finish_it_nothing_is_written_at_once() -> None:
    async with open_line(writer=False) as line:
        assert not line.outlet.write_now(text("a"))
        assert not line.link.outgoing.content


async def test_frames_are_written_at_once_up_to_the_low_water_mark() -> None:
    async with open_line() as line:
        for _ in range(3):
            while line.outlet.write_now(text("x" * 996)):
                assert len(line.link.outgoing.content) < LOW_WATER_BYTES + 1000
            assert len(line.link.outgoing.content) >= LOW_WATER_BYTES
            await line.peer.read_all()
        assert line.outlet.write_now(text("x" * 3 * LOW_WATER_BYTES))  # however large the frame
        assert not line.outlet.write_now(text("y"))


async def test_a_frame_that_does_not_fit_is_finished_before_anything_else() -> None:
    async with open_line(1000) as line:
        big = "x" * 2500
        assert line.outlet.write_now(text(big))
        assert line.outlet.cut
        assert not line.outlet.write_now(text("too early"))
        line.outlet.line_up(queue("next"))
        line.start(line.outlet.send, ping("in turn"))
        assert await line.peer.read_all() in (
            [big, "ping in turn", "next"],
            [big, "next", "ping in turn"],
        )
        assert not line.outlet.cut
        assert line.outlet.write_now(text("last"))


async def test_into_a_full_pipe_nothing_is_written_and_nothing_is_lost() -> None:
    async with open_line(100) as line:
        assert line.outlet.write_now(text("x" * 98))
        assert not line.outlet.write_now(text("waits"))
        assert not line.outlet.cut
        line.outlet.line_up(queue("waits"))
        assert await line.peer.read_all() == ["x" * 98, "waits"]


async def test_while_anything_is_in_line_nothing_overtakes_it() -> None:
    async with open_line() as line:
        assert line.outlet.write_now(text("before"))
        line.outlet.line_up(queue("first"))
        assert not line.outlet.write_now(text("second"))
        assert await line.peer.read_all() == ["before", "first"]
        assert line.outlet.write_now(text("second"))


async def test_while_a_frame_is_being_sent_none_is_written_into_it() -> None:
    async with open_line(60) as line:
        assert line.outlet.write_now(text("before"))
        line.start(line.outlet.send, ping("x" * 80))
        await trio.testing.wait_all_tasks_blocked()
        line.peer.read(30)
        assert not line.outlet.write_now(text("at once"))
        assert await line.peer.read_all() == ["before", "ping " + "x" * 80]


@BOTH
async def test_nothing_is_written_at_once_after_a_stop(knows_unsent: bool) -> None:
    async with open_line(knows_unsent=knows_unsent) as line:
        line.outlet.write_now(text("a"))
        line.outlet.stop()
        assert not line.outlet.write_now(text("b"))


@pytest.mark.parametrize("broken", ["send", "unsent"])
async def test_writing_at_once_never_raises(broken: str) -> None:
    async with open_line() as line:
        line.link.broken = broken
        assert not line.outlet.write_now(text("a"))
        assert line.outlet.closing


async def test_where_unsent_bytes_cannot_be_told_only_the_writer_writes() -> None:
    async with open_line(knows_unsent=False) as line:
        assert not line.outlet.write_now(text("a"))
        line.outlet.line_up(queue("a", "b", "c"))
        assert await line.peer.read_all() == ["a", "b", "c"]
        assert not line.outlet.write_now(text("d"))


# -- the writer


@BOTH
async def test_first_comes_what_is_first_and_then_each_source_in_turn(knows_unsent: bool) -> None:
    async with open_line(10, knows_unsent=knows_unsent) as line:
        line.outlet.line_up(queue("on the wire"))
        await trio.testing.wait_all_tasks_blocked()
        one, two, three = queue("1a", "1b", "1c"), queue("2a"), queue("3a", "3b")
        for source in (one, two, three, one):
            line.outlet.line_up(source)
        urgent = queue("u1", "u2")
        line.outlet.line_up(urgent, first=True)
        line.outlet.line_up(urgent, first=True)
        assert await line.peer.read_all() == [
            "on the wire",
            "u1",
            "u2",
            *("1a", "2a", "3a"),
            *("1b", "3b"),
            "1c",
        ]
        assert not any(source.in_line for source in (one, two, three, urgent))


async def test_a_source_that_fills_again_at_once_leaves_the_others_their_turns() -> None:
    class Endless(Queue):
        def take(self) -> bytes | None:
            return text("endless")

        def waiting(self) -> bool:
            return True

    async with open_line(100) as line:
        line.outlet.line_up(Endless())
        line.outlet.line_up(queue("a", "b", "c"))
        while "c" not in line.peer.frames:
            await trio.testing.wait_all_tasks_blocked()
            line.peer.read()
        assert line.peer.frames[:6] == ["endless", "a", "endless", "b", "endless", "c"]


async def test_a_source_that_has_nothing_after_all_is_passed_over() -> None:
    async with open_line(10) as line:
        line.outlet.line_up(queue("on the wire"))
        await trio.testing.wait_all_tasks_blocked()
        fickle = queue("changed its mind")
        line.outlet.line_up(fickle)
        line.outlet.line_up(queue("next"))
        fickle.frames.clear()
        assert await line.peer.read_all() == ["on the wire", "next"]
        fickle.frames.append(text("again"))
        line.outlet.line_up(fickle)
        assert await line.peer.read_all() == ["on the wire", "next", "again"]


@BOTH
async def test_the_writer_picks_as_late_as_possible(knows_unsent: bool) -> None:
    async with open_line(knows_unsent=knows_unsent, kind=LowWaterLink) as line:
        line.outlet.line_up(queue("x" * LOW_WATER_BYTES))
        await trio.testing.wait_all_tasks_blocked()
        newest = Newest()
        for number in range(10):
            newest.put(str(number))
            line.outlet.line_up(newest)
            await trio.testing.wait_all_tasks_blocked()
        assert (await line.peer.read_all())[1:] == ["9"]


async def test_the_frame_being_written_does_not_hold_back_what_is_first() -> None:
    async with open_line(kind=LowWaterLink) as line:
        line.outlet.line_up(queue("x" * LOW_WATER_BYTES, "video"))
        await trio.testing.wait_all_tasks_blocked()
        line.outlet.line_up(queue("alert"), first=True)
        assert (await line.peer.read_all())[1:] == ["alert", "video"]


async def test_control_frames_take_turns_with_data() -> None:
    async with open_line(10) as line:
        line.outlet.line_up(queue(*"abcdefghij"))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            line.start(line.outlet.send, ping(str(number)))
            await trio.testing.wait_all_tasks_blocked()
        frames = await line.peer.read_all()
        assert [frame for frame in frames if len(frame) == 1] == list("abcdefghij")
        assert [frames.index(f"ping {number}") < 9 for number in range(3)] == [True] * 3


async def test_the_writer_ends_when_the_outlet_stops() -> None:
    async with open_line(writer=False) as line:
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.outlet.run)
                await trio.testing.wait_all_tasks_blocked()
                line.outlet.stop()


@pytest.mark.parametrize("broken", ["send", "unsent"])
async def test_a_link_that_breaks_ends_the_writer_and_is_reset(broken: str) -> None:
    async with open_line(writer=False) as line:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.outlet.run)
            await trio.testing.wait_all_tasks_blocked()
            line.link.broken = broken
            line.outlet.line_up(queue("a"))
        assert line.link.was_reset
        assert line.outlet.closing


# -- whole frames, whatever is cancelled


@define(eq=False)
class Storm:
    """Tasks that send and are cancelled, over a link that takes few bytes at a time."""

    line: Line
    chance: random.Random
    promised: set[str] = field(factory=set)
    """What must arrive: it was sent, or given to the outlet."""
    tried: set[str] = field(factory=set)
    over: bool = False
    _numbers: itertools.count[int] = field(factory=itertools.count)

    def _content(self, kind: str, longest: int) -> str:
        content = f"{kind}{next(self._numbers)}-"
        return content + "x" * self.chance.randrange(longest - len(content))

    async def send_pings(self) -> None:
        for _ in range(8):
            await trio.sleep(self.chance.choice([0, 1, 5]))
            content = self._content("p", 60)
            self.tried.add(f"ping {content}")
            with trio.move_on_after(self.chance.choice([0, 0.5, 1, 3, 10, 100])):
                await self.line.outlet.send(ping(content))
                self.promised.add(f"ping {content}")

    async def post_pongs(self) -> None:
        for _ in range(8):
            await trio.sleep(self.chance.choice([0, 1, 5]))
            content = self._content("o", 60)
            self.tried.add(f"pong {content}")
            assert self.line.outlet.post_control(wire.frame(wire.PONG, content.encode()))
        self.promised.add(f"pong {content}")

    async def offer_frames(self) -> None:
        waiting = Queue()
        for _ in range(8):
            await trio.sleep(self.chance.choice([0, 1, 5]))
            content = self._content("d", self.chance.choice([30, 140]))
            self.tried.add(content)
            self.promised.add(content)
            if waiting.in_line or not self.line.outlet.write_now(text(content)):
                waiting.frames.append(text(content))
                self.line.outlet.line_up(waiting, first=self.chance.random() < 0.3)

    async def write(self) -> None:
        """The writer, too, is cancelled now and then."""
        while True:
            with trio.move_on_after(self.chance.choice([1, 7, 50])):
                await self.line.outlet.run()

    async def read(self) -> None:
        while not self.over or not self.promised <= set(self.line.peer.frames):
            await trio.sleep(self.chance.choice([0.3, 1, 2]))
            self.line.peer.read(self.chance.choice([1, 5, 60, 1000]))


@BOTH
@pytest.mark.parametrize("seed", range(12))
async def test_whatever_is_cancelled_the_peer_reads_whole_frames(
    seed: int, knows_unsent: bool
) -> None:
    chance = random.Random(seed)
    capacity = chance.choice([3, 20, 60, 200])
    async with open_line(capacity, knows_unsent=knows_unsent, writer=False) as line:
        storm = Storm(line, chance)
        line.start(storm.write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm.read)
            async with trio.open_nursery() as senders:
                for task in [storm.send_pings, storm.offer_frames] * 3 + [storm.post_pongs]:
                    senders.start_soon(task)
            storm.over = True
        line.start(line.outlet.send, ping("last"))
        frames = await line.peer.read_all()
    assert frames.pop() == "ping last"
    assert len(set(frames)) == len(frames)
    assert storm.promised <= set(frames) <= storm.tried


async def test_a_send_cancelled_halfway_is_finished_by_the_next_write() -> None:
    async with open_line(10) as line:
        with trio.move_on_after(5):
            await line.outlet.send(ping("x" * 50))
        assert line.outlet.cut
        line.peer.read(5)
        assert not line.outlet.write_now(text("at once"))
        line.outlet.line_up(queue("next"))
        assert await line.peer.read_all() == ["ping " + "x" * 50, "next"]


async def test_a_send_cancelled_in_line_never_was() -> None:
    async with open_line(10) as line:
        line.outlet.line_up(queue("x" * 50))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(5):
            await line.outlet.send(ping("gone"))
        line.outlet.line_up(queue("next"))
        assert await line.peer.read_all() == ["x" * 50, "next"]


# -- a peer that stalls


async def test_a_peer_that_takes_no_byte_is_given_up_with_a_reset() -> None:
    async with open_line(10) as line:
        start = trio.current_time()
        line.outlet.line_up(queue("x" * 50))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await line.outlet.send(ping())
        assert trio.current_time() - start == pytest.approx(STALL)
        assert line.outlet.stalled
        assert line.outlet.closing
        assert line.link.was_reset
        assert not line.outlet.write_now(text("a"))
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await line.outlet.send(ping())


async def test_a_peer_that_stalls_a_sender_is_given_up_too() -> None:
    async with open_line(10, writer=False) as line:
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await line.outlet.send(ping("x" * 50))
        assert trio.current_time() - start == pytest.approx(STALL)
        assert line.outlet.closing
        assert line.link.was_reset


async def test_a_peer_that_takes_a_byte_now_and_then_is_not_given_up() -> None:
    async with open_line(10) as line:
        start = trio.current_time()
        line.outlet.line_up(queue("x" * 30))
        await trio.testing.wait_all_tasks_blocked()
        while line.peer.frames != ["x" * 30]:
            await trio.sleep(STALL - 1)
            assert line.peer.read(1) == 1
        assert line.outlet.last_progress - start > 5 * STALL
        assert not line.outlet.stalled


# -- the end


async def test_a_stop_lets_the_begun_frame_be_finished_and_no_other_begin() -> None:
    async with open_line(10) as line:
        line.outlet.line_up(queue("x" * 50, "never"))
        await trio.testing.wait_all_tasks_blocked()
        line.outlet.stop()
        assert await line.peer.read_all() == ["x" * 50]


async def test_a_stop_while_the_writer_waits_lets_no_frame_begin() -> None:
    async with open_line(kind=LowWaterLink) as line:
        line.outlet.line_up(queue("x" * LOW_WATER_BYTES, "never"))
        await trio.testing.wait_all_tasks_blocked()
        line.outlet.stop()
        assert await line.peer.read_all() == ["x" * LOW_WATER_BYTES]


async def test_the_last_words_are_those_of_one_source_and_the_goodbye() -> None:
    async with open_line(10) as line:
        urgent, video = queue("u1", "u2"), queue("x" * 50, "never")
        line.outlet.line_up(video)
        await trio.testing.wait_all_tasks_blocked()
        line.outlet.line_up(urgent, first=True)
        goodbye = wire.frame(wire.CLOSE, b"\x03\xe8")
        line.start(line.outlet.drain, urgent, text("why"), goodbye)
        assert await line.peer.read_all() == ["x" * 50, "u1", "u2", "why", "close"]


async def test_the_last_words_follow_what_a_cancelled_writer_left_behind() -> None:
    async with open_line(10, writer=False) as line:
        line.outlet.line_up(queue("x" * 50))
        with trio.move_on_after(1):
            await line.outlet.run()
        line.start(line.outlet.drain, queue(), wire.frame(wire.CLOSE, b"\x03\xe8"))
        assert await line.peer.read_all() == ["x" * 50, "close"]


async def ignore_closed(work: Callable[..., Awaitable[object]], *arguments: object) -> None:
    with suppress(trio.ClosedResourceError):
        await work(*arguments)


async def test_nothing_is_sent_after_a_close() -> None:
    async with open_line(10) as line:
        close = wire.frame(wire.CLOSE, b"\x03\xe8")
        line.outlet.line_up(queue("x" * 50, "never"))
        await trio.testing.wait_all_tasks_blocked()
        line.start(ignore_closed, line.outlet.send_close, close)
        await trio.testing.wait_all_tasks_blocked()
        # While the Close waits for the frame before it:
        assert not line.outlet.write_now(text("never"))
        line.outlet.line_up(queue("never"))
        line.start(ignore_closed, line.outlet.send, ping("never"))
        line.start(ignore_closed, line.outlet.send_close, close)
        await trio.testing.wait_all_tasks_blocked()
        assert await line.peer.read_all() == ["x" * 50, "close"]
        # And when it is out:
        with pytest.raises(trio.ClosedResourceError):
            await line.outlet.send(ping("never"))
        with pytest.raises(trio.ClosedResourceError):
            await line.outlet.drain(queue("never"), close)
        assert await line.peer.read_all() == ["x" * 50, "close"]
        assert not line.link.was_reset


async def test_a_close_cut_by_a_cancellation_is_finished_and_nothing_follows() -> None:
    async with open_line(2, writer=False) as line:
        with trio.move_on_after(1):
            await line.outlet.send_close(wire.frame(wire.CLOSE, b"\x03\xe8because"))
        line.start(ignore_closed, line.outlet.drain, queue("never"), text("never"))
        assert await line.peer.read_all() == ["close"]


async def test_a_close_cancelled_before_it_begins_leaves_room_for_the_goodbye() -> None:
    async with open_line(10) as line:
        line.outlet.line_up(queue("x" * 50))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await line.outlet.send_close(wire.frame(wire.CLOSE, b"\x03\xe8"))
        line.start(line.outlet.drain, queue("last"), wire.frame(wire.CLOSE, b"\x03\xe8"))
        assert await line.peer.read_all() == ["x" * 50, "last", "close"]


def long_text(content: str) -> bytes:
    message = wire.message(wire.TEXT, content.encode())
    assert len(message) > wire.MAX_WHOLE_BYTES
    return message


@BOTH
async def test_a_control_frame_goes_between_two_fragments(knows_unsent: bool) -> None:
    async with open_line(1000, knows_unsent=knows_unsent) as line:
        content = "x" * 200_000
        line.outlet.line_up(Queue(deque([long_text(content), text("next")])))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            pinged = 0
            assert line.outlet.post_control(ping(str(number)))
            while len(line.peer.frames) <= number:
                await trio.testing.wait_all_tasks_blocked()
                pinged += line.peer.read()
            assert pinged < 2 * wire.MESSAGE_PIECE_BYTES
        assert line.outlet.post_control(ping("last"))
        pings = ["ping 0", "ping 1", "ping 2", "ping last"]
        assert await line.peer.read_all() == [*pings, content, "next"]


async def test_of_each_kind_of_control_frame_the_last_one_is_written() -> None:
    async with open_line(1000) as line:
        content = "x" * 200_000
        assert line.outlet.write_now(long_text(content))
        for number in range(100):
            assert line.outlet.post_control(ping(str(number)))
            assert line.outlet.post_control(wire.frame(wire.PONG, b"%d" % number))
        assert await line.peer.read_all() == ["ping 99", "pong 99", content]


async def test_a_control_frame_is_written_at_once_or_else_before_what_waits() -> None:
    async with open_line(30) as line:
        assert line.outlet.post_control(ping("at once"))
        line.peer.read()
        assert line.peer.frames == ["ping at once"]
        line.outlet.line_up(queue("x" * 28, "next", "last"))
        await trio.testing.wait_all_tasks_blocked()
        assert line.outlet.post_control(ping("soon"))
        assert await line.peer.read_all() == ["ping at once", "x" * 28, "next", "ping soon", "last"]


@pytest.mark.parametrize("broken", ["send", "unsent", ""])
async def test_a_control_frame_that_cannot_be_written_is_kept_by_nobody(broken: str) -> None:
    async with open_line() as line:
        line.link.broken = broken
        if not broken:
            line.outlet.stop()
        for _ in range(2):
            assert line.outlet.post_control(ping()) is not bool(broken)
            assert line.outlet.closing
            assert not line.outlet._controls
        assert await line.peer.read_all() == []


async def test_the_writer_starts_once_when_something_first_has_to_wait() -> None:
    started: list[str] = []
    async with open_line(100, writer=False) as line:
        line.outlet.open(lambda: started.append("writer"))
        assert line.outlet.write_now(text("x" * 90))
        assert line.outlet.post_control(ping("y"))
        assert started == []
        assert line.outlet.write_now(text("cut" * 10))
        assert started == ["writer"]
        line.outlet.line_up(queue("next"))
        assert line.outlet.post_control(ping("z"))
        assert started == ["writer"]
        line.start(line.outlet.run)
        frames = await line.peer.read_all()
        assert frames == ["x" * 90, "ping y", "cut" * 10, "ping z", "next"]
        assert line.outlet.write_now(text("at once"))
        line.peer.read()
        assert line.peer.frames[-1] == "at once"


@pytest.mark.parametrize("wait", ["line", "control"])
async def test_the_writer_starts_for_a_source_and_for_a_control_frame(wait: str) -> None:
    started: list[str] = []
    async with open_line(knows_unsent=False, writer=False) as line:
        line.outlet.open(lambda: started.append("writer"))
        if wait == "line":
            line.outlet.line_up(queue("a"))
        else:
            assert line.outlet.post_control(ping("a"))
        assert started == ["writer"]


async def test_no_writer_starts_after_a_stop() -> None:
    started: list[str] = []
    async with open_line(100, writer=False) as line:
        line.outlet.open(lambda: started.append("writer"))
        line.outlet.stop()
        line.outlet.line_up(queue("never"))
        assert not line.outlet.write_now(text("never"))
        assert started == []


async def test_a_control_frame_that_a_cancelled_writer_left_behind_is_sent() -> None:
    async with open_line(1000, writer=False) as line:
        content = "x" * 200_000
        line.outlet.line_up(Queue(deque([long_text(content)])))
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.outlet.run)
                await trio.testing.wait_all_tasks_blocked()
                assert line.outlet.post_control(ping("sent"))
                line.peer.read(500)
                await trio.testing.wait_all_tasks_blocked()
                assert not line.outlet._controls  # it is behind the fragment that is being written
                await trio.sleep(2)
        line.start(line.outlet.drain, queue("last"))
        assert await line.peer.read_all() == ["ping sent", content, "last"]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 131_072, 131_073, 200_000])
async def test_a_long_message_is_cut_between_its_characters(size: int) -> None:
    for content in ("x" * size, "é" * (size // 2), ("xé€😀" * (size // 10 + 1))[:size]):
        message = wire.message(wire.TEXT, content.encode())
        peer = Peer(SocketBuffer(1 << 20))
        peer.pipe.content += message
        peer.read()
        assert peer.frames == [content]
        frames, at = [], 0
        while at < len(message):
            end = wire.end_of_frame(message, at)
            frames.append(message[at:end])
            assert wire.end_of_frame(message, end - 1) == end
            at = end
        assert b"".join(frames) == message
        assert (len(frames) > 1) == (len(content.encode()) > wire.MAX_WHOLE_BYTES)
        assert "".join(str(each, "utf-8") for each in wire.pieces(wire.TEXT, content.encode())) == (
            content
        )


# -- what paced sources are told


@define(eq=False)
class Told:
    """A paced source that counts how often it is told of the pacer, and has nothing to send."""

    times: int = 0
    in_line: bool = False

    def take(self) -> None:
        return None

    def waiting(self) -> bool:
        return False

    def pacer_changed(self) -> None:
        self.times += 1


async def test_a_source_is_told_of_answers_unless_the_link_was_calm_and_stays_so() -> None:
    source = Told()
    async with open_line() as line:
        outlet = line.outlet
        pacer = outlet.pace(source, LinkHistograms())

        async def be_answered(token: int, after: float = 0.001) -> bool:
            """Send a frame, and return whether its answer was told."""
            before = source.times
            pacer.frame_sent(token, 2048, trio.current_time())
            await trio.sleep(after)
            assert outlet.take_answers([token], trio.current_time()) == 1
            return source.times > before

        pacer.ping_sent(1, trio.current_time())
        await trio.sleep(0.001)
        outlet.take_answers([1], trio.current_time())
        assert source.times == 1
        assert await be_answered(2)
        assert pacer.calm
        assert not await be_answered(3)
        assert outlet.take_answers([3, 4], trio.current_time()) == 0
        assert await be_answered(5, after=1.0)
        assert not pacer.calm
        assert await be_answered(6)
