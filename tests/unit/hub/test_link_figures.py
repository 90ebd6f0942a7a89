"""What operators are told of the links to viewers, in `/figures` and `/metrics`."""

from __future__ import annotations

import json
import weakref
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.unit.hub.test_paced_viewers import (
    DELAY,
    FRAME_BYTES,
    PACKET_BYTES,
    DistantViewer,
    publish,
    publish_deltas,
    subscribe,
    watch,
    wire_time,
)
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

FAST = 10_000_000
PACKET_SECONDS = 0.004
"""The most time of one packet on the link: a ping may be in one with the beginning of a frame."""


def distant(client: Client, rate: float, **options: Any) -> DistantViewer:
    packet_bytes = min(PACKET_BYTES, round(rate * PACKET_SECONDS))
    return DistantViewer(client, rate, packet_bytes=packet_bytes, **options)


def links(relay: MemoryRelay, stream_id: str = "front-door") -> list[dict[str, Any] | None]:
    """The links of a stream's consumers, as they are sent."""
    streams = json.loads(msgspec.json.encode(relay.hub.figures()))["streams"]
    (stream,) = (each for each in streams if each["streamId"] == stream_id)
    return [each["link"] for each in stream["consumers"]]


@pytest.mark.parametrize("rate", [8_000, 30_000, 125_000])
async def test_a_thin_link_is_as_it_was_measured(relay: MemoryRelay, rate: float) -> None:
    phone = await relay.phone()
    await watch(relay, distant(await relay.viewer(), rate), [phone], 15)
    (link,) = links(relay)
    assert link is not None
    assert link["bytesPerSecond"] == pytest.approx(rate, rel=0.2)
    assert link["roundTripSeconds"] == pytest.approx(2 * DELAY, abs=0.01)
    assert "calm" not in link


async def test_what_is_under_way_is_a_frame_and_then_nothing(relay: MemoryRelay) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    viewer = distant(client, 30_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 10, fps=1)
        await publish([phone], 0.1)
        (link,) = links(relay)
        assert link is not None
        assert FRAME_BYTES * 4 / 3 < link["bytesUnderWay"] < FRAME_BYTES * 4 / 3 + 500
        await trio.sleep(2)
        (link,) = links(relay)
        assert link is not None
        assert link["bytesUnderWay"] == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("rate", [2_000_000, FAST])
async def test_of_a_calm_link_only_the_round_trip_is_known(relay: MemoryRelay, rate: float) -> None:
    phone = await relay.phone()
    await watch(relay, distant(await relay.viewer(), rate), [phone], 5)
    (link,) = links(relay)
    assert link == {"roundTripSeconds": pytest.approx(2 * DELAY, abs=0.01), "calm": True}


