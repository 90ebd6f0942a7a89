"""Many askers, one question to the store. Floor 1.

Whatever waits when the store is free goes into one call: a thousand phones that reconnect at once
are a few queries, and alerts that arrive together share a commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NoReturn, TypeVar

import trio
from attrs import define, field

from relay.errors import StoreUnavailable
from relay.turns import Turn

Question = TypeVar("Question")
Answer = TypeVar("Answer")

CAPACITY = 1024
"""Questions that may wait; who comes later waits to be let in."""


@define(eq=False)
class _Waiter(Generic[Question, Answer]):
    question: Question = field(repr=False)
    done: trio.Event = field(factory=trio.Event, repr=False)
    answer: list[Answer] = field(factory=list, repr=False)
    """Empty when the question could not be answered."""
    gone: bool = False


@define(eq=False)
class Batcher(Generic[Question, Answer]):
    """A service that answers questions in batches, one batch at a time."""

    answer_all: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]
    """Gives the answers in the order of the questions; raises `StoreUnavailable`."""
    most: int = 500
    """Questions in one batch."""
    turn: Turn = field(init=False, factory=Turn)
    _put: trio.MemorySendChannel[_Waiter[Question, Answer]] = field(init=False)
    _get: trio.MemoryReceiveChannel[_Waiter[Question, Answer]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(CAPACITY)

    async def ask(self, question: Question) -> Answer:
        """Wait for the answer; `StoreUnavailable` when there is none to be had now."""
        waiter: _Waiter[Question, Answer] = _Waiter(question)
        try:
            await self._put.send(waiter)
            await waiter.done.wait()
        finally:
            waiter.gone = True
        if not waiter.answer:
            raise StoreUnavailable
        return waiter.answer[0]

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Answer until cancelled. A failure of any kind is told to all who wait, never silence."""
        task_status.started()
        while True:
            batch = [await self._get.receive()]
            try:
                batch += self._waiting(self.most - 1)
                batch = [waiter for waiter in batch if not waiter.gone]
                if batch:
                    with self.turn:
                        await self._answer(batch)
            except StoreUnavailable:
                batch += self._waiting(CAPACITY)
            except BaseException:
                batch += self._waiting(CAPACITY)
                raise
            finally:
                for waiter in batch:
                    waiter.done.set()

    async def _answer(self, batch: Sequence[_Waiter[Question, Answer]]) -> None:
        answers = await self.answer_all([waiter.question for waiter in batch])
        # All or none: where one is missing, nobody knows whose the others are.
        for waiter, answer in list(zip(batch, answers, strict=True)):
            waiter.answer.append(answer)

    def _waiting(self, most: int) -> list[_Waiter[Question, Answer]]:
        waiting: list[_Waiter[Question, Answer]] = []
        while len(waiting) < most:
            try:
                waiting.append(self._get.receive_nowait())
            except trio.WouldBlock:
                break
        return waiting
