"""Tells the outbox when streams go online and offline, are watched and not any more.

A supervised task. The hub says what is so of the streams that are produced here; what has changed
is stored, and the table knows what was told before: so each change is told once, whichever process
of a cluster says so first, and a stream that moves to another process is told of by that one. What
a dead process has told of ends when its signs of life have failed to come.

While no target wants stream events, nothing is noted and nothing stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NoReturn, Protocol
from uuid import uuid4

import structlog
import trio
from attrs import define, evolve, field, frozen

from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.model.targets.stream_event import EventSources, StreamPresence

SOURCE_BEAT_INTERVAL = 5.0
"""Seconds between two signs of life, and looks for processes that are dead."""
UNWANTED_INTERVAL = 15.0
"""Seconds between two looks whether a target wants stream events, if nobody has told so."""
SOURCE_TIMEOUT = 20.0
"""Seconds without a sign of life after which a process counts as dead."""
MAX_SOURCE_GAP = 10.0
"""Seconds between two answers of the table: over it, it may have been away for the others, too."""
STREAM_TELL_INTERVAL = 0.1
"""Seconds between two transactions that store changes."""
TELL_RETRY_INTERVAL = 1.0
"""Seconds between attempts while the store is away."""
MAX_TOLD_AT_ONCE = 500
"""Streams of one transaction."""
OWNER_BURST, OWNER_RATE = 200, 5.0
"""Changes of the streams of one user that are stored at once, and a second; others wait, and only
what is so in the end is told."""
STREAM_EVENT_SECONDS = 24 * 3600.0
"""For which an event is kept for targets that cannot be reached."""
EVENT_PRUNE_INTERVAL = 3600.0

log = structlog.get_logger()


class PresenceTable(Protocol):
    """What was told of streams, and by whom; `StoreUnavailable`."""

    async def beat(self, source: str) -> EventSources:
        """Give a sign of life, if any target wants stream events, and learn of others."""

    async def tell(
        self, source: str, streams: Sequence[StreamPresence], *, quietly: bool = False
    ) -> Mapping[str, bool]:
        """Store changes as events; returns whether each stream is watched, as far as is known."""

    async def end_source(self, source: str, seen_at: datetime | None) -> bool:
        """End the streams of a process that has given no sign of life since."""

    async def forget_told(self) -> None:
        """Forget what was told, unless a target wants stream events."""

    async def prune(self, older_than: float) -> int:
        """Remove old events."""


@frozen
class SourceSighting:
    """The last sign of life of another process, as this one has seen it."""

    seen_at: datetime | None
    since: float
    """When it was seen first, by Trio's clock, without a gap ever since."""


@define(eq=False, repr=False)
class OwnerPace:
    """How many changes of the streams of each user may be stored."""

    _left: dict[str, tuple[float, float]] = field(factory=dict)
    """What is left for a user, and when that was so; the oldest first."""

    def take(self, owner_id: str, now: float) -> bool:
        while self._left:
            oldest = next(iter(self._left))
            if now - self._left[oldest][1] < OWNER_BURST / OWNER_RATE:
                break
            del self._left[oldest]
        left, at = self._left.pop(owner_id, (float(OWNER_BURST), now))
        left = min(float(OWNER_BURST), left + (now - at) * OWNER_RATE)
        self._left[owner_id] = (left - 1 if left >= 1 else left, now)
        return left >= 1


