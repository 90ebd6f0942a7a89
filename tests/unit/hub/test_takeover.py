"""Two connections and one stream: whoever was accepted later produces it, in whatever order the
registrations arrive."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.hostile import masked_frame
from tests.unit.memory import BOB, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

REGISTER = {"type": "register", "streamId": "front-door"}
SUPERSEDED = ("SUPERSEDED", (4502, "superseded by a newer connection"))


def picture(number: int, size: int = 0) -> dict[str, Any]:
    return {"type": "video-frame", "data": "AAAA" * size, "timestamp": number}


def message(content: dict[str, Any]) -> bytes:
    return masked_frame(1, json.dumps(content).encode())


async def numbers(viewer: Client, count: int) -> list[int]:
    """The `timestamp` of the next frames, which is how the tests number them."""
    return [(await viewer.receive_type("video-frame"))["timestamp"] for _ in range(count)]


async def how_it_ended(client: Client) -> tuple[str, tuple[int, str]]:
    error, close = await client.hear_end()
    return error["code"], close


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_that_register_at_once_the_later_connection_wins(
    relay: MemoryRelay, first: int
) -> None:
    viewer = await relay.viewer()
    older, newer = await relay.login(), await relay.login()
    relay.owners.delay = 1  # both wait for the store together
    for client in [(older, newer), (newer, older)][first]:
        await client.send(REGISTER)
    assert await how_it_ended(older) == SUPERSEDED
    assert (await newer.receive())["code"] == "REGISTERED"
    await newer.send(picture(1))
    assert await numbers(viewer, 1) == [1]


async def test_of_many_that_register_at_once_the_last_connection_wins(relay: MemoryRelay) -> None:
    clients = [await relay.login() for _ in range(8)]
    relay.owners.delay = 1
    for client in clients[3:] + clients[:3]:
        await client.send(REGISTER)
    for client in clients[:-1]:
        assert await how_it_ended(client) == SUPERSEDED
    assert (await clients[-1].receive())["code"] == "REGISTERED"


async def test_a_frame_half_sent_when_another_takes_over_is_lost_alone(relay: MemoryRelay) -> None:
    old, viewer = await relay.phone(), await relay.viewer()
    await old.send(picture(1))
    half = masked_frame(1, json.dumps(picture(2, 1000)).encode())
    await old.send_bytes(half[: len(half) // 2])
    new = await relay.phone()
    await new.send(picture(3))
    await old.send_bytes(half[len(half) // 2 :])
    assert await how_it_ended(old) == SUPERSEDED
    await new.send(picture(4))
    assert await numbers(viewer, 3) == [1, 3, 4]


async def test_a_frame_half_written_to_a_viewer_at_the_takeover_arrives_whole(
    relay: MemoryRelay,
) -> None:
    old, viewer = await relay.phone(), await relay.viewer(capacity=1000)
    await old.send(picture(1, 1000))
    await trio.testing.wait_all_tasks_blocked()
    new = await relay.phone()
    await new.send(picture(2, 1000))
    frames = [await viewer.receive_type("video-frame") for _ in range(2)]
    assert [(each["seq"], len(each["data"])) for each in frames] == [(1, 4000), (2, 4000)]


async def test_frames_sent_behind_a_register_that_lost_reach_nobody(relay: MemoryRelay) -> None:
    viewer, older = await relay.viewer(), await relay.login()
    newer = await relay.phone()
    await older.send(REGISTER)
    await older.send(picture(1))
    await newer.send(picture(2))
    assert await how_it_ended(older) == SUPERSEDED
    assert await numbers(viewer, 1) == [2]


async def test_who_subscribes_during_a_takeover_gets_the_one_epoch_and_no_gap(
    relay: MemoryRelay,
) -> None:
    phone, viewers = await relay.phone(), []
    epochs = set()
    for number in range(1, 6):
        client = await relay.login()
        relay.owners.delay = 1
        successor = await relay.login()
        await successor.send(REGISTER)  # and while the store is asked:
        subscribe = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
        subscribe["policy"] = "lossless"  # it does not read before the end
        epochs.add((await client.ask(subscribe))["epoch"])
        viewers.append(client)
        await phone.send(picture(number))
        epochs.add((await successor.receive_type("success"))["epoch"])
        assert await how_it_ended(phone) == SUPERSEDED
        phone = successor
    assert len(epochs) == 1
    await phone.send(picture(6))
    for joined, viewer in enumerate(viewers, start=1):
        seqs = [(await viewer.receive_type("video-frame"))["seq"]]
        while seqs[-1] < 6:
            seqs.append((await viewer.receive_type("video-frame"))["seq"])
        assert seqs[0] in (joined - 1, joined)
        assert all(later == earlier + 1 for earlier, later in pairwise(seqs))


async def test_seq_and_epoch_go_on_over_any_number_of_short_losses(relay: MemoryRelay) -> None:
    viewer, epochs = await relay.viewer(), set()
    for number in range(1, 11):
        phone = await relay.login()
        epochs.add((await phone.ask(REGISTER))["epoch"])
        await phone.send(picture(number))
        frame = await viewer.receive_type("video-frame")
        assert (frame["seq"], frame["timestamp"]) == (number, number)
        phone.link.close()
        await trio.sleep(4.9)
    assert len(epochs) == 1


async def test_the_grace_begins_anew_with_each_loss(relay: MemoryRelay) -> None:
    viewer = await relay.viewer()
    for _ in range(3):
        phone = await relay.phone()
        await trio.sleep(1)
        phone.link.close()
        await trio.sleep(4.9)
    began = trio.current_time()
    while (await viewer.receive_type("status"))["status"] != "offline":
        pass
    assert trio.current_time() - began == pytest.approx(0.1)


async def test_who_is_superseded_does_not_end_the_stream_by_leaving(relay: MemoryRelay) -> None:
    old, viewer = await relay.phone(), await relay.viewer()
    new = await relay.phone()
    assert await how_it_ended(old) == SUPERSEDED
    await trio.sleep(20)
    await new.send(picture(1))
    assert await numbers(viewer, 1) == [1]
    assert (await new.ask({"type": "streams"}))["streams"][0]["status"] == "streaming"


async def test_another_user_takes_nothing_over(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    stranger = await relay.login(BOB)
    assert (await stranger.ask(REGISTER))["code"] == "UNAUTHORIZED"
    await phone.send(picture(1))
    assert await numbers(viewer, 1) == [1]


async def test_registering_the_own_stream_again_changes_its_metadata_only(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.login(), await relay.viewer()
    epoch = (await phone.ask(REGISTER))["epoch"]
    await phone.send(picture(1))
    reply = await phone.ask({**REGISTER, "metadata": {"codec": "av1"}})
    assert (reply["code"], reply["epoch"]) == ("REGISTERED", epoch)
    await phone.send(picture(2))
    assert [(await viewer.receive_type("video-frame"))["seq"] for _ in range(2)] == [1, 2]
    listed = await viewer.ask({"type": "streams"})
    assert listed["streams"][0]["metadata"] == {"codec": "av1"}


async def test_a_phone_that_takes_over_at_the_end_of_a_burst_goes_on(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.hub.fanout.SLICE", 1)  # so each viewer gives the others a turn
    viewer, *others = [await relay.viewer(capacity=1 << 20) for _ in range(12)]
    for turns in range(100):
        old, new = await relay.phone(), await relay.login()
        # Of the three, each waits for the one before to have reached all viewers.
        await old.send_bytes(b"".join(message(picture(n, 5000)) for n in (1, 2, 3)))
        await viewer.receive_type("video-frame")
        for _ in range(turns % 20):
            await trio.lowlevel.checkpoint()
        await new.send_bytes(message(REGISTER) + message(picture(4, 4500)))
        assert await how_it_ended(old) == SUPERSEDED
        assert (await new.receive())["code"] == "REGISTERED"
        with trio.fail_after(1):
            while (await viewer.receive_type("video-frame"))["timestamp"] != 4:
                pass
        for other in others:
            with suppress(BlockingIOError):  # they answer no ping, and may have got nothing yet
                other.link.incoming.get(1 << 20)