async def test_nothing_is_said_of_a_link_before_its_first_answer(relay: MemoryRelay) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    viewer = distant(client, 30_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        assert links(relay) == [None]
        await phone.send({"type": "video-frame", "data": "A" * 3_000})
        assert links(relay) == [None]
        await trio.sleep(2 * DELAY + 0.01)  # the ping ahead of the frame is answered
        assert links(relay) != [None]
        nursery.cancel_scope.cancel()


async def test_nothing_is_said_of_a_link_whose_peer_answers_no_ping(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await watch(
        relay,
        distant(await relay.viewer(), 30_000, answers=False),
        [phone],
        5,
    )
    assert links(relay) == [None]
    assert sum(relay.metrics.links.frame_delivery.counts) == 0
    assert sum(relay.metrics.links.round_trip.counts) == 0


async def test_nothing_is_said_of_a_link_any_more_whose_peer_no_longer_answers(
    relay: MemoryRelay,
) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    viewer = distant(client, 30_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 5, fps=1)
        assert links(relay) != [None]
        viewer.answers = False
        await publish([phone], 20, fps=1)
        assert links(relay) == [None]
        nursery.cancel_scope.cancel()


async def test_nothing_is_said_of_a_link_on_which_no_frame_may_be_left_out(
    relay: MemoryRelay,
) -> None:
    phone, client = await relay.phone(), await relay.viewer(policy="lossless")
    await watch(relay, distant(client, FAST), [phone], 2)
    assert links(relay) == [None]


async def test_frames_of_a_few_bytes_tell_no_bandwidth(relay: MemoryRelay) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    viewer = distant(client, 10_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 2, fps=1)
        await trio.sleep(2)
        (link,) = links(relay)
        assert link is not None
        assert link["bytesPerSecond"] == pytest.approx(10_000, rel=0.2)
        await publish([phone], 1, fps=1)
        await trio.sleep(wire_time(10_000) + 2 * DELAY - 1)
        for _ in range(6):
            await phone.send({"type": "video-frame", "data": "AAAA"})
            await trio.sleep(0.14)
        (link,) = links(relay)
        assert link is not None
        assert "calm" not in link
        assert "bytesPerSecond" not in link
        nursery.cancel_scope.cancel()


async def test_subscriptions_of_one_connection_have_the_same_link(relay: MemoryRelay) -> None:
    phones = [await relay.phone(f"s{number}") for number in range(2)]
    client = await relay.login()
    for number in range(2):
        await client.ask(subscribe(f"s{number}"))
    await watch(relay, distant(client, 60_000), phones, 5)
    assert links(relay, "s0") == links(relay, "s1") != [None]


async def test_what_is_known_of_a_link_ends_with_its_connection(relay: MemoryRelay) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    await watch(relay, distant(client, 30_000), [phone], 5)
    pacer = relay.connections[-1].peer.stream.outlet.pacer
    assert pacer is not None
    left = weakref.ref(pacer)
    del pacer
    relay.connections.clear()
    client.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert links(relay) == []
    assert left() is None


async def test_histograms_have_the_round_trips_and_when_frames_were_answered(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    viewer = distant(await relay.viewer(), 125_000)
    await watch(relay, viewer, [phone], 30, fps=1)
    delivery, round_trip = relay.metrics.links.frame_delivery, relay.metrics.links.round_trip
    frames, trips = sum(delivery.counts), sum(round_trip.counts)
    assert frames >= 28
    assert delivery.total / frames == pytest.approx(wire_time(125_000) + DELAY, abs=0.01)
    assert trips > 5
    assert round_trip.total / trips == pytest.approx(2 * DELAY, abs=0.01)


async def test_few_frames_on_a_fast_link_are_in_the_histograms(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), distant(await relay.viewer(), FAST)
    await watch(relay, viewer, [phone], 3)
    delivery = relay.metrics.links.frame_delivery
    before = sum(delivery.counts)
    await watch(relay, viewer, [phone], 10)
    assert 4 <= sum(delivery.counts) - before <= 41  # one in 0.25 to 2 s, of 100


async def test_each_frame_that_one_answer_confirms_is_in_the_histogram(
    relay: MemoryRelay,
) -> None:
    """Deltas go without waiting for answers, and are as old as what queues before them."""
    phone, client = await relay.phone(), await relay.viewer()
    viewer = distant(client, 150_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish_deltas(phone, 5, 25)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    delivery = relay.metrics.links.frame_delivery
    answered = sum(delivery.counts)
    assert 100 <= answered <= len(viewer.ages["front-door"]) == 125
    mean = sum(viewer.ages["front-door"]) / 125
    assert delivery.total / answered == pytest.approx(mean + DELAY, abs=0.05)


async def test_one_answer_that_is_late_by_far_tells_no_bandwidth(relay: MemoryRelay) -> None:
    phone, client = await relay.phone(), await relay.viewer()
    viewer = distant(client, 30_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.run)
        await publish([phone], 10, fps=1)
        viewer.rate = 10_000
        await publish([phone], 1, fps=1)
        await trio.sleep(1)
        (link,) = links(relay)
        assert link is not None
        assert "bytesPerSecond" not in link
        await publish([phone], 3, fps=1)
        await trio.sleep(1)
        (link,) = links(relay)
        assert link is not None
        assert link["bytesPerSecond"] == pytest.approx(10_000, rel=0.2)
        nursery.cancel_scope.cancel()