@define(eq=False, repr=False)
class StreamEventRecorder:
    """The supervised task."""

    _table: PresenceTable
    _live: Callable[[], Iterable[StreamPresence]]
    """The streams that are produced here now."""
    _grace: float
    """Seconds without viewers after which a stream is told to be watched no more, so that a viewer
    that comes back is not noticed, nor the move of a stream to another node."""
    _activity: Activity = field(factory=always_active)
    progress: Progress = field(init=False, factory=Progress)
    """One query."""
    _source: str = field(factory=lambda: str(uuid4()))
    _wanted: bool = False
    """Whether any target wants stream events."""
    _has_looked: bool = False
    _current: dict[str, StreamPresence] = field(factory=dict)
    """The streams here, and those that have gone since they were told of."""
    _told: dict[str, StreamPresence] = field(factory=dict)
    """What was stored of them."""
    _due: dict[str, float] = field(factory=dict)
    """When to store what has changed of a stream, by Trio's clock."""
    _left_at: dict[str, float] = field(factory=dict)
    """Since when nobody watches a stream."""
    _sightings: dict[str, SourceSighting] = field(factory=dict)
    _answered_at: float = -math.inf
    _pruned_at: float = -math.inf
    _pace: OwnerPace = field(factory=OwnerPace)
    _look: Wakeup = field(factory=Wakeup)
    _wake: Wakeup = field(factory=Wakeup)

    def __attrs_post_init__(self) -> None:
        self._activity.on_begin(self._look.set)

    def look(self) -> None:
        """Tell that a target may want stream events now, or none does."""
        self._look.set()

    def note(self, stream_id: str, presence: StreamPresence | None) -> None:
        """Note what is so of a stream now; None: it is produced elsewhere, or was never here.
        Never waits."""
        if not self._wanted:
            return
        # One that ends before it was told of here may have been told of by the node before.
        if presence is not None and (presence.online or stream_id in self._current):
            self._current[stream_id] = presence
            self._schedule(stream_id)
        else:
            self._forget(stream_id)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_telling)
            task_status.started()
            await self._keep_beating()

    # -- signs of life

    async def _keep_beating(self) -> NoReturn:
        while True:
            with suppress(StoreUnavailable, StoreRejects):
                await self._beat()
            with trio.move_on_after(self._pause()):
                await self._look.wait()
            await trio.sleep(STREAM_TELL_INTERVAL)

    def _pause(self) -> float:
        if self._activity.active or self._told or self._sightings or not self._has_looked:
            return SOURCE_BEAT_INTERVAL if self._wanted else UNWANTED_INTERVAL
        return REST_INTERVAL

    async def _beat(self) -> None:
        with self.progress:
            sources = await self._table.beat(self._source)
        self._note_sources(sources.others)
        if sources.wanted and not self._wanted:
            await self._begin()
        elif self._wanted and not sources.wanted:
            self._wanted = False
            self._forget_all()
            await self._table.forget_told()
        elif sources.is_new and self._told:
            # The table was emptied, or this process was taken for dead: its streams may be told to
            # be offline.
            log.warning("stream events: told of all streams again")
            self._tell_again()
        self._has_looked = True
        if self._wanted:
            await self._end_dead_sources()
            await self._prune()

    async def _begin(self) -> None:
        """Note the streams that are here: those of before the first target are told quietly."""
        self._wanted = True
        self._forget_all()
        if self._has_looked:
            known = [evolve(each, watched=bool(each.watched)) for each in self._live()]
            try:
                for first in range(0, len(known), MAX_TOLD_AT_ONCE):
                    some = known[first : first + MAX_TOLD_AT_ONCE]
                    await self._table.tell(self._source, some, quietly=True)
            except (StoreUnavailable, StoreRejects):
                self._wanted = False
                raise
            self._told.update((each.stream_id, each) for each in known)
        for each in [*self._told.values()]:
            self._current.setdefault(each.stream_id, evolve(each, online=False))
        self._tell_again_live()

    def _tell_again(self) -> None:
        for stream_id, current in self._current.items():
            if current.online:
                self._told.pop(stream_id, None)
        self._tell_again_live()

    def _tell_again_live(self) -> None:
        for each in self._live():
            self.note(each.stream_id, each)
        for stream_id in [*self._current]:
            self._schedule(stream_id)

    def _note_sources(self, others: Mapping[str, datetime | None]) -> None:
        now = trio.current_time()
        before = self._sightings if now - self._answered_at <= MAX_SOURCE_GAP else {}
        self._sightings, self._answered_at = {}, now
        for source, seen_at in others.items():
            known = before.get(source)
            if known is None or known.seen_at != seen_at:
                known = SourceSighting(seen_at, now)
            self._sightings[source] = known

    async def _end_dead_sources(self) -> None:
        now = trio.current_time()
        for source, sighting in [*self._sightings.items()]:
            if now - sighting.since >= SOURCE_TIMEOUT:
                del self._sightings[source]
                with self.progress:
                    await self._table.end_source(source, sighting.seen_at)

    async def _prune(self) -> None:
        if trio.current_time() - self._pruned_at >= EVENT_PRUNE_INTERVAL:
            with self.progress:
                await self._table.prune(STREAM_EVENT_SECONDS)
            self._pruned_at = trio.current_time()

    # -- changes

    async def _keep_telling(self) -> NoReturn:
        while True:
            next_due = min(self._due.values(), default=math.inf)
            with trio.move_on_at(next_due):
                await self._wake.wait()
                continue
            pause = STREAM_TELL_INTERVAL
            ripe = self._take_ripe(trio.current_time())
            try:
                if ripe:
                    await self._tell(ripe)
            except StoreUnavailable:
                pause = TELL_RETRY_INTERVAL
                self._note_unknown(ripe)
            except StoreRejects as why:
                log.warning("stream events cannot be stored", streams=len(ripe), why=str(why))
            await trio.sleep(pause)

    def _take_ripe(self, now: float) -> list[StreamPresence]:
        """What is to be stored now, as many as fit into a transaction."""
        ripe: list[StreamPresence] = []
        for stream_id, at in [*self._due.items()]:
            if at > now:
                continue
            if len(ripe) == MAX_TOLD_AT_ONCE:
                break
            current = self._current[stream_id]
            if not self._pace.take(current.owner_id, now):
                self._due[stream_id] = now + 1.0
                continue
            del self._due[stream_id]
            ripe.append(self._as_told(current, now))
        return ripe

    def _as_told(self, current: StreamPresence, now: float) -> StreamPresence:
        """Without a word about viewers as long as one may come back."""
        left_at = self._left_at.get(current.stream_id, -math.inf)
        if current.online and not current.watched and now < left_at + self._grace:
            return evolve(current, watched=None)
        return current

    async def _tell(self, streams: Sequence[StreamPresence]) -> None:
        watched = await self._table.tell(self._source, streams)
        for each in streams:
            stream_id = each.stream_id
            if stream_id not in self._current:
                continue  # it has gone elsewhere meanwhile
            if each.online:
                is_watched = watched.get(stream_id, each.watched)
                self._told[stream_id] = evolve(each, watched=is_watched)
            else:
                self._told.pop(stream_id, None)
                if not self._current[stream_id].online:
                    self._forget(stream_id)
                    continue
            self._schedule(stream_id)

    def _note_unknown(self, streams: Sequence[StreamPresence]) -> None:
        """Store these again: perhaps they are stored, and only the answer is lost."""
        for each in streams:
            if each.stream_id in self._current:
                self._told[each.stream_id] = evolve(each, epoch=-1)
                self._schedule(each.stream_id)

    def _schedule(self, stream_id: str) -> None:
        """Plan when to store a stream, if anything has changed."""
        current, told, now = (
            self._current[stream_id],
            self._told.get(stream_id),
            trio.current_time(),
        )
        if current.watched:
            self._left_at.pop(stream_id, None)
        else:
            self._left_at.setdefault(stream_id, now)
        if told == current:
            self._due.pop(stream_id, None)
            return
        only_left = told is not None and told == evolve(current, watched=told.watched)
        at = self._left_at[stream_id] + self._grace if only_left and not current.watched else now
        if self._due.get(stream_id, math.inf) > at or only_left:
            self._due[stream_id] = at
            self._wake.set()

    def _forget(self, stream_id: str) -> None:
        for states in (self._current, self._told, self._due, self._left_at):
            states.pop(stream_id, None)

    def _forget_all(self) -> None:
        for states in (self._current, self._told, self._due, self._left_at):
            states.clear()
