"""What a slow viewer gets: policies, rates, keyframes, windows, and the ledger of it all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from relay.protocol.endings import Ending
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

BIG = "A" * 6000


async def publish(phone: Client, count: int = 1, **fields: Any) -> None:
    for _ in range(count):
        await phone.send({"type": "video-frame", "data": BIG, **fields})
        await trio.testing.wait_all_tasks_blocked()


async def rest(client: Client) -> list[int]:
    """The `seq` of all frames that come before nothing comes for a while."""
    seqs: list[int] = []
    while True:
        with trio.move_on_after(2) as scope:
            seqs.append((await client.receive_type("video-frame"))["seq"])
        if scope.cancelled_caught:
            return seqs


def balanced(relay: MemoryRelay) -> bool:
    ledger = relay.hub.ledger()
    return ledger.accepted == ledger.written + sum(ledger.dropped.values()) + ledger.waiting


async def test_lossless_keeps_every_frame_in_order(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    slow = await relay.viewer(capacity=8192, policy="lossless")
    await publish(phone, 10)
    assert balanced(relay)
    assert await rest(slow) == list(range(1, 11))
    assert balanced(relay)


async def test_lossless_ends_a_viewer_for_whom_too_many_bytes_wait(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    slow, healthy = await relay.viewer(capacity=8192, policy="lossless"), await relay.viewer()
    for seq in range(1, 15):  # 64 KiB may wait
        await publish(phone)
        assert (await healthy.receive_type("video-frame"))["seq"] == seq
    assert relay.connections[1].peer.ending is Ending.TOO_SLOW
    _, close = await slow.hear_end()
    assert close == (4002, "too slow")
    await publish(phone)
    assert await rest(healthy) == [15]
    assert balanced(relay)


async def test_max_fps_thins_evenly_before_anything_waits(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer(maxFps=10)
    for _ in range(60):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await trio.sleep(1 / 30)
    assert await rest(viewer) == list(range(1, 61, 3))
    assert relay.hub.ledger().dropped == {"thinned": 40}
    assert balanced(relay)


async def test_max_fps_holds_the_mean_rate_when_frames_come_unevenly(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxFps=10)
    for index in range(240):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await trio.sleep(0.020 if index % 2 else 0.030)
    seqs = await rest(viewer)
    assert len(seqs) in range(58, 63)  # 6 seconds
    gaps = {after - before for before, after in pairwise(seqs)}
    assert gaps <= {3, 4, 5}


@pytest.mark.parametrize("rate", [1e-320, 5e-324, 1e-308, 1e-30, 1e-6])
async def test_max_fps_close_to_zero_lets_one_frame_through(
    relay: MemoryRelay, rate: float
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxFps=rate)
    for _ in range(20):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await trio.sleep(1)
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    assert (await viewer.ask({"type": "unsubscribe", "streamId": "front-door"}))[
        "type"
    ] == "success"
    assert relay.hub.ledger().dropped == {"thinned": 19}


async def test_max_fps_above_the_rate_changes_nothing(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxFps=30.5)
    for _ in range(30):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await trio.sleep(1 / 30)
    assert await rest(viewer) == list(range(1, 31))


async def test_a_delta_never_displaces_a_waiting_keyframe(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    await publish(phone, 2, keyframe=True)  # on the wire
    await publish(phone, keyframe=True)  # waits
    await publish(phone, 3, keyframe=False)
    assert await rest(slow) == [1, 2, 3]
    await publish(phone, keyframe=False)  # builds on the dropped ones
    assert await rest(slow) == []
    await publish(phone, keyframe=True)
    await publish(phone, keyframe=False)
    assert await rest(slow) == [8, 9]
    assert relay.hub.ledger().dropped == {"superseded": 1, "undecodable": 3}
    assert balanced(relay)


async def test_a_keyframe_displaces_whatever_waits(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=8192)
    await publish(phone, 2, keyframe=True)
    await publish(phone, keyframe=False)
    await publish(phone, keyframe=True)
    await publish(phone, keyframe=False)
    assert await rest(slow) == [1, 2, 4]


async def test_thinning_leaves_no_delta_without_its_base(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxFps=5)
    for index in range(40):
        await phone.send({"type": "video-frame", "data": "AAAA", "keyframe": index % 10 == 0})
        await trio.sleep(0.05)
    assert await rest(viewer) == [1, 11, 21, 31]


async def test_a_new_viewer_begins_with_the_last_keyframe(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    for keyframe in (True, False, True, False, False):
        await publish(phone, keyframe=keyframe)
    viewer = await relay.viewer()
    assert await rest(viewer) == [3]
    await publish(phone, keyframe=False)
    await publish(phone, keyframe=True)
    await publish(phone, keyframe=False)
    assert await rest(viewer) == [7, 8]


async def test_a_delta_whose_base_another_phone_had_is_not_sent(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await publish(phone, keyframe=True)
    phone = await relay.phone()  # takes over; what its first delta builds on never came
    await publish(phone, 2, keyframe=False)
    await publish(phone, keyframe=True)
    await publish(phone, keyframe=False)
    assert await rest(viewer) == [1, 4, 5]
    assert balanced(relay)


async def test_a_delta_behind_a_thinned_frame_that_names_no_kind_is_not_sent(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(maxFps=1)
    await publish(phone, 2)
    await trio.sleep(2)
    await publish(phone, keyframe=False)
    assert await rest(viewer) == [1]


@pytest.mark.parametrize("policy", ["latest", "lossless"])
async def test_what_waits_from_an_earlier_life_of_the_stream_does_not_come_in_the_next(
    relay: MemoryRelay, policy: str
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(policy=policy, window=1)
    await publish(phone, 2)
    phone.link.close()
    await trio.sleep(6)
    phone = await relay.phone()
    await publish(phone)
    assert balanced(relay)
    if policy == "lossless":  # it cannot have what it missed, and must not miss it
        assert (await viewer.hear_end())[1] == (4002, "too slow")
    else:
        # The window is open again: an acknowledgement could not name a frame of either epoch.
        assert await rest(viewer) == [1, 1]


async def test_a_window_bounds_what_is_under_way(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(window=2)
    await publish(phone, 5)
    assert await rest(viewer) == [1, 2]
    await viewer.send({"type": "ack", "streamId": "front-door", "seq": 1})
    assert await rest(viewer) == [5]
    await viewer.send({"type": "ack", "streamId": "front-door", "seq": 5})
    await publish(phone, 3)
    assert 6 in (seqs := await rest(viewer))
    assert len(seqs) <= 2
    assert balanced(relay)


async def test_a_window_under_lossless_delays_and_loses_nothing(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(window=1, policy="lossless")
    await publish(phone, 4)
    seen = []
    for _ in range(4):
        seen += await rest(viewer)
        await viewer.send({"type": "ack", "streamId": "front-door", "seq": seen[-1]})
    assert seen == [1, 2, 3, 4]


async def test_acks_that_are_doubled_late_or_of_no_frame_change_nothing(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(window=2)
    await publish(phone, 4)
    assert await rest(viewer) == [1, 2]
    for seq in (99, 3, 0):
        await viewer.send({"type": "ack", "streamId": "front-door", "seq": seq})
    await viewer.send({"type": "ack", "streamId": "elsewhere", "seq": 1})
    assert await rest(viewer) == []
    for seq in (2, 2, 1):
        await viewer.send({"type": "ack", "streamId": "front-door", "seq": seq})
    assert await rest(viewer) == [4]


@pytest.mark.parametrize("names_its_life", [False, True])
async def test_an_ack_of_an_earlier_life_opens_no_window_of_the_next(
    relay: MemoryRelay, names_its_life: bool
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(window=1)
    await publish(phone, 1)
    assert await rest(viewer) == [1]
    epoch = next(iter(relay.hub._streams.values())).epoch
    for stream_id in ("other", "front-door"):
        await phone.ask({"type": "register", "streamId": stream_id})
    await publish(phone, 2)
    await trio.testing.wait_all_tasks_blocked()
    ack = {"type": "ack", "streamId": "front-door", "seq": 1}
    if names_its_life:
        ack["epoch"] = epoch
    await viewer.send(ack)  # which was under way when the new epoch began
    assert await rest(viewer) == ([1] if names_its_life else [1, 2])
    epoch = relay.hub._streams["front-door"].epoch
    await viewer.send({**ack, "seq": 1, "epoch": epoch})
    assert await rest(viewer) == ([2] if names_its_life else [])


async def test_subscriptions_of_one_connection_take_turns(relay: MemoryRelay) -> None:
    phones = [await relay.phone(f"s{index}") for index in range(4)]
    slow = await relay.login(capacity=8192)
    for index in range(4):
        await slow.ask({"type": "subscribe", "streamId": f"s{index}", "consumes": ["video-frame"]})
    seen: list[str] = []
    for _ in range(40):
        for phone in phones:
            await publish(phone)
        frame = await slow.receive_type("video-frame")
        seen.append(frame["streamId"])
    counts = {stream_id: seen.count(stream_id) for stream_id in set(seen)}
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 2  # a turn at the start, one at the end
    assert balanced(relay)


async def test_replies_overtake_the_video_of_all_subscriptions(relay: MemoryRelay) -> None:
    phones = [await relay.phone(f"s{index}") for index in range(4)]
    slow = await relay.login(capacity=8192)
    for index in range(4):
        await slow.ask({"type": "subscribe", "streamId": f"s{index}", "consumes": ["video-frame"]})
        await slow.receive_type("status")
    for phone in phones:
        await publish(phone, 3)
    await slow.send({"type": "unsubscribe", "streamId": "s3", "id": "now"})
    await trio.testing.wait_all_tasks_blocked()
    frames_before = 0
    while (message := await slow.receive()).get("id") != "now":
        frames_before += message["type"] == "video-frame"
    assert frames_before <= 2  # the one that had been written and the one on the wire


async def test_the_ledger_balances_when_viewers_come_stall_and_go(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    got = 0
    viewers = [await relay.viewer(capacity=8192) for _ in range(6)]
    for index in range(30):
        await publish(phone)
        if index == 10:
            for viewer in viewers[:2]:
                viewer.link.close()
        if index == 20:
            await viewers[2].ask({"type": "unsubscribe", "streamId": "front-door"})
        assert balanced(relay)
    for viewer in viewers[3:]:
        got += len(await rest(viewer))
    phone.link.close()
    await trio.sleep(10)
    assert balanced(relay)
    ledger = relay.hub.ledger()
    assert ledger.waiting == 0
    assert got <= ledger.written
    assert sum(relay.metrics.frame_age.counts) == ledger.written


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"policy": "best"}, "policy"),
        ({"maxFps": 0}, "maxFps"),
        ({"maxFps": -1.5}, "maxFps"),
        ({"maxFps": "10"}, "maxFps"),
        ({"window": 0}, "window"),
        ({"window": 1.5}, "window"),
        ({"window": 5000}, "window"),
    ],
)
async def test_terms_out_of_range_are_refused(
    relay: MemoryRelay, terms: dict[str, Any], field: str
) -> None:
    client = await relay.login()
    request = {"type": "subscribe", "streamId": "s", "consumes": ["video-frame"], **terms}
    reply = await client.ask(request)
    assert reply["code"] == "INVALID_MESSAGE"
    assert field in reply["message"]
