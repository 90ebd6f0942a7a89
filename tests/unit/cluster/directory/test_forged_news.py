"""Notifications that anybody has sent: they cost little, and hide nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from attrs import define, field

from relay.cluster.directory.directory import MAX_SWEPT_STREAMS
from relay.model.cluster import LiveStream, StreamNews
from tests.unit.cluster.frames import VIEW, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster, MemoryNode
from tests.unit.cluster.memory_tables import MemoryLiveStreams

pytestmark = pytest.mark.mock_clock

FLOOD_SECONDS = 2.0


@define(eq=False)
class NotingTable(MemoryLiveStreams):
    """Notes which streams were asked for."""

    asked: set[str] = field(factory=set)

    async def find(self, stream_ids: Sequence[str]) -> list[LiveStream]:
        self.asked.update(stream_ids)
        return await super(NotingTable, self).find(stream_ids)  # noqa: UP008 (slots)


async def flood(node: MemoryNode, cluster: MemoryCluster, news: StreamNews) -> int:
    """Send the same news to a node without end; how often it has asked the tables meanwhile."""
    before = node.access.questions
    with trio.move_on_after(FLOOD_SECONDS):
        while True:
            for listener in list(cluster.tables.listeners):
                listener.put(news)
            await trio.sleep(0.0001)
    return node.access.questions - before


@pytest.mark.parametrize("news", [StreamNews(nodes=True), StreamNews(everything=True)])
async def test_a_flood_costs_few_questions(pair: MemoryCluster, news: StreamNews) -> None:
    await pair["b"].viewer()
    assert await flood(pair["b"], pair, news) <= 25 * FLOOD_SECONDS


async def test_a_flood_hides_no_stream_behind_others(pair: MemoryCluster) -> None:
    count, clients = MAX_SWEPT_STREAMS // 2, 3
    for client in range(clients):
        viewer = await pair["b"].relay.login()
        for number in range(count):
            await viewer.send({**VIEW, "streamId": f"door-{client}-{number}"})
            await viewer.receive_type("success")
    pair["b"].directory._table = table = NotingTable(pair["b"].access)
    with trio.move_on_after(0.9):  # before a sweep has looked at all
        await flood(pair["b"], pair, StreamNews(everything=True))
    assert len(table.asked) == clients * count


async def test_made_up_ids_take_little_memory_where_somebody_observes(
    pair: MemoryCluster,
) -> None:
    observer = await pair["b"].relay.login()
    await observer.send({"type": "streams"})
    await observer.receive_type("success")
    for batch in range(1000):
        ids = frozenset(f"forged-{batch}-{number}" for number in range(100))
        for listener in pair.tables.listeners:
            listener.put(StreamNews(ids))
        await trio.sleep(0.0001)
    assert len(pair["b"].directory._news_of) <= 20 * MAX_SWEPT_STREAMS


@pytest.mark.parametrize("streams", [1, 3])
async def test_an_observer_hears_of_a_stream_when_anything_may_have_changed(
    pair: MemoryCluster, streams: int
) -> None:
    observer = await pair["b"].relay.login()
    await observer.send({"type": "streams"})
    await observer.receive_type("success")
    pair.tables.on_news = lambda listener, _news: listener.put(StreamNews(everything=True))
    for number in range(streams):
        await pair["a"].phone(f"door-{number}")
    heard = {
        (each["streamId"], each["status"]) for each in only("status", await received(observer, 2))
    }
    assert heard == {(f"door-{number}", "online") for number in range(streams)}
