"""What it takes to subscribe to a stream of which this node may know nothing."""

from __future__ import annotations

import pytest
import trio

from tests.unit.cluster.frames import VIEW, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster
from tests.unit.memory import BOB, Client

pytestmark = pytest.mark.mock_clock


async def time_to_subscribe(client: Client, stream_id: str) -> float:
    """Seconds to the answer; the subscription ends."""
    begun = trio.current_time()
    await client.send({**VIEW, "streamId": stream_id})
    assert (await client.receive_type("success"))["epoch"] == 0
    assert (await client.receive_type("status"))["status"] == "offline"
    seconds = trio.current_time() - begun
    await client.ask({"type": "unsubscribe", "streamId": stream_id})
    return seconds


@pytest.mark.parametrize("node", ["a", "b"])
async def test_a_stranger_does_not_learn_from_the_time_that_a_stream_exists(
    pair: MemoryCluster, node: str
) -> None:
    await pair["a"].phone()
    watched = await pair[node].viewer()
    stranger = await pair[node].relay.login(BOB)
    pair[node].access.delay = 0.01
    for _ in range(3):  # also when it was asked for a moment ago
        of_none = await time_to_subscribe(stranger, "back-door")
        assert await time_to_subscribe(stranger, "front-door") == pytest.approx(of_none, abs=0.002)
    assert of_none > 0.015
    watched.link.close()


async def test_a_stranger_has_nothing_sent_over_a_link(pair: MemoryCluster) -> None:
    await pair["a"].phone()
    stranger = await pair["b"].relay.login(BOB)
    for _ in range(5):
        await time_to_subscribe(stranger, "front-door")
    await stranger.send(VIEW)
    await trio.sleep(5)
    assert pair.calls == []


async def test_a_slow_database_holds_up_a_connection_once(pair: MemoryCluster) -> None:
    viewer = await pair["b"].relay.login()
    pair["b"].access.delay = 1.0
    begun = trio.current_time()
    for number in range(30):
        await viewer.send({**VIEW, "streamId": f"door-{number}"})
    for _ in range(30):
        await viewer.receive_type("success")
    assert trio.current_time() - begun < 2
    await pair["a"].phone("door-29")
    statuses = only("status", await received(viewer, 10))
    assert {"door-29"} == {each["streamId"] for each in statuses if each["status"] != "offline"}
