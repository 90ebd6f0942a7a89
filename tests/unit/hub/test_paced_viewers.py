"""Viewers on thin links with deep queues: their frames are as fresh as the link allows."""

from __future__ import annotations

import base64
import json
from statistics import median
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from wsproto import events

from relay.hub.consumer import Consumer
from relay.hub.paced_writer import PACED
from relay.transport.pacing import (
    MAX_ANSWER_DELAY,
    MAX_CALM_PROBE_INTERVAL,
    MAX_UNANSWERED_PROBES,
    MAX_UNTRIED_SECONDS,
)
from tests.unit.hub.test_takeover import message
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

FPS = 10
FRAME_BYTES = 12_000
"""As JSON: 16 kB."""
DELAY = 0.02
PACKET_BYTES = 1000


@define(eq=False)
class FrameEnds:
    """Finds where the WebSocket frames of a server end."""

    _rest: int = 0
    """Bytes of a payload that are still to come."""
    _header: bytes = b""

    def in_packet(self, data: bytes) -> bool:
        """Whether a frame ends within this."""
        found = False
        while data:
            skipped = min(self._rest, len(data))
            self._rest, data = self._rest - skipped, data[skipped:]
            if self._rest or not data:
                return found or (skipped > 0 and not self._rest)
            found = found or skipped > 0
            wanted = self._header_size - len(self._header)
            self._header, data = self._header + data[:wanted], data[wanted:]
            if len(self._header) == self._header_size:
                extended = self._header[2:]
                self._rest = int.from_bytes(extended) if extended else self._header[1]
                found, self._header = found or not self._rest, b""
        return found

    @property
    def _header_size(self) -> int:
        length = self._header[1] if len(self._header) > 1 else 0
        return {126: 4, 127: 10}.get(length, 2)


