"""Stills and clips go when their time is over, or when there are too many."""

from __future__ import annotations

import pytest
import trio

from relay.clips.retention import PICTURE_REMOVAL_BATCH, PictureRetention
from relay.clips.usage import PictureUsage
from relay.metrics import Metrics
from relay.model.alerts.alert_picture import AlertPicture, PictureName, RemovablePicture
from tests.unit.clips.studio import PLACE, MemoryPictureTable, MemoryStorage

pytestmark = pytest.mark.mock_clock


def keep(
    table: MemoryPictureTable, storage: MemoryStorage, *alert_ids: int, size: int = 10
) -> None:
    for alert_id in alert_ids:
        name = PictureName(alert_id, "still")
        table.rows[name] = AlertPicture(name, "kept", "ann", PLACE, size)
        storage.files[name] = b"x" * size


def removable(alert_id: int) -> RemovablePicture:
    return RemovablePicture(alert_id, PLACE, still=True, clip=False)


async def test_what_is_too_old_goes_file_first() -> None:
    table, storage, metrics = MemoryPictureTable(), MemoryStorage(), Metrics()
    many = range(1, PICTURE_REMOVAL_BATCH + 3)
    keep(table, storage, *many, 1000)
    table.old = [removable(each) for each in many]
    await PictureRetention(table, storage, PictureUsage(1000, 1000), metrics, 30).remove_all()
    assert {each.alert_id for each in storage.files} == {1000}
    assert {each.alert_id for each in table.rows} == {1000}
    assert metrics.pictures_removed == len(many)


async def test_a_row_stays_until_its_file_is_gone() -> None:
    table, storage = MemoryPictureTable(), MemoryStorage(problem="the disk is gone")
    keep(table, storage, 1)
    table.old = [removable(1)]
    await PictureRetention(table, storage, PictureUsage(1000, 1000), Metrics(), 30).remove_all()
    assert table.removed == []


async def test_the_oldest_go_when_a_user_keeps_too_much() -> None:
    table, storage, metrics = MemoryPictureTable(), MemoryStorage(), Metrics()
    keep(table, storage, 1, 2, 3, size=400)
    table.too_many = [removable(1)]
    usage = PictureUsage(1000, 10_000)
    retention = PictureRetention(table, storage, usage, metrics, 30)
    await retention.remove_all()
    assert {each.alert_id for each in storage.files} == {2, 3}
    assert (usage.too_much, metrics.picture_bytes) == (False, 800)


async def test_room_is_made_soon_after_it_is_needed() -> None:
    table, storage = MemoryPictureTable(), MemoryStorage()
    usage = PictureUsage(1000, 10_000)
    retention = PictureRetention(table, storage, usage, Metrics(), 30)
    async with trio.open_nursery() as nursery:
        await nursery.start(retention.run)
        await trio.sleep(20)
        keep(table, storage, 1, 2, 3, size=400)
        table.too_many = [removable(1)]
        retention.wake()
        await trio.sleep(10)
        assert table.removed == [1]
        nursery.cancel_scope.cancel()


async def test_a_storage_that_removes_slowly_is_given_less_at_a_time() -> None:
    table, storage = MemoryPictureTable(), MemoryStorage(removal_delay=0.5)
    many = range(1, PICTURE_REMOVAL_BATCH + 1)
    keep(table, storage, *many)
    table.old = [removable(each) for each in many]
    retention = PictureRetention(table, storage, PictureUsage(1000, 10_000), Metrics(), 30)
    async with trio.open_nursery() as nursery:
        await nursery.start(retention.run)
        await trio.sleep(1800)
        nursery.cancel_scope.cancel()
    assert table.old == []
    assert storage.files == {}
