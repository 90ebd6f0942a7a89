"""Peers that stall, crawl, break off or vanish: the others get every frame, and of those that are
gone nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define

from relay.connection.connection import Connection
from relay.hub.fanout import SLICE
from relay.protocol.endings import Ending
from relay.protocol.reports import StreamCounts
from relay.transport.wire import CLOSE, CONTINUATION, PING, TEXT
from tests.unit.hostile import masked_frame
from tests.unit.memory import Client, MemoryLink, MemoryRelay

pytestmark = pytest.mark.mock_clock

CLOSING = masked_frame(CLOSE, b"\x03\xe8")


def frame(size: int = 8000) -> dict[str, Any]:
    return {"type": "video-frame", "data": "A" * size}


@define(eq=False)
class Others:
    """A phone and a viewer that must miss nothing, whoever else has bad luck."""

    relay: MemoryRelay
    phone: Client
    viewer: Client
    seen: int = 0

    async def exchange(self, count: int, *, every: float = 0) -> None:
        """Frames, one after the other, each of which arrives at once."""
        for _ in range(count):
            await self.phone.send(frame())
            self.seen += 1
            with trio.fail_after(0.1):
                assert (await self.viewer.receive_type("video-frame"))["seq"] == self.seen
            await trio.sleep(every)

    async def leave_nothing(self) -> None:
        """Leave too; then the relay holds nothing of anybody."""
        for client in (self.phone, self.viewer):
            await client.send_bytes(CLOSING)
            await client.has_ended()
        await trio.sleep(10)  # the grace that a producer has
        relay = self.relay
        ledger = relay.hub.ledger()
        assert ledger.accepted == ledger.written + sum(ledger.dropped.values())
        assert (ledger.waiting, relay.budget.reserved, relay.metrics.connections) == (0, 0, 0)
        assert relay.hub.count() == StreamCounts()
        assert not relay.nursery.child_tasks
        assert relay.hub._nursery is not None
        assert not relay.hub._nursery.child_tasks
        assert all(link_of(connection).closed for connection in relay.connections)
        assert relay.metrics.endings[Ending.INTERNAL_ERROR] == 0


@pytest.fixture
async def others(relay: MemoryRelay) -> Others:
    return Others(relay, await relay.phone(), await relay.viewer(policy="lossless"))


def link_of(connection: Connection) -> MemoryLink:
    link = connection._stream.link
    assert isinstance(link, MemoryLink)
    return link


@pytest.fixture(params=[True, False], ids=["asking", "blind"])
async def unlucky(request: pytest.FixtureRequest, relay: MemoryRelay, others: Others) -> Client:
    """A viewer with a small buffer, on a link that tells what lies unsent, or does not."""
    viewer = await relay.viewer(capacity=3000)
    link_of(relay.connections[-1]).knows_unsent = request.param
    return viewer


async def test_a_viewer_that_stops_reading_for_good(
    relay: MemoryRelay, others: Others, unlucky: Client
) -> None:
    stalled = relay.connections[-1]
    await others.exchange(11, every=10)
    assert stalled.peer.ending is None
    assert relay.hub.ledger().waiting == 1  # however many were sent
    await others.exchange(2, every=10)
    assert stalled.peer.ending is Ending.IDLE_TIMEOUT
    assert link_of(stalled).was_reset  # it has a part of a frame
    await others.exchange(3)
    await others.leave_nothing()


async def test_a_viewer_that_stops_reading_and_pings_on(
    relay: MemoryRelay, others: Others, unlucky: Client
) -> None:
    stalled = relay.connections[-1]

    async def ping() -> None:
        while stalled.peer.ending is None:
            await unlucky.send_bytes(masked_frame(PING, b"still there"))
            await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        await others.exchange(20, every=10)
        assert stalled.peer.ending is Ending.IDLE_TIMEOUT
    await others.leave_nothing()


async def test_a_viewer_that_reads_a_byte_a_second(
    relay: MemoryRelay, others: Others, unlucky: Client
) -> None:
    crawling, read = relay.connections[-1], 0

    async def crawl() -> None:
        nonlocal read
        while True:
            await trio.sleep(1)
            read += unlucky.link.recv_into(memoryview(bytearray(1)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crawl)
        for _ in range(10):
            await others.exchange(3, every=20)
            assert relay.hub.ledger().waiting == 1
        nursery.cancel_scope.cancel()
    assert read >= 599
    assert crawling.peer.ending is None  # it is slow, and alive
    unlucky.link.close()
    await others.exchange(3)
    assert crawling.peer.ending is Ending.CLIENT_GONE
    await others.leave_nothing()


def fin(client: Client) -> None:
    client.link.outgoing.end()


def reset(client: Client) -> None:
    client.link.reset()


def close(client: Client) -> None:
    assert client.link.send(CLOSING) == len(CLOSING)


def breach(client: Client) -> None:
    assert client.link.send(b"\x83\x00") == 2


@pytest.mark.parametrize("end", [fin, reset, close, breach])
async def test_a_viewer_that_breaks_off_in_the_middle_of_a_frame(
    relay: MemoryRelay, others: Others, unlucky: Client, end: Callable[[Client], None]
) -> None:
    leaving = relay.connections[-1]
    await others.exchange(3)
    await trio.testing.wait_all_tasks_blocked()
    assert leaving.peer.stream.outlet.cut
    end(unlucky)
    await others.exchange(3)
    if end in (fin, reset):
        assert link_of(leaving).closed
    # Else it would have to read before it can be answered, and does not.
    await others.exchange(13, every=10)
    assert link_of(leaving).was_reset
    await others.leave_nothing()


@pytest.mark.parametrize("end", [close, breach])
async def test_a_viewer_that_breaks_off_and_reads_on_gets_its_frame_whole_and_a_close(
    relay: MemoryRelay, others: Others, unlucky: Client, end: Callable[[Client], None]
) -> None:
    await others.exchange(3)
    end(unlucky)
    code, _ = await unlucky.closing()  # wsproto reads every byte before it
    assert code == (1000 if end is close else 1002)
    await others.exchange(3)
    await others.leave_nothing()


async def test_a_viewer_that_vanishes_without_a_word(relay: MemoryRelay, others: Others) -> None:
    await relay.viewer("another")  # of which no frame is in flight that could be missed
    gone = relay.connections[-1]
    for _ in range(15):
        await others.exchange(1, every=10)
    assert gone.peer.ending is Ending.IDLE_TIMEOUT
    assert link_of(gone).closed
    await others.leave_nothing()


@pytest.mark.parametrize("end", [fin, reset, close, breach, None])
@pytest.mark.parametrize("parts", [1, 3])
async def test_a_phone_that_dies_in_the_middle_of_a_fragmented_message(
    relay: MemoryRelay, others: Others, end: Callable[[Client], None] | None, parts: int
) -> None:
    phone, viewer = await relay.phone("another"), await relay.viewer("another")
    dying = relay.connections[-2]
    await phone.send(frame())
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    whole = b'{"type": "video-frame", "data": "' + b"A" * 9000
    begun = masked_frame(TEXT, whole, final=False)
    begun += masked_frame(CONTINUATION, b"AAAA", final=False) * (parts - 1)
    if end not in (close, breach):  # which would not be told from its payload
        begun += masked_frame(CONTINUATION, bytes(500))[:100]
    await phone.send_bytes(begun)
    await trio.testing.wait_all_tasks_blocked()
    assert relay.budget.reserved > 9000
    if end is not None:
        end(phone)
        await trio.testing.wait_all_tasks_blocked()
        assert dying.peer.ending is not None
    else:  # it goes silent
        await others.exchange(15, every=10)
        assert dying.peer.ending is Ending.IDLE_TIMEOUT
    assert relay.budget.reserved == 0
    phone.link.close()
    await others.exchange(3)
    if end is not None:
        # Its place is free for one that comes soon, and nothing of the half message appears.
        phone = await relay.phone("another")
        await phone.send(frame())
        assert (await viewer.receive())["seq"] == 2
    for client in (phone, viewer):
        client.link.close()
    await others.leave_nothing()


def unsubscribe(client: Client) -> None:
    text = b'{"type": "unsubscribe", "streamId": "front-door"}'
    client.link.send(masked_frame(TEXT, text))


@pytest.mark.parametrize("viewers", [4 * SLICE, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("end", [fin, reset, close, unsubscribe])
async def test_viewers_that_leave_at_once_during_a_publish(
    relay: MemoryRelay, others: Others, end: Callable[[Client], None], viewers: int
) -> None:
    crowd = [await relay.viewer() for _ in range(viewers)]
    last = await relay.viewer(policy="lossless")
    await others.phone.send(frame())
    for _ in range(1000):
        if relay.hub.ledger().accepted >= 2 * SLICE:
            break
        await trio.lowlevel.checkpoint()
    assert 0 < relay.hub.ledger().accepted < viewers  # the publish is under way
    for viewer in crowd:
        end(viewer)
    for viewer in (others.viewer, last):
        assert (await viewer.receive_type("video-frame"))["seq"] == 1
    others.seen = 1
    await trio.testing.wait_all_tasks_blocked()
    assert relay.hub.count().consumers == 2
    await others.exchange(3)
    assert [(await last.receive_type("video-frame"))["seq"] for _ in range(3)] == [2, 3, 4]
    for viewer in (*crowd, last):
        viewer.link.close()
    await others.leave_nothing()


async def test_a_publish_to_nobody(relay: MemoryRelay, others: Others) -> None:
    lonely = await relay.phone("another")
    for _ in range(300):
        await lonely.send(frame(100))
    await trio.testing.wait_all_tasks_blocked()
    assert relay.metrics.frames_accepted == 300
    assert relay.hub.ledger().accepted == 0
    late = await relay.viewer("another")
    assert (await late.receive_type("video-frame"))["seq"] == 300
    await others.exchange(3)
    for client in (lonely, late):
        client.link.close()
    await others.leave_nothing()