@define(eq=False)
class DistantViewer:
    """A viewer at the far end of a network that takes everything and carries it at a rate."""

    client: Client
    rate: float
    """Bytes a second."""
    answers: bool = True
    """Whether it answers pings."""
    acknowledges: bool = False
    ack_every: int = 1
    """It acknowledges so many frames at once."""
    ack_delay: float = 0.0
    """Seconds after which it does."""
    packet_bytes: int = PACKET_BYTES
    seqs: dict[str, list[int]] = field(factory=dict)
    """Of the frames of each stream."""
    ages: dict[str, list[float]] = field(factory=dict)
    """Of the frames of each stream, in seconds."""
    layers: dict[str, list[str | None]] = field(factory=dict)
    """Of the frames of each stream."""
    pings: int = 0

    async def run(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        send, receive = trio.open_memory_channel[tuple[float, bytes]](1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, send)
            async for due, data in receive:
                await trio.sleep_until(due)
                self.client.protocol.receive_data(data)
                for event in self.client.protocol.events():
                    self._take(event, nursery)

    async def _carry(self, network: trio.MemorySendChannel[tuple[float, bytes]]) -> None:
        free_at = 0.0
        arrived, ends = b"", FrameEnds()
        while True:
            await self.client.link.wait_readable()
            buffer = self.client.link.incoming
            data = buffer.get(len(buffer.content))
            for start in range(0, len(data), self.packet_bytes):
                packet = data[start : start + self.packet_bytes]
                free_at = max(free_at, trio.current_time()) + len(packet) / self.rate
                arrived += packet
                if ends.in_packet(packet):  # the viewer does nothing with half a frame
                    network.send_nowait((free_at + DELAY, arrived))
                    arrived = b""

    def _take(self, event: events.Event, nursery: trio.Nursery) -> None:
        if isinstance(event, events.Ping):
            self.pings += 1
            if self.answers:
                nursery.start_soon(self._send, self.client.protocol.send(event.response()))
        elif isinstance(event, events.TextMessage):
            self.client._content = str(self.client._content or "") + event.data
            if event.message_finished:
                message, self.client._content = json.loads(self.client._content), None
                self._read(message, nursery)

    def _read(self, message: dict[str, Any], nursery: trio.Nursery) -> None:
        if message["type"] == "video-frame":
            age = trio.current_time() - message["timestamp"] / 1000
            self.ages.setdefault(message["streamId"], []).append(age)
            seqs = self.seqs.setdefault(message["streamId"], [])
            seqs.append(message["seq"])
            self.layers.setdefault(message["streamId"], []).append(message.get("layer"))
            if self.acknowledges and len(seqs) % self.ack_every == 0:
                ack = {"type": "ack", "streamId": message["streamId"], "seq": message["seq"]}
                data = self.client.protocol.send(events.TextMessage(json.dumps(ack)))
                nursery.start_soon(self._send, data, self.ack_delay)

    async def _send(self, data: bytes, delay: float = 0.0) -> None:
        await trio.sleep(DELAY + delay)
        await self.client.send_bytes(data)


async def publish_deltas(phone: Client, seconds: float, fps: float) -> None:
    """A keyframe each second, of ten times the bytes of what builds on it."""
    for number in range(round(seconds * fps)):
        key = number % fps == 0
        frame = {"type": "video-frame", "keyframe": key, "data": "A" * (30_000 if key else 3_000)}
        await phone.send({**frame, "timestamp": round(trio.current_time() * 1000)})
        await trio.sleep(1 / fps)


async def publish(phones: list[Client], seconds: float, fps: float = FPS) -> None:
    data = base64.b64encode(bytes(FRAME_BYTES)).decode()
    for _ in range(round(seconds * fps)):
        for phone in phones:
            timestamp = round(trio.current_time() * 1000)
            await phone.send({"type": "video-frame", "timestamp": timestamp, "data": data})
        await trio.sleep(1 / fps)


async def watch(
    relay: MemoryRelay,
    viewer: DistantViewer,
    phones: list[Client],
    seconds: float = 30,
    fps: float = FPS,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phones, seconds, fps)
        nursery.cancel_scope.cancel()
    ledger = relay.hub.ledger()
    assert ledger.accepted == ledger.written + sum(ledger.dropped.values()) + ledger.waiting


def wire_time(rate: float) -> float:
    """Of one frame: as JSON, with its delay."""
    return FRAME_BYTES * 4 / 3 / rate + DELAY


@pytest.mark.parametrize("acknowledges", [False, True], ids=["pongs", "acks"])
@pytest.mark.parametrize("rate", [8_000, 30_000, 125_000])
async def test_frames_on_a_thin_link_are_as_old_as_the_link_makes_them(
    relay: MemoryRelay, rate: float, acknowledges: bool
) -> None:
    phone = await relay.phone()
    client = await (relay.viewer(window=4) if acknowledges else relay.viewer())
    viewer = DistantViewer(client, rate, acknowledges=acknowledges)
    await watch(relay, viewer, [phone])
    ages = viewer.ages["front-door"][3:]
    assert len(ages) >= 0.85 * 30 * min(FPS, 1 / wire_time(rate)) - 3
    assert max(ages[-3:]) < 1.25 * wire_time(rate) + 1 / FPS
    assert median(ages) < 1.15 * wire_time(rate) + 1 / FPS


async def test_a_link_that_is_free_waits_a_moment_for_a_newer_picture(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), 200_000)
    await watch(relay, viewer, [phone], 20, fps=25)
    ages = viewer.ages["front-door"][20:]
    # Nearly a period more without that: the picture that waits may have just missed the link.
    assert median(ages) < wire_time(200_000) + 0.5 / 25
    assert len(ages) >= 0.85 * 18 * 200_000 / (FRAME_BYTES * 4 / 3)


async def test_pictures_of_a_phone_that_takes_video_over_do_not_queue(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), 60_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish_deltas(phone, 3, FPS)
        await publish([await relay.phone()], 10)
        nursery.cancel_scope.cancel()
    ages = viewer.ages["front-door"][-20:]
    assert median(ages) < 1.15 * wire_time(60_000) + 1 / FPS


async def test_a_picture_that_no_newer_one_follows_is_sent_soon(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), DistantViewer(await relay.viewer(), 200_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 5, fps=25)
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    assert viewer.seqs["front-door"][-1] == 5 * 25


@pytest.mark.parametrize("answers", [True, False], ids=["pongs", "none"])
async def test_a_busy_relay_does_not_wait_for_newer_pictures_for_ever(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), 200_000, answers=answers)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    current_time = clock.current_time

    def look() -> float:
        clock.jump(0.0003)  # so much is done between two looks at the clock
        return current_time()

    data = base64.b64encode(bytes(FRAME_BYTES)).decode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(clock, "current_time", look)
        end = trio.current_time() + 4
        while (now := trio.current_time()) < end:
            timestamp = round(now * 1000)
            frame = json.dumps({"type": "video-frame", "timestamp": timestamp, "data": data})
            message = events.TextMessage(frame)
            await phone.send_bytes(b"".join(phone.protocol.send(message) for _ in range(4)))
        nursery.cancel_scope.cancel()
    assert len(viewer.ages["front-door"]) >= 0.8 * 4 * 200_000 / (FRAME_BYTES * 4 / 3)


