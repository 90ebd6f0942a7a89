"""A model of the tables of stream events, for the tests of what uses them and of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import trio
from attrs import define, evolve, field

from relay.errors import StoreUnavailable
from relay.model.targets.stream_event import EventSources, StreamPresence


@define(eq=False)
class PresenceTable:
    """As migration 0021 has it, in memory."""

    wanted: bool = True
    events: list[str] = field(factory=list)
    told: dict[str, tuple[str, StreamPresence]] = field(factory=dict)
    """The process that told of a stream, and what."""
    sources: dict[str, datetime] = field(factory=dict)
    beats: int = 0
    writes: int = 0
    query: Callable[[], object] = field(default=lambda: None)
    unreachable: set[str] = field(factory=set)
    """The processes that do not reach it."""
    answer: Callable[[], object] = field(default=lambda: None)

    async def beat(self, source: str) -> EventSources:
        self.beats += 1
        await self._work(source)
        if not self.wanted:
            return EventSources(wanted=False)
        is_new = source not in self.sources
        self.sources[source] = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(
            seconds=trio.current_time()
        )
        others = {each for each, _ in self.told.values()} - {source}
        return EventSources(
            wanted=True,
            is_new=is_new,
            others={each: self.sources.get(each) for each in others},
        )

    async def tell(
        self, source: str, streams: Sequence[StreamPresence], *, quietly: bool = False
    ) -> dict[str, bool]:
        self.writes += 1
        await self._work(source)
        happened = [event for each in streams for event in self._tell(source, each)]
        if not quietly:
            self.events += happened
        self.answer()
        return {
            each.stream_id: bool(self.told[each.stream_id][1].watched)
            for each in streams
            if each.online and each.stream_id in self.told
        }

    def _tell(self, source: str, now: StreamPresence) -> list[str]:
        stream_id, happened = now.stream_id, []
        before, told = self.told.get(stream_id, ("", None))
        if told is not None and not now.online:
            if before != source and (not now.term or now.term <= told.term):
                return []
            happened += [f"{stream_id} unwatched"] * bool(told.watched)
            happened.append(f"{stream_id} offline")
            del self.told[stream_id]
        if not now.online or (told is not None and now.term and told.term > now.term):
            return happened
        if told is None:
            happened.append(f"{stream_id} online")
            told = evolve(now, watched=False)
        if now.watched is not None and now.watched != told.watched:
            happened.append(f"{stream_id} {'' if now.watched else 'un'}watched")
        watched = told.watched if now.watched is None else now.watched
        self.told[stream_id] = source, evolve(now, watched=watched)
        return happened

    async def end_source(self, source: str, seen_at: datetime | None) -> bool:
        await self._work()
        if self.sources.get(source) != seen_at:
            return False
        self.sources.pop(source, None)
        for who, told in [*self.told.values()]:
            if who == source:
                self.events += self._tell(source, evolve(told, online=False))
        return True

    async def forget_told(self) -> None:
        await self._work()
        if not self.wanted:
            self.told.clear()

    async def prune(self, older_than: float) -> int:
        await self._work()
        return 0

    async def _work(self, source: str = "") -> None:
        if source in self.unreachable:
            raise StoreUnavailable
        self.query()
        await trio.sleep(0.01)
        self.query()
