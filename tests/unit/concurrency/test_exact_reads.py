"""Reading a known number of bytes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.concurrency.exact_reads import receive_exactly


async def test_bytes_that_come_in_pieces_are_joined_and_the_rest_stays() -> None:
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _in_pieces() -> None:
            for piece in (b"ab", b"cd", b"efgh"):
                await ours.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()

        assert await receive_exactly(theirs, 5) == b"abcde"
        assert await receive_exactly(theirs, 3) == b"fgh"


async def test_nothing_is_read_for_no_bytes() -> None:
    _, theirs = trio.testing.memory_stream_one_way_pair()
    assert await receive_exactly(theirs, 0) == b""


@pytest.mark.parametrize("sent", [b"", b"abc"])
async def test_a_stream_that_ends_before_is_told_apart(sent: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    await ours.send_all(sent)
    await ours.aclose()
    with pytest.raises(EOFError, match=f"after {len(sent)} of 4 bytes"):
        await receive_exactly(theirs, 4)
