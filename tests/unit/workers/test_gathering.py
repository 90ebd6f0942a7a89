"""What becomes of the answers of all workers."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from relay.web.machine import FIGURES
from relay.workers.child import ChildWorker, WorkerState
from relay.workers.control import ControlChannel
from relay.workers.gathering import Gathering
from relay.workers.messages import MAX_CONTENT_BYTES, Ask, ControlReader, Gathered, Question, Told


class Worker:
    """A worker that answers with so many bytes."""

    def __init__(self, slot: int, size: int) -> None:
        ours, theirs = socket.socketpair()
        self.parents = ControlChannel(ours, ControlReader.of_news())
        self.own = ControlChannel(theirs, ControlReader.of_orders())
        self.size = size
        process = cast("Any", SimpleNamespace(pid=slot))
        self.child = ChildWorker(slot, process, self.parents, WorkerState.READY)

    async def answer(self, gathering: Gathering) -> None:
        question = await self.own.receive()
        assert isinstance(question, Question)
        gathering.note(self.child, Told(question.question, b"x" * self.size))


@pytest.mark.parametrize("sizes", [[10, 20], [MAX_CONTENT_BYTES // 2 + 1] * 3, [MAX_CONTENT_BYTES]])
async def test_answers_that_are_too_large_together_end_nobody(sizes: list[int]) -> None:
    workers = [Worker(slot, size) for slot, size in enumerate(sizes, 1)]
    gathering = Gathering([each.child for each in workers])
    first = workers[0]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for each in workers:
                nursery.start_soon(each.answer, gathering)
            await gathering.answer(first.child, Ask(7, FIGURES))
            nursery.start_soon(first.parents.keep_sending)
            gathered = await first.own.receive()
            nursery.cancel_scope.cancel()
    assert isinstance(gathered, Gathered)
    got = [len(each.content) for each in gathered.answers if each.content is not None]
    assert got == (sizes if sum(sizes) <= MAX_CONTENT_BYTES else sizes[:1])
    for each in workers:
        each.parents.close()
        each.own.close()
