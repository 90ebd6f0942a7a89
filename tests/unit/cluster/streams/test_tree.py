"""A stream that many nodes carry: each node gives it to few, and nobody waits for itself."""

from __future__ import annotations

import string
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from relay.cluster.streams import origin
from relay.cluster.streams.origin import path_to
from tests.unit.cluster.frames import frame, numbers, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster, open_cluster
from tests.unit.memory import Client

FEW = 2
"""Edges of one node."""
NAMES = string.ascii_lowercase[:10]


@pytest.fixture(autouse=True)
def few_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "MAX_DIRECT_EDGES", FEW)


async def watched_everywhere(cluster: MemoryCluster, names: str) -> dict[str, Client]:
    viewers = {}
    for name in names:
        viewers[name] = await cluster[name].viewer()
        await trio.sleep(0.05)
    return viewers


def assert_is_tree(cluster: MemoryCluster, root: str, names: str) -> None:
    """Each node has a way to the origin that goes through nodes with few edges, once each."""
    for name in names:
        path = [*path_to(cluster[name].stream()), name]
        assert path[0] == root
        assert len(set(path)) == len(path)
        for parent, child in pairwise(path):
            edges = cluster[parent].stream().edges
            assert child in {edge.peer.node.node_id for edge in edges}  # type: ignore[attr-defined]
            assert len(edges) <= FEW


async def newest(viewer: Client) -> int:
    return max((each["seq"] for each in only("video-frame", await received(viewer))), default=0)


@pytest.mark.mock_clock
async def test_each_node_gives_a_stream_to_few_others() -> None:
    async with open_cluster(*NAMES) as cluster:
        phone = await cluster["a"].phone()
        viewers = await watched_everywhere(cluster, NAMES[1:])
        assert_is_tree(cluster, "a", NAMES[1:])
        for number in range(1, 4):
            await phone.send(frame(b"picture %d" % number, phone))
        await trio.sleep(0.1)
        for viewer in viewers.values():
            assert await numbers(viewer) == [1, 2, 3]
        await trio.sleep(1.1)
        statuses = only("status", await received(phone))
        assert statuses[-1]["consumers"] == len(viewers)


@pytest.mark.mock_clock
async def test_a_take_over_reaches_the_whole_tree() -> None:
    async with open_cluster(*NAMES) as cluster:
        phone = await cluster["a"].phone()
        viewers = await watched_everywhere(cluster, NAMES[1:])
        await phone.send(frame(b"one", phone))
        await trio.sleep(0.1)
        again = await cluster["j"].phone()
        await trio.sleep(2)
        await again.send(frame(b"two", again))
        await trio.sleep(0.5)
        for viewer in viewers.values():
            seqs = [each["seq"] for each in only("video-frame", await received(viewer))]
            assert seqs == [1, 2]
        assert_is_tree(cluster, "j", NAMES[1:9])


incidents = st.lists(
    st.tuples(
        st.sampled_from(["kill", "cut", "leave", "join"]),
        st.sampled_from(NAMES[1:]),
        st.floats(0, 3),
    ),
    max_size=12,
)


@given(incidents)
@settings(max_examples=settings().max_examples // 4)
def test_whatever_happens_all_get_the_stream_again(happens: list[tuple[str, str, float]]) -> None:
    trio.run(play, happens, clock=MockClock(autojump_threshold=0.0))


async def play(happens: list[tuple[str, str, float]]) -> None:
    async with open_cluster(*NAMES) as cluster:
        phone = await cluster["a"].phone()
        viewers = await watched_everywhere(cluster, NAMES[1:])
        for what, name, pause in happens:
            if what == "kill" and cluster[name].alive:
                viewers.pop(name, None)
                await cluster[name].kill()
            elif what == "cut":
                cluster.cut(name)
            elif what == "leave" and name in viewers:
                await viewers.pop(name).ask({"type": "unsubscribe", "streamId": "front-door"})
            elif what == "join" and cluster[name].alive and name not in viewers:
                viewers[name] = await cluster[name].viewer()
            await trio.sleep(pause)
        await trio.sleep(12)
        names = "".join(sorted(viewers))
        assert_is_tree(cluster, "a", names)
        await phone.send(frame(b"last", phone))
        await trio.sleep(0.5)
        for viewer in viewers.values():
            assert await newest(viewer) == 1