async def test_a_viewer_that_answers_no_ping_gets_what_the_network_takes(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), 30_000, answers=False)
    await watch(relay, viewer, [phone])
    assert relay.hub.ledger().written >= 30 * FPS - MAX_UNTRIED_SECONDS * FPS // 2
    assert viewer.ages["front-door"][-1] > 10


async def test_streams_share_a_thin_link(relay: MemoryRelay) -> None:
    phones = [await relay.phone(f"s{number}") for number in range(3)]
    client = await relay.login()
    for number in range(3):
        request = {"type": "subscribe", "streamId": f"s{number}", "consumes": ["video-frame"]}
        await client.ask(request)
    viewer = DistantViewer(client, 60_000)
    await watch(relay, viewer, phones)
    counts = [len(viewer.ages[f"s{number}"]) for number in range(3)]
    assert sum(counts) >= 0.8 * 30 / wire_time(60_000)
    assert max(counts) - min(counts) <= 0.2 * max(counts)
    for ages in viewer.ages.values():
        assert median(ages[3:]) < 1.25 * wire_time(60_000) + 1 / FPS


async def test_a_viewer_on_a_fast_link_is_written_to_without_being_asked(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), 10_000_000)
    await watch(relay, viewer, [phone], 3)
    (consumer,) = relay.hub._streams["front-door"].watchers
    assert consumer.obstacles == 0
    before = consumer.written_at_once, viewer.pings
    await watch(relay, viewer, [phone], 10)
    assert len(viewer.ages["front-door"]) >= 13 * FPS - 2
    assert viewer.pings - before[1] <= 41


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("ack_every", [2, 3])
async def test_acknowledgements_may_be_of_several_frames(
    relay: MemoryRelay, ack_every: int, answers: bool
) -> None:
    phone, client = await relay.phone(), await relay.viewer(window=8)
    viewer = DistantViewer(client, 30_000, answers, acknowledges=True, ack_every=ack_every)
    await watch(relay, viewer, [phone], fps=1)
    assert len(viewer.ages["front-door"]) == 30
    assert max(viewer.ages["front-door"]) < 2 * wire_time(30_000)


async def test_acknowledgements_that_end_hold_nothing_back_for_long(relay: MemoryRelay) -> None:
    phone, client = await relay.phone(), await relay.viewer(window=1024)
    viewer = DistantViewer(client, 30_000, acknowledges=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 10, fps=1)
        viewer.acknowledges = False
        await publish([phone], 10, fps=1)
        nursery.cancel_scope.cancel()
    assert len(viewer.ages["front-door"]) >= 19
    assert max(viewer.ages["front-door"]) < 0.7 + 2 * wire_time(30_000)


def subscribe(stream_id: str, **terms: Any) -> dict[str, Any]:
    return {"type": "subscribe", "streamId": stream_id, "consumes": ["video-frame"], **terms}


async def test_a_new_subscription_waits_for_no_answer_that_the_old_one_wanted(
    relay: MemoryRelay,
) -> None:
    phone, client = await relay.phone(), await relay.login()
    await client.ask(subscribe("front-door", window=4))
    viewer = DistantViewer(client, 30_000, acknowledges=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 10, fps=1)
        await publish([phone], 0.2, fps=5)
        await client.send({"type": "unsubscribe", "streamId": "front-door"})
        await trio.sleep(0.8)
        await client.send(subscribe("front-door", window=4))
        await trio.sleep(1)
        before = len(viewer.ages["front-door"])  # with the one that a newcomer begins with
        await publish([phone], 5, fps=1)
        nursery.cancel_scope.cancel()
    assert len(viewer.ages["front-door"]) == before + 5
    assert max(viewer.ages["front-door"][before:]) < 1.5 * wire_time(30_000)


async def test_acknowledgements_that_come_late_bound_the_window_alone(relay: MemoryRelay) -> None:
    """A viewer that decodes slowly has no slow link."""
    phone, client = await relay.phone(), await relay.viewer(window=4)
    viewer = DistantViewer(client, 10_000_000, acknowledges=True, ack_delay=0.1)
    await watch(relay, viewer, [phone], 20, fps=25)
    assert len(viewer.ages["front-door"]) >= 0.9 * 20 * 25
    assert median(viewer.ages["front-door"]) < 0.03


