"""The rows of a node in the tables that all nodes share: they say what it has, whatever goes wrong
on the way."""

from __future__ import annotations

import pytest
import trio

from tests.unit.cluster.frames import VIEW, frame, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster
from tests.unit.memory import BOB, Client

pytestmark = pytest.mark.mock_clock

REGISTER = {"type": "register", "streamId": "front-door"}
LISTEN = {**VIEW, "consumes": ["alert"]}


def status_of(cluster: MemoryCluster, stream_id: str = "front-door") -> str | None:
    row = cluster.tables.rows.get(stream_id)
    return None if row is None else row.stream.status.value


async def leave(client: Client) -> None:
    client.link.close()
    await trio.sleep(0.001)


async def test_a_status_that_changed_while_the_tables_were_away_is_written(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    pair["a"].access.away = True
    await phone.send(frame(b"1"))
    await trio.sleep(3)
    pair["a"].access.away = False
    await trio.sleep(2)
    assert status_of(pair) == "streaming"


async def test_an_end_while_the_tables_were_away_is_written(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    pair["a"].access.away = True
    await leave(phone)
    await trio.sleep(8)
    pair["a"].access.away = False
    await trio.sleep(2)
    assert pair.tables.rows == {}
    assert pair["a"].held.rows == {}


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.04, 0.06, 0.1, 0.2, 0.3, 0.4])
async def test_a_stream_that_is_registered_while_its_end_is_written_keeps_its_row(
    pair: MemoryCluster, pause: float
) -> None:
    phone = await pair["a"].phone()
    other = await pair["a"].phone("side-door")
    second = await pair["a"].relay.login()
    pair["a"].access.delay = 0.1
    await phone.send({**REGISTER, "streamId": "back-door"})
    await phone.receive_type("success")
    await other.send(frame(b"1"))  # written together with the end
    await trio.sleep(pause)
    await second.send(REGISTER)
    await trio.sleep(3)
    pair["a"].access.delay = 0.0
    await trio.sleep(3)
    assert pair["a"].stream().live
    row = pair.tables.rows["front-door"].stream
    assert (row.node_id, row.epoch) == ("a", pair["a"].stream().epoch)
    assert "front-door" in pair["a"].held.rows


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.15, 0.25])
async def test_a_phone_that_leaves_before_the_answer_leaves_no_row(
    pair: MemoryCluster, pause: float
) -> None:
    pair["a"].access.delay = 0.1
    phone = await pair["a"].relay.login()
    await phone.send(REGISTER)
    await trio.sleep(pause)
    await leave(phone)
    await trio.sleep(10)
    assert pair.tables.rows == {}
    assert pair["a"].held.rows == {}


async def test_a_claim_whose_answer_is_lost_leaves_no_row(pair: MemoryCluster) -> None:
    phone = await pair["a"].relay.login()
    pair["a"].access.loses_answers = True
    assert (await phone.ask(REGISTER))["code"] == "STORE_UNAVAILABLE"
    assert pair.tables.rows
    pair["a"].access.loses_answers = False
    await trio.sleep(10)
    assert pair.tables.rows == {}


async def test_a_take_over_whose_answer_is_lost_leaves_no_row(pair: MemoryCluster) -> None:
    phone = await pair["b"].phone()
    await pair["a"].viewer()
    other = await pair["a"].relay.login()
    pair["a"].access.loses_answers = True
    assert (await other.ask(REGISTER))["code"] == "STORE_UNAVAILABLE"
    assert pair.tables.rows["front-door"].stream.node_id == "a"
    pair["a"].access.loses_answers = False
    await trio.sleep(1)  # before the grace of the stream is over
    assert pair.tables.rows == {}
    assert (await phone.hear_end())[1][0] == 4502


async def test_a_claim_whose_answer_is_lost_can_be_made_again(pair: MemoryCluster) -> None:
    phone = await pair["a"].relay.login()
    pair["a"].access.loses_answers = True
    await phone.ask(REGISTER)
    pair["a"].access.loses_answers = False
    assert (await phone.ask(REGISTER))["code"] == "REGISTERED"
    await trio.sleep(10)
    assert pair.tables.rows["front-door"].stream.epoch == pair["a"].stream().epoch


async def test_an_end_that_meets_a_restoration_leaves_no_row(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    await phone.ask({**REGISTER, "streamId": "side-door"})  # the end of front-door waits for 50 ms
    pair["a"].access.delay = 0.1
    pair.tables.nodes.pop("a")  # as if it had been thought dead
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(pair["a"].directory.read_node, "b")
            await trio.sleep(0.04)
            pair.tables.nodes.pop("a", None)
    await trio.sleep(5)
    assert list(pair.tables.rows) == ["side-door"]


async def test_nobody_notices_that_the_tables_were_emptied(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    listener = await pair["b"].relay.login()
    await listener.ask({**LISTEN})
    elsewhere = await pair["a"].phone("side-door")
    listens_only = await pair["b"].relay.login()
    await listens_only.ask({**LISTEN, "streamId": "side-door"})
    observer = await pair["b"].relay.login()
    await observer.ask({"type": "streams"})
    for each in (viewer, listener, observer, listens_only, phone, elsewhere):
        await received(each, 0.1)
    pair.tables.empty()
    for each in (viewer, listener, observer, listens_only):
        assert only("status", await received(each, 8)) == []
    assert sorted(pair.tables.rows) == ["front-door", "side-door"]
    assert sorted(pair.tables.nodes) == ["a", "b"]
    await phone.send(frame(b"1"))
    assert only("video-frame", await received(viewer))


async def test_all_is_written_again_though_the_first_attempt_fails(pair: MemoryCluster) -> None:
    await pair["a"].phone()
    pair.tables.empty()
    pair["a"].access.loses_answers = True
    await pair["a"].directory.read_node("b")
    pair.tables.rows.clear()
    pair["a"].access.loses_answers = False
    await trio.sleep(5)
    assert list(pair.tables.rows) == ["front-door"]


async def test_what_was_freed_and_taken_by_another_user_elsewhere_ends_here(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    near, far = await pair["a"].viewer(), await pair["b"].viewer()
    await phone.send(frame(b"ann's"))
    for viewer in (near, far):
        assert [each["seq"] for each in only("video-frame", await received(viewer))] == [1]
    del pair.tables.owners["front-door"]
    others = await pair["b"].phone(token=BOB)
    strange = await pair["a"].viewer(token=BOB)
    await trio.sleep(0.5)
    await phone.send(frame(b"ann's, late"))
    await others.send(frame(b"bob's"))
    for viewer in (near, far):
        messages = await received(viewer)
        assert only("video-frame", messages) == []
        assert only("status", messages)[-1]["status"] == "offline"
    (got,) = only("video-frame", await received(strange))
    assert got["data"] == frame(b"bob's")["data"]
    assert (await phone.hear_end())[1][0] == 4009
