"""Nodes that have proved who they are, and then say what makes no sense: their links may end, and
nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any

import msgpack
import pytest
import trio
from structlog.testing import capture_logs

from relay.model.cluster import LiveStream
from relay.protocol.messages import StreamStatus
from relay.transport import wire
from tests.unit.cluster.frames import frame, numbers, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster
from tests.unit.cluster.memory_tables import LiveRow
from tests.unit.hostile import ODD, masked_frame
from tests.unit.memory import MemoryLink

pytestmark = pytest.mark.mock_clock

HELLO: dict[str, Any] = {"type": "hello", "version": 1}
CARRY = {"type": "carry", "streamId": "front-door", "request": 1, "viewers": 1}
STATE = {
    "type": "stream",
    "streamId": "lure",
    "request": 1,
    "term": 1,
    "epoch": 10,
    "status": "streaming",
    "ownerId": "ann",
    "seq": 0,
    "path": ["x"],
}
FRAME = {
    "type": "video-frame",
    "streamId": "lure",
    "seq": 1,
    "timestamp": 1,
    "receivedAt": 1,
    "data": b"picture",
}


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """No traceback is logged."""
    with capture_logs() as logs:
        yield
    assert [each for each in logs if each.get("exc_info") or each["log_level"] == "error"] == []


async def send_all(link: MemoryLink, data: bytes) -> None:
    try:
        while data:
            with trio.move_on_after(1) as waiting:
                await link.wait_writable()
            if waiting.cancelled_caught:
                return
            data = data[link.send(data) :]
    except OSError:
        pass  # it was closed


def asked(message: Any) -> bytes:
    return masked_frame(wire.BINARY, msgpack.packb(message))


def said(message: Any) -> bytes:
    return wire.message(wire.BINARY, msgpack.packb(message))


def odd_messages(random: Random, *valid: dict[str, Any]) -> list[Any]:
    """Messages that are nearly right."""
    found: list[Any] = [b"", {}, [], 1, None, {"type": "nothing"}, {"type": "hello"}]
    for message in valid:
        for name in message:
            odd = [each for each in ODD if not isinstance(each, str) or each.isprintable()]
            found += [{**message, name: value} for value in random.sample(odd, 6)]
            found.append({key: value for key, value in message.items() if key != name})
    return [each for each in found if is_packable(each)]


def is_packable(message: Any) -> bool:
    try:
        msgpack.packb(message)
    except Exception:  # noqa: BLE001 (whatever msgpack says)
        return False
    return True


async def is_well(cluster: MemoryCluster, phone: Any, viewer: Any) -> None:
    """A phone at `a` still reaches its viewer at `b`."""
    await received(viewer, 0.01)
    await trio.sleep(0.5)
    await phone.send(frame(b"well"))
    assert len(await numbers(viewer)) == 1
    assert set(cluster["a"].links.edges) <= {"b", "x"}


async def test_odd_requests_of_an_edge_end_no_more_than_its_link(pair: MemoryCluster) -> None:
    phone, viewer = await pair["a"].phone(), await pair["b"].viewer()
    stranger = pair.join_as("x")
    requests: list[dict[str, Any]] = [
        CARRY,
        {"type": "drop", "streamId": "front-door"},
        {"type": "ask", "id": 1, "what": "figures", "maxBytes": 1000},
        {"type": "keyframe-wanted", "streamId": "front-door"},
        {"type": "unencodable", "streamId": "front-door"},
        {"type": "ping"},
    ]
    for message in odd_messages(Random(1), *requests):
        link = pair.open_edge(stranger, "a")
        await send_all(link, asked(HELLO) + asked(CARRY) + asked(message))
        await trio.sleep(0.001)
        assert pair["a"].stream().viewers >= 0
    for told in only("status", await received(phone, 3)):
        assert 0 <= told["consumers"] <= 10**9 + 1
    await is_well(pair, phone, viewer)


@pytest.mark.parametrize("viewers", [0, -1, -(10**9), 10**9 + 1, 2**63])
async def test_absurd_numbers_of_viewers_are_no_request(pair: MemoryCluster, viewers: int) -> None:
    phone = await pair["a"].phone()
    link = pair.open_edge(pair.join_as("x"), "a")
    await send_all(link, asked(HELLO) + asked({**CARRY, "viewers": viewers}))
    assert only("status", await received(phone, 3)) == []
    assert link.incoming.ended


async def test_ten_thousand_layers_are_no_request(pair: MemoryCluster) -> None:
    await pair["a"].phone()
    link = pair.open_edge(pair.join_as("x"), "a")
    layers = [str(number) for number in range(10_000)]
    await send_all(link, asked(HELLO) + asked({**CARRY, "layers": layers}))
    await trio.sleep(0.1)
    assert link.incoming.ended


@pytest.mark.parametrize("side", ["edge", "origin"])
async def test_garbage_ends_no_more_than_the_link(pair: MemoryCluster, side: str) -> None:
    phone, viewer = await pair["a"].phone(), await pair["b"].viewer()
    stranger, random = pair.join_as("x"), Random(2)
    for _ in range(40):
        garbage = random.randbytes(random.choice([1, 10, 1000]))
        if random.random() < 0.5:
            garbage = masked_frame(2, garbage) if side == "edge" else wire.message(2, garbage)
        if side == "edge":
            await send_all(pair.open_edge(stranger, "a"), garbage)
            await trio.sleep(0.001)
        else:
            await lure(pair, garbage)
    await is_well(pair, phone, viewer)


async def lure(pair: MemoryCluster, *words: bytes, packs: bool = False) -> list[dict[str, Any]]:
    """Have `b` ask an impostor for a stream, which answers so; returns what its viewer gets."""
    stranger = pair.join_as("x")
    done = trio.Event()

    async def answer(link: MemoryLink) -> None:
        await send_all(link, said(HELLO) + b"".join(words))
        await trio.sleep(0.01)
        link.close()
        done.set()

    pair.impostors["x"] = answer
    row = LiveStream("lure", "ann", "x", 1, 10, StreamStatus.STREAMING)
    pair.tables.rows["lure"] = LiveRow(row, 1, 0.0)
    pair["b"].directory.nodes["x"] = stranger
    viewer = await pair["b"].relay.login(msgpack=packs)
    await viewer.ask({"type": "subscribe", "streamId": "lure", "consumes": ["video-frame"]})
    with trio.fail_after(5):
        await done.wait()
    messages = await received(viewer, 0.01)
    del pair.tables.rows["lure"]
    pair.tables.tell_streams(["lure"])
    viewer.link.close()
    await trio.sleep(0.5)
    left = list(pair["b"].links.origins)
    assert left == ["a"] or not left
    return messages


async def test_an_impostor_who_keeps_the_rules_is_a_node(pair: MemoryCluster) -> None:
    for _ in range(2):
        messages = await lure(pair, said(STATE), said(FRAME))
        assert [each["seq"] for each in only("video-frame", messages)] == [1]


async def test_odd_answers_of_an_origin_end_no_more_than_its_link(pair: MemoryCluster) -> None:
    phone, viewer = await pair["a"].phone(), await pair["b"].viewer()
    answers: list[dict[str, Any]] = [
        STATE,
        FRAME,
        {"type": "moved", "streamId": "lure", "request": 1, "term": 5, "nodeId": "b"},
        {"type": "taken", "streamId": "lure", "term": 1},
        {"type": "lost", "streamId": "lure"},
        {"type": "answer", "id": 1, "body": b"{}"},
        {"type": "leaving"},
        {"type": "pong"},
    ]
    odd = odd_messages(Random(3), *answers)
    for start in range(0, len(odd), 4):
        for message in odd[start : start + 4]:
            await lure(pair, said(STATE), said(message), said(FRAME))
    await is_well(pair, phone, viewer)


@pytest.mark.parametrize(
    "data", [5, None, "text", [1], {"a": 1}, b""], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("metadata", [None, 1, [1], {"a": {}}])
async def test_frames_with_odd_contents_reach_nobody_as_something_else(
    pair: MemoryCluster, data: Any, metadata: Any
) -> None:
    phone, viewer = await pair["a"].phone(), await pair["b"].viewer()
    odd = {**FRAME, "data": data, "metadata": metadata}
    as_text = {**odd, "data": "A" if data == b"" else data}
    in_json = wire.message(wire.TEXT, json.dumps(as_text).encode())
    for words, packs in product((said(odd), in_json), (False, True)):
        for message in only("video-frame", await lure(pair, said(STATE), words, packs=packs)):
            assert isinstance(message["data"], bytes if packs else str)
            assert isinstance(message.get("metadata", {}), dict)
    await is_well(pair, phone, viewer)


async def test_frames_of_streams_that_nobody_wants_are_ignored(pair: MemoryCluster) -> None:
    phone, viewer = await pair["a"].phone(), await pair["b"].viewer()
    others = [said({**FRAME, "streamId": f"s{number}"}) for number in range(100)]
    await lure(pair, *others, said({**STATE, "streamId": "unknown"}))
    assert pair["b"].relay.hub.find("unknown") is None
    assert pair["b"].metrics.frames["received"] == 0
    await is_well(pair, phone, viewer)


async def test_a_second_link_of_a_node_replaces_the_first(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    stranger = pair.join_as("x")
    links = []
    for _ in range(3):
        link = pair.open_edge(stranger, "a")
        links.append(link)
        await send_all(link, asked(HELLO) + asked(CARRY))
        await trio.sleep(0.01)
    assert [link.incoming.ended for link in links] == [True, True, False]
    assert len(pair["a"].stream().edges) == 1
    assert only("status", await received(phone, 3))[-1]["consumers"] == 1


async def test_a_message_that_does_not_end_takes_no_memory(pair: MemoryCluster) -> None:
    await pair["a"].phone()
    link = pair.open_edge(pair.join_as("x"), "a")
    await send_all(link, asked(HELLO) + masked_frame(2, os.urandom(200_000))[:150_000])
    await trio.sleep(0.1)
    assert link.incoming.ended
