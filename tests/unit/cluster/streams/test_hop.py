"""Frames on a link that is slow, stalls or breaks: what waits is bounded in number, bytes and time,
and each frame is counted."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from relay.connection.context import Timing
from relay.hub.edge_consumer import (
    MAX_LINK_BYTES,
    MAX_RECENT_BYTES,
    MAX_RECENT_FRAMES,
    MAX_RECENT_SECONDS,
    EdgeConsumer,
    LinkBytes,
    RecentQueue,
)
from relay.hub.frames.frame import Frame
from relay.protocol.codec import JSON_CODEC
from relay.protocol.messages import VideoFrame
from relay.transport.budget import Budget
from relay.transport.pacing import MAX_UNTRIED_SECONDS
from tests.unit.cluster.frames import frame, numbers, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster, open_cluster
from tests.unit.memory import Client


def frame_of(number: int, at: float) -> Frame:
    message = VideoFrame(data=msgspec.Raw(b'""'))
    return Frame("front-door", number, 0, at, message, JSON_CODEC)


sizes = st.sampled_from([1, 1000, 200_000, 600_000, 1 << 20, 5 << 20, 15 << 20])


@given(st.lists(st.tuples(st.integers(0, 3), sizes, st.floats(0, 0.2)), max_size=40))
def test_what_waits_is_bounded_in_whatever_order_frames_come_and_go(
    steps: list[tuple[int, int, float]],
) -> None:
    link, now, number = LinkBytes(), 0.0, 0
    queues = [RecentQueue(link) for _ in range(3)]
    waiting: list[list[tuple[int, int, float]]] = [[], [], []]
    for which, size, pause in steps:
        now += pause
        if which == 3:
            for queue, kept in zip(queues, waiting, strict=True):
                taken = queue.take()
                assert (taken is None) is not bool(kept)
                if taken is not None:
                    assert taken.seq == kept.pop(0)[0]
            continue
        queue, kept = queues[which], waiting[which]
        if not queue.has_room_for(size, now):
            assert kept
            while queue.take() is not None:
                kept.pop()
        number += 1
        queue.add(frame_of(number, now), size)
        kept.append((number, size, now))
        assert queue.count == len(kept) <= MAX_RECENT_FRAMES
        assert len(kept) == 1 or sum(each[1] for each in kept) <= MAX_RECENT_BYTES
        assert now - kept[0][2] <= MAX_RECENT_SECONDS
        assert queue.since == kept[0][2]
        others = sum(max(each[1] for each in one) for one in waiting if one)
        assert link.waiting == sum(each[1] for one in waiting for each in one)
        assert link.waiting <= MAX_LINK_BYTES + others
    for queue in queues:
        while queue.take() is not None:
            pass
    assert link.waiting == 0


STEPS = ["frame", "frame", "frame", "burst", "large", "pause", "wait", "stall", "go_on", "slow"]


@given(st.integers(0, 2**32), st.lists(st.sampled_from([*STEPS, "cut"]), max_size=50))
def test_each_frame_of_a_hop_is_counted(seed: int, steps: list[str]) -> None:
    trio.run(hop, seed, steps, clock=MockClock(autojump_threshold=0))


async def hop(seed: int, steps: list[str]) -> None:
    random, sent = Random(seed), list[dict[str, Any]]()
    async with open_cluster("a", "b", capacity=100_000) as pair:
        pair["a"].relay.timing = Timing(10.0, 25.0, 120.0, 4 << 20)
        pair["a"].relay.budget = Budget(64 << 20)
        phone = await pair["a"].phone()
        viewer = await pair["b"].viewer(capacity=64 << 20)
        for step in steps:
            await take_step(pair, phone, step, random, sent)
            edges_add_up(pair)
        pair.calls[-1].ours.rate = None
        pair.calls[-1].ours.go_on()
        await trio.sleep(3)
        await send(phone, sent, 10, keyframe=True)
        await trio.sleep(1)
        edges_add_up(pair)
        got = only("video-frame", await received(viewer, 1))
        await is_sensible(got, sent)
        (producer,) = pair["b"].links.origins["a"].carried
        (edge,) = pair["a"].stream().edges
        if "cut" not in steps:
            assert producer.received + producer.lost == edge.ledger.accepted == len(sent)
            assert pair["b"].relay.hub.totals.frames.accepted == producer.received
        for node in (pair["a"], pair["b"]):
            totals = node.relay.hub.totals
            frames = totals.frames
            assert frames.accepted == frames.written + frames.dropped.total() + totals.waiting
        assert pair["a"].relay.hub.totals.frames.accepted == 0
        assert pair["a"].links.totals.waiting == 0


async def send(phone: Client, sent: list[dict[str, Any]], size: int, **fields: Any) -> None:
    message = frame(b"x" * size, **fields)
    sent.append(message)
    await phone.send(json.dumps(message))
    await trio.sleep(0.001)


async def take_step(
    pair: MemoryCluster, phone: Client, step: str, random: Random, sent: list[dict[str, Any]]
) -> None:
    match step:
        case "frame" | "burst":
            for _ in range(1 if step == "frame" else 12):
                kind = random.choice([{}, {"keyframe": True}, *[{"keyframe": False}] * 4])
                if kind.get("keyframe") is False and random.random() < 0.3:
                    kind = {**kind, "discardable": True}
                await send(phone, sent, random.choice([10, 5000, 60_000]), **kind)
        case "large":
            await send(phone, sent, 1_200_000, keyframe=random.choice([True, None, False]))
        case "pause" | "wait":
            await trio.sleep(0.03 if step == "pause" else 0.3)
        case "stall":
            pair.calls[-1].ours.stall()
        case "go_on":
            pair.calls[-1].ours.go_on()
        case "slow":
            pair.calls[-1].ours.rate = random.choice([None, 1e5, 1e6])
        case "cut":
            pair.cut()
            await trio.sleep(0.5)


def edges_add_up(pair: MemoryCluster) -> None:
    for edge in pair["a"].stream().edges:
        assert isinstance(edge, EdgeConsumer)
        ledger = edge.ledger
        assert ledger.accepted == ledger.written + ledger.dropped.total() + edge.waiting_frames
        assert edge.waiting_frames <= MAX_RECENT_FRAMES + 1  # one is perhaps being encoded
        assert pair["a"].links.totals.waiting == edge.waiting_frames


async def is_sensible(got: list[dict[str, Any]], sent: list[dict[str, Any]]) -> None:
    """Each frame came once, in its order, and behind what it builds on."""
    for before, after in pairwise([{"seq": 0}, *got]):
        assert after["seq"] > before["seq"]
        missed = sent[before["seq"] : after["seq"] - 1]
        if after.get("keyframe") is False:
            assert all(each.get("discardable") for each in missed)
    for each in got:
        assert each["data"] == sent[each["seq"] - 1]["data"]


@pytest.mark.mock_clock
async def test_an_edge_that_is_late_for_50_ms_now_and_then_misses_nothing() -> None:
    async with open_cluster("a", "b") as pair:
        streams = [f"s{number}" for number in range(20)]
        phones = [await pair["a"].phone(each) for each in streams]
        viewers = [await pair["b"].viewer(each, capacity=8 << 20) for each in streams]
        link = pair.call("b", "a").ours

        async def be_late() -> None:
            while True:
                await trio.sleep(0.15)
                link.stall()
                await trio.sleep(0.05)
                link.go_on()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_late)
            for number in range(30):
                for phone in phones:
                    await phone.send(frame(b"x" * 12_000))
                # Nobody reads here, and an answer to the first frame is waited for.
                await trio.sleep(1 / 30 if number else MAX_UNTRIED_SECONDS + 0.1)
            nursery.cancel_scope.cancel()
        link.go_on()
        for viewer in viewers:
            assert await numbers(viewer, 0.2) == list(range(1, 31))


@pytest.mark.mock_clock
async def test_frames_stay_fresh_at_an_edge_that_reads_a_quarter() -> None:
    async with open_cluster("a", "b") as pair:
        streams = [f"s{number}" for number in range(20)]
        phones = [await pair["a"].phone(each, msgpack=True) for each in streams]
        viewers = [await pair["b"].viewer(each, capacity=8 << 20, msgpack=True) for each in streams]
        pair.call("b", "a").ours.rate = 20 * 30 * 32_000 / 4
        begun, ages = trio.current_time(), list[float]()

        async def watch(viewer: Client) -> None:
            while True:
                message = await viewer.receive_type("video-frame")
                content = message["data"].partition(b" ")[0]
                if float(content) > begun + 0.5:  # by then it is known how slow the link is
                    ages.append(trio.current_time() - float(content))

        async with trio.open_nursery() as nursery:
            for viewer in viewers:
                nursery.start_soon(watch, viewer)
            for _ in range(45):
                for phone in phones:
                    content = b"%f " % trio.current_time() + b"x" * 32_000
                    await phone.send(frame(content, phone))
                await trio.sleep(1 / 30)
            nursery.cancel_scope.cancel()
        assert len(ages) > 100
        assert max(ages) <= 0.25
