"""Passes a question of one worker to all, and their answers back.

The parent neither reads nor adds up answers, so that it goes on accepting; but it keeps what
workers had counted that have ended.
"""

from __future__ import annotations

from collections import Counter
from itertools import count

import structlog
import trio
from attrs import define, field

from relay.web.machine import TOTALS, retire
from relay.workers.child import ChildWorker, WorkerState
from relay.workers.messages import (
    MAX_CONTENT_BYTES,
    Ask,
    Gathered,
    GatheredAnswer,
    Question,
    Told,
)

GATHER_TIMEOUT = 1.0
"""Seconds for all workers to answer."""

log = structlog.get_logger()


@define(eq=False)
class _Round:
    """A question that was put to all workers."""

    what: str
    missing: set[ChildWorker]
    contents: dict[ChildWorker, bytes | None] = field(factory=dict)
    complete: trio.Event = field(factory=trio.Event)


@define(eq=False)
class Gathering:
    """The questions that are open."""

    _children: list[ChildWorker]
    """Kept up to date by the parent."""
    _ended: bytes | None = None
    """What workers had counted that have ended."""
    _rounds: dict[int, _Round] = field(factory=dict)
    _numbers: count[int] = field(factory=count)

    async def answer(self, asker: ChildWorker, ask: Ask) -> None:
        """Ask all workers that serve, and answer the one that wanted to know."""
        asked = [child for child in self._children if child.phase is not WorkerState.STARTING]
        number, going = next(self._numbers), _Round(ask.what, set(asked))
        self._rounds[number] = going
        for child in asked:
            child.tell(Question(number, ask.what, ask.content))
        with trio.move_on_after(GATHER_TIMEOUT):
            await going.complete.wait()
        del self._rounds[number]
        asked = [child for child in asked if child in self._children]
        # Of two in one slot, the one that drains comes last.
        asked.sort(key=lambda child: child.phase is WorkerState.DRAINING)
        answers = _within_bounds([self._answer_of(child, going) for child in asked])
        states = Counter({state.value: 0 for state in WorkerState})
        for child in self._children:
            late = child in going.missing and child.state is WorkerState.READY
            states[WorkerState.LATE if late else child.state] += 1
        ended = self._ended if ask.what == TOTALS else None
        asker.tell(Gathered(ask.question, answers, dict(states), ended))

    def note(self, child: ChildWorker, told: Told) -> None:
        """Note what a worker answers."""
        going = self._rounds.get(told.question)
        if going is None or child not in going.missing:
            return
        going.missing.discard(child)
        going.contents[child] = told.content
        if going.what == TOTALS and told.content is not None:
            child.totals = told.content
        if not going.missing:
            going.complete.set()

    def retire(self, child: ChildWorker) -> None:
        """Keep what a worker had counted that has ended, and wait for its answers no longer."""
        if child.totals is not None:
            self._ended = retire(self._ended, child.totals)
        for going in self._rounds.values():
            going.missing.discard(child)
            if not going.missing:
                going.complete.set()

    @staticmethod
    def _answer_of(child: ChildWorker, going: _Round) -> GatheredAnswer:
        late = child not in going.contents
        content = going.contents.get(child)
        if late and going.what == TOTALS:
            content = child.totals
        return GatheredAnswer(child.slot, content, late)


def _within_bounds(answers: list[GatheredAnswer]) -> list[GatheredAnswer]:
    """The answers, without the contents of those that do not fit into one message any more."""
    left = MAX_CONTENT_BYTES
    found: list[GatheredAnswer] = []
    for each in answers:
        size = len(each.content or b"")
        if size > left:
            log.warning("an answer of a worker is left out", worker=each.slot, bytes=size)
            found.append(GatheredAnswer(each.slot, None, late=True))
        else:
            left -= size
            found.append(each)
    return found
