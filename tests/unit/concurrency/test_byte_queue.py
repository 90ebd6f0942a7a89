"""A queue is bounded in items and bytes, and keeps the order."""

from __future__ import annotations

import pytest

from relay.concurrency.byte_queue import ByteQueue


def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    queue = ByteQueue[str](10, 100)
    assert all(queue.put(item, 1) for item in "abc")
    assert [queue.take() for _ in range(4)] == ["a", "b", "c", None]


def test_it_takes_no_more_items_than_it_may_hold() -> None:
    queue = ByteQueue[int](3, 100)
    assert [queue.put(item, 0) for item in range(5)] == [True, True, True, False, False]
    queue.take()
    assert queue.put(5, 0)
    assert queue.count == 3


def test_it_takes_no_more_bytes_than_it_may_hold() -> None:
    queue = ByteQueue[str](10, 100)
    assert queue.put("half", 60)
    assert not queue.put("too much", 41)
    assert queue.put("the rest", 40)
    assert (queue.count, queue.bytes) == (2, 100)
    queue.take()
    assert queue.put("again", 60)


@pytest.mark.parametrize("size", [101, 1 << 30])
def test_an_empty_queue_takes_an_item_of_any_size(size: int) -> None:
    queue = ByteQueue[str](10, 100)
    assert queue.put("huge", size)
    assert not queue.put("small", 0)
    assert queue.take() == "huge"
    assert (queue.count, queue.bytes) == (0, 0)