async def watch_three(relay: MemoryRelay) -> tuple[list[Client], DistantViewer, list[Consumer]]:
    """Three phones, and a viewer with a fast link that watches them all."""
    phones = [await relay.phone(f"s{number}") for number in range(3)]
    client = await relay.login()
    for number in range(3):
        await client.ask(subscribe(f"s{number}"))
    consumers = [each for n in range(3) for each in relay.hub._streams[f"s{n}"].watchers]
    return phones, DistantViewer(client, 10_000_000), consumers


async def test_no_stream_goes_unasked_over_a_link_that_is_calm_no_more(relay: MemoryRelay) -> None:
    phones, viewer, consumers = await watch_three(relay)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phones, 3)
        assert [each.obstacles for each in consumers] == [0, 0, 0]
        viewer.rate = 20_000
        await publish(phones, MAX_CALM_PROBE_INTERVAL + 0.25)  # until an answer is missing
        assert [each.obstacles for each in consumers] == [PACED] * 3
        await publish(phones, 20)
        nursery.cancel_scope.cancel()
    for seqs in viewer.seqs.values():
        assert seqs == sorted(seqs)


async def test_no_stream_is_asked_any_more_when_a_viewer_answers_no_more(
    relay: MemoryRelay,
) -> None:
    phones, viewer, consumers = await watch_three(relay)
    pacer = consumers[0].outlet.pacer
    assert pacer is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish(phones, 3)
        viewer.answers = False
        for number in range(MAX_UNANSWERED_PROBES):
            pacer.frame_sent(-number, 1000, trio.current_time())
        await publish(phones, 1)
        assert [each.obstacles for each in consumers] == [PACED] * 3
        await publish(phones, 2 * MAX_ANSWER_DELAY)
        assert [each.obstacles for each in consumers] == [0] * 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("rate", [150_000, 1_000_000])
async def test_where_frames_build_on_one_another_none_is_left_out_behind_a_keyframe(
    relay: MemoryRelay, rate: float
) -> None:
    """The keyframe takes up to 0.2 s, and five frames come meanwhile; 110 kB/s are sent."""
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), rate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish_deltas(phone, 20, 25)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert viewer.seqs["front-door"] == list(range(1, 501))
    assert max(viewer.ages["front-door"]) < 40_000 / rate + 0.1


@pytest.mark.parametrize("discardable", [False, True])
async def test_frames_that_come_together_and_build_on_one_another_all_go_out_behind_a_ping(
    relay: MemoryRelay, discardable: bool
) -> None:
    """A ping leaves a little earlier than the frame behind it, which others do not wait for."""
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), 37_500)
    built_on = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for number in range(100):
            frames = []
            for turn in range(4):
                frame = {"keyframe": number == turn == 0, "data": "A" * 600}
                frame["discardable"] = discardable and turn % 2 == 0 and number > 0
                if not frame["discardable"]:
                    built_on.append(4 * number + turn + 1)
                timestamp = round(trio.current_time() * 1000)
                frames.append({"type": "video-frame", "timestamp": timestamp, **frame})
            await phone.send_bytes(b"".join(map(message, frames)))
            await trio.sleep(0.12)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert set(built_on) <= set(viewer.seqs["front-door"])


async def test_where_frames_build_on_one_another_little_queues_on_a_thin_link(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), 50_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish_deltas(phone, 30, 25)
        nursery.cancel_scope.cancel()
    assert max(viewer.ages["front-door"][-50:]) < 1.5
    assert len(viewer.ages["front-door"]) > 60


@pytest.mark.parametrize("rate", [8_000, 5_000])
async def test_frames_that_take_minutes_behind_a_deep_queue_arrive_whole(
    relay: MemoryRelay, rate: float
) -> None:
    """The viewer has nothing to answer for longer than silence may last, and is alive."""
    relay.timing = evolve(relay.timing, idle_timeout=40.0)
    phone = await relay.phone()
    viewer = DistantViewer(await relay.viewer(), rate)
    data = base64.b64encode(bytes(256 * 1024)).decode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        for _ in range(40):
            timestamp = round(trio.current_time() * 1000)
            await phone.send({"type": "video-frame", "timestamp": timestamp, "data": data})
            await trio.sleep(10)
        nursery.cancel_scope.cancel()
    ages = viewer.ages["front-door"]
    assert len(ages) >= 400 // (len(data) / rate + 10) - 1
    assert max(ages) < 1.3 * len(data) / rate + 10
