"""What a node has, and when the tables are told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from attrs import define, evolve

from relay.cluster.directory.held_streams import RESTORE_INTERVAL, WRITE_INTERVAL, HeldStreams
from relay.errors import StoreUnavailable
from relay.hub.hub import Hub
from relay.metrics import Metrics
from relay.model.cluster import HeldStream, LiveStream
from relay.protocol.messages import StreamStatus
from tests.unit.cluster.memory_tables import (
    LiveRow,
    MemoryAccess,
    MemoryLiveStreams,
    MemoryTables,
)

pytestmark = pytest.mark.mock_clock

ROW = LiveStream(
    stream_id="front-door",
    owner_id="ann",
    node_id="a",
    term=7,
    epoch=7,
    status=StreamStatus.ONLINE,
    metadata=None,
)
HELD = HeldStream(ROW, connection=3, accepted_at=1.5)
BEHIND_A_WRITE = WRITE_INTERVAL + 0.01


@define(eq=False)
class Scene:
    """The streams of the node `a`, whose hub has none of them, and the tables."""

    tables: MemoryTables
    access: MemoryAccess
    held: HeldStreams

    def put(self, row: LiveStream) -> None:
        """Let the tables have a row."""
        self.tables.rows[row.stream_id] = LiveRow(row, 3, 1.5)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    tables = MemoryTables()
    access = MemoryAccess(tables)
    held = HeldStreams("a", Hub(Metrics(), 5.0), MemoryLiveStreams(access))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.run)
        yield Scene(tables, access, held)
        nursery.cancel_scope.cancel()


async def test_a_row_is_left_alone_until_its_claim_ends(scene: Scene) -> None:
    scene.put(ROW)
    await scene.held.begin_claim("front-door")
    scene.held.hold(HELD)
    scene.held.note("front-door")
    await trio.sleep(BEHIND_A_WRITE)
    assert "front-door" in scene.tables.rows
    scene.held.end_claim("front-door")  # nobody has registered it
    await trio.sleep(BEHIND_A_WRITE)
    assert (scene.tables.rows, scene.held.rows) == ({}, {})


async def test_the_last_of_several_claims_is_known(scene: Scene) -> None:
    await scene.held.begin_claim("front-door")
    await scene.held.begin_claim("front-door")
    assert not scene.held.end_claim("front-door")
    assert scene.held.is_claimed("front-door")
    assert scene.held.end_claim("front-door")
    assert not scene.held.is_claimed("front-door")


async def test_a_claim_waits_while_the_row_is_being_removed(scene: Scene) -> None:
    scene.put(ROW)
    scene.access.delay = 1.0
    scene.held.hold(HELD)
    await trio.sleep(BEHIND_A_WRITE)
    await scene.held.begin_claim("front-door")
    assert (scene.tables.rows, scene.held.rows) == ({}, {})


async def test_waiting_for_the_last_stream_ends_with_its_row(scene: Scene) -> None:
    other = evolve(ROW, stream_id="side-door")
    for row in (ROW, other):
        scene.put(row)
        scene.held.hold(evolve(HELD, stream=row))
    scene.access.delay = 1.0
    await scene.held.wait_until_empty()
    assert scene.tables.rows == {}


@pytest.mark.parametrize(
    ("term", "epoch", "is_news"), [(7, 7, False), (6, 9, False), (7, 8, True), (8, 7, True)]
)
async def test_a_row_is_adopted_if_it_is_later_than_what_is_held(
    scene: Scene, term: int, epoch: int, *, is_news: bool
) -> None:
    await scene.held.begin_claim("front-door")
    scene.held.hold(HELD)
    row = evolve(ROW, term=term, epoch=epoch)
    assert scene.held.adopt(row) is is_news
    assert scene.held.rows == {"front-door": evolve(HELD, stream=row) if is_news else HELD}


async def test_a_row_that_nobody_here_knows_of_is_adopted_and_removed(scene: Scene) -> None:
    scene.put(ROW)
    assert scene.held.adopt(ROW)
    await trio.sleep(BEHIND_A_WRITE)
    assert scene.tables.rows == {}


async def test_rows_are_restored_at_once_after_a_loss_and_else_now_and_then(scene: Scene) -> None:
    await scene.held.begin_claim("front-door")
    scene.held.hold(HELD)
    await scene.held.restore()
    assert scene.tables.rows == {"front-door": LiveRow(ROW, 3, 1.5)}
    asked = scene.access.questions
    await scene.held.restore()
    assert scene.access.questions == asked
    scene.tables.rows.clear()
    scene.held.note_loss()
    await scene.held.restore()
    assert "front-door" in scene.tables.rows
    scene.tables.rows.clear()
    await trio.sleep(RESTORE_INTERVAL)
    await scene.held.restore()
    assert "front-door" in scene.tables.rows


async def test_a_restoration_that_fails_stays_due(scene: Scene) -> None:
    await scene.held.begin_claim("front-door")
    scene.held.hold(HELD)
    scene.access.away = True
    with pytest.raises(StoreUnavailable):
        await scene.held.restore()
    scene.access.away = False
    await scene.held.restore()
    assert "front-door" in scene.tables.rows


async def test_a_restoration_says_what_another_node_has(scene: Scene) -> None:
    scene.put(evolve(ROW, node_id="b", term=8))
    await scene.held.begin_claim("front-door")
    scene.held.hold(HELD)
    assert await scene.held.restore() == ["front-door"]
    assert scene.tables.rows["front-door"].stream.node_id == "b"
