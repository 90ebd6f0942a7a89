"""Whatever happened to a cluster: once it is calm, all agree, and nobody was told nonsense."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.unit.cluster.memory_cluster import MemoryNode, open_cluster
from tests.unit.cluster.storm import CHOICES, STREAMS, Participant, Storm

weighted = st.sampled_from([each for each, often in CHOICES.items() for _ in range(often)])


@given(st.integers(0, 2**32), st.lists(weighted, min_size=5, max_size=60))
def test_after_any_storm_all_is_well(seed: int, choices: list[str]) -> None:
    trio.run(weather, seed, choices, clock=MockClock(autojump_threshold=0))


async def weather(seed: int, choices: list[str]) -> None:
    async with open_cluster("a", "b", "c") as cluster:
        storm = Storm(cluster, Random(seed))
        try:
            for what in choices:
                await storm.do(what)
            await storm.calm()
            for viewer in storm.viewers:
                # An epoch that began just before the tables were emptied may be known to nobody
                # but those who watch.
                was_told_sense(viewer, epochs_grow="empty_tables" not in choices)
            for stream_id in STREAMS:
                await all_agree(storm, stream_id)
            for node in cluster.nodes.values():
                if node.alive:
                    adds_up(node)
        except BaseException:
            print("\n".join(storm.told))  # noqa: T201 (pytest shows it where the test fails)
            raise


def was_told_sense(viewer: Participant, *, epochs_grow: bool) -> None:
    for before, after in pairwise(viewer.epochs):
        assert after >= before or not epochs_grow, "an epoch came back"
    for (epoch, seq, _), (next_epoch, next_seq, _) in pairwise(viewer.frames()):
        is_next = (next_epoch, next_seq) > (epoch, seq)
        assert is_next or (next_epoch < epoch and not epochs_grow), "a frame came twice"
    for _, _, data in viewer.frames():
        assert data


async def all_agree(storm: Storm, stream_id: str) -> None:
    cluster = storm.cluster
    nodes = [each for each in cluster.nodes.values() if each.alive]
    origins = [each.name for each in nodes if produces(each, stream_id)]
    phones = [each for each in storm.phones if each.stream_id == stream_id and each.produces]
    row = cluster.tables.rows.get(stream_id)
    assert len(phones) <= 1, "two phones think that they produce a stream"
    assert origins == [each.node for each in phones], "the hub and the phones disagree"
    assert ([] if row is None else [row.stream.node_id]) == origins, "the tables are wrong"
    viewers = [each for each in storm.viewers if each.stream_id == stream_id and not each.closed]
    if not phones:
        for viewer in viewers:
            statuses = [each["status"] for each in viewer.messages if each["type"] == "status"]
            assert statuses[-1] == "offline", "a viewer waits for a stream that is over"
        return
    assert row is not None
    await storm.send_frame(phones[0], True)
    data = await storm.send_frame(phones[0], False)
    await trio.sleep(1.0)
    for viewer in viewers:
        assert viewer.frames(), "a viewer waits for ever"
        assert viewer.frames()[-1][0] == row.stream.epoch
        assert viewer.frames()[-1][2] == data, "a viewer waits for ever"


def produces(node: MemoryNode, stream_id: str) -> bool:
    stream = node.relay.hub.find(stream_id)
    return stream is not None and stream.live and not stream.is_remote


def adds_up(node: MemoryNode) -> None:
    hub = node.relay.hub
    here = [each for each in hub.streams() if each.live and not each.is_remote]
    assert sum(hub.totals.streams.values()) == len(here)
    assert all(count >= 0 for count in hub.totals.streams.values())
    assert sorted(hub.live_ids()) == sorted(each.stream_id for each in hub.streams() if each.live)
    assert hub.totals.waiting == 0
    for totals in (hub.totals, node.links.totals):
        ledger = totals.frames
        assert ledger.accepted == ledger.written + ledger.dropped.total() + totals.waiting
    assert sorted(node.held.rows) == sorted(each.stream_id for each in here)
