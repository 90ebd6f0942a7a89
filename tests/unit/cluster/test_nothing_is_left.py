"""What nodes keep of streams, viewers and links that are gone: nothing."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio

from tests.unit.cluster.frames import frame, numbers, received
from tests.unit.cluster.memory_cluster import MemoryCluster

pytestmark = pytest.mark.mock_clock


async def test_nothing_is_left_when_all_have_gone(pair: MemoryCluster) -> None:
    phones = [await pair["a"].phone(f"s{number}") for number in range(5)]
    observer = await pair["b"].relay.login()
    await observer.ask({"type": "streams"})
    viewers = [await pair["b"].viewer(f"s{number}") for number in range(5)]
    for phone, viewer in zip(phones, viewers, strict=True):
        await phone.send(frame(b"x" * 40_000))
        assert await numbers(viewer) == [1]
    await received(observer)
    kept = [weakref.ref(pair[name].stream(f"s{at}")) for at in range(5) for name in "ab"]
    for client in (*viewers, observer, *phones):
        client.link.close()
    del phones, viewers, observer, client, phone, viewer
    await trio.sleep(40)
    for node in pair.nodes.values():
        node.relay.connections.clear()  # they are kept for tests alone
    gc.collect()
    assert [each() for each in kept if each() is not None] == []
    for node in pair.nodes.values():
        assert node.relay.hub.streams() == []
        assert list(node.relay.hub.live_ids()) == []
        assert node.relay.hub.frame_budget.bytes == 0
        assert node.links.origins == {}
        assert node.links.edges == {}
        assert node.links.totals.waiting == 0
        assert node.held.rows == {}
        assert list(node.streams.announced) == []
    assert pair.tables.rows == {}


@pytest.mark.parametrize("delay", [0.0, 0.2, 5.0])
async def test_a_subscriber_waits_half_a_second_for_the_tables_at_most(
    pair: MemoryCluster, delay: float
) -> None:
    phone = await pair["a"].phone()
    await phone.send(frame(b"1"))
    viewer = await pair["b"].relay.login()
    pair["b"].access.delay = delay
    begun = trio.current_time()
    request = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    reply = await viewer.ask(request)
    assert reply["code"] == "SUBSCRIBED"
    assert trio.current_time() - begun <= 0.5
    pair["b"].access.delay = 0.0
    assert await numbers(viewer, 15) == [1]


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.25, 0.45])
async def test_who_leaves_while_a_stream_is_looked_for_leaves_nothing(
    pair: MemoryCluster, pause: float
) -> None:
    await pair["a"].phone()
    leaves, unsubscribes = [await pair["b"].relay.login() for _ in range(2)]
    pair["b"].access.delay = 0.2
    request = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    for client in (leaves, unsubscribes):
        await client.send(request)
    await unsubscribes.send({"type": "unsubscribe", "streamId": "front-door"})
    await trio.sleep(pause)
    leaves.link.close()
    await trio.sleep(3)
    assert pair["b"].relay.hub.streams() == []
    assert pair["a"].stream().edges == {}
    codes = [each["code"] for each in await received(unsubscribes) if "code" in each]
    assert codes == ["SUBSCRIBED", "UNSUBSCRIBED"]
