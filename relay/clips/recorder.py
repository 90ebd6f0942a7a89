"""Keeps the still and the clip of alerts.

A supervised task. It is told of each alert as that is delivered, on every node; the node that has
the producer of the stream keeps the pictures. Nothing here is waited for: an alert is stored,
acknowledged and delivered whatever becomes of its pictures.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, field, frozen

from relay.clips.capture import PendingClip
from relay.clips.mjpeg_file import clip_file, size_of
from relay.clips.storage import NotStored, PictureStorage
from relay.clips.usage import PictureUsage, room_of
from relay.concurrency.batcher import Batcher
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.flow_control import Pace
from relay.hub.frames.picture_ring import KeptPicture, PictureRing, shows_jpeg
from relay.hub.hub import Hub
from relay.hub.stream import Stream
from relay.logs.throttle import ThrottledWarning
from relay.metrics import Metrics, PictureOutcome
from relay.model.alerts.alert_picture import (
    AlertPicture,
    PictureKind,
    PictureName,
    WantedPictures,
    WhatIsWanted,
)
from relay.protocol.messages import AlertEvent

FRESH_SECONDS = 1.0
"""Age up to which a picture shows the moment of an alert."""
STILL_TIMEOUT = 5.0
"""Seconds in which the producer has to send a picture, where there is no fresh one."""
MAX_STILL_AGE = 10.0
"""Seconds up to which an older picture is better than none."""
MAX_ALERT_DELAY = 60.0
"""Seconds after which an alert is delivered too late for its pictures."""
MAX_CAPTURES, MAX_CAPTURES_OF_USER = 64, 8
"""Alerts whose pictures are being kept at a time, in all and of one user's streams."""
MAX_STILLS_WRITTEN, MAX_CLIPS_WRITTEN = 16, 4
"""Stills and clips that are written at a time, so that little is in memory beside what is in rings.
Clips that wait for a slow storage may be given up, as those in rings."""
WRITE_TIMEOUT = 20.0
"""Seconds to write a still or a clip."""
RECORD_ATTEMPTS, RECORD_RETRY_INTERVAL = 10, 2.0
STANDBY_FPS = 1.0
TRIM_INTERVAL = 1.0
"""Seconds between two looks at rings whose streams send nothing any more."""

log = structlog.get_logger()


@frozen
class ClipLimits:
    """How much there is of a clip."""

    before: float = 10.0
    after: float = 10.0
    """Seconds."""
    fps: float = 10.0
    buffer: int = 16 << 20
    """Bytes, before the alert and again after it."""
    standby: bool = False
    """Whether a picture a second is wanted while nobody watches."""


class PictureRecords(Protocol):
    """The table of what is kept."""

    async def record(self, pictures: Sequence[AlertPicture]) -> None:
        """Note that pictures are kept, or could not be; `StoreUnavailable`, `StoreRejects`."""


@define(eq=False, repr=False)
class ClipRecorder:
    """The supervised task."""

    _hub: Hub
    _records: PictureRecords
    _storage: PictureStorage
    _usage: PictureUsage
    _metrics: Metrics
    _wanted: WhatIsWanted
    _limits: ClipLimits = field(factory=ClipLimits)
    _is_alone: bool = True
    """Whether there are no other nodes, on which a stream may be that is not here."""
    on_full: Callable[[], object] = field(default=lambda: None)
    """Called when something has to be removed."""
    _captures: Counter[str] = field(factory=Counter)
    """By the owner of the stream."""
    _nursery: trio.Nursery | None = None
    _batcher: Batcher[AlertPicture, None] = field(init=False)
    """Notes what became of many alerts at once: what else needs the database goes first."""
    _still_turns: trio.Semaphore = field(factory=lambda: trio.Semaphore(MAX_STILLS_WRITTEN))
    _clip_turns: trio.Semaphore = field(factory=lambda: trio.Semaphore(MAX_CLIPS_WRITTEN))
    _failing: ThrottledWarning = field(
        factory=lambda: ThrottledWarning("a picture of an alert is not kept")
    )

    def __attrs_post_init__(self) -> None:
        self._batcher = Batcher(self._record_some)

    async def _record_some(self, pictures: Sequence[AlertPicture]) -> list[None]:
        await self._records.record(pictures)
        return [None] * len(pictures)

    def make_ring(self, stream_id: str) -> PictureRing | None:
        """The ring for a stream; None if no clips of it are wanted."""
        if not self._limits.before or not self._wanted(stream_id, asked=False).clip:
            return None
        limits = self._limits
        standby = STANDBY_FPS if limits.standby else None
        return PictureRing(limits.before, limits.buffer, Pace(1 / limits.fps), standby)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._captures.clear()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._batcher.run)
                task_status.started()
                while True:
                    await trio.sleep(TRIM_INTERVAL)
                    self._trim_rings()
        finally:
            self._nursery = None

    def _trim_rings(self) -> None:
        """Free the pictures of streams that send none any more."""
        now, held = trio.current_time(), 0
        for stream in self._hub.streams():
            if stream.ring is not None:
                stream.ring.trim(now)
                held += stream.ring.bytes
        self._metrics.clip_buffer_bytes = held

    def note(self, alert: AlertEvent, owner_id: str) -> None:
        """Keep the pictures of an alert that is being delivered, if this node has them. Never waits
        and never raises."""
        wanted = self._wanted_of(alert)
        if not wanted or self._nursery is None:
            return
        stream = self._hub.find(alert.stream_id)
        is_here = stream is not None and stream.live and not stream.is_remote
        if not is_here and not self._is_alone:
            return  # another node may have it
        job = _Capture(alert.alert_id, owner_id, wanted)
        if stream is None or not is_here or stream.owner_id != owner_id:
            self._nursery.start_soon(self._fail, job, PictureOutcome.NO_PICTURE)
        elif time.time() - alert.alert_id / 1e6 > MAX_ALERT_DELAY:
            self._nursery.start_soon(self._fail, job, PictureOutcome.TOO_LATE)
        elif self._is_busy(owner_id):
            self._nursery.start_soon(self._fail, job, PictureOutcome.BUSY)
        else:
            clip = self._begin_clip(stream, wanted)
            self._captures[owner_id] += 1  # now, for more may come before the task begins
            self._nursery.start_soon(self._keep_counted, stream, job, clip)

    def _wanted_of(self, alert: AlertEvent) -> WantedPictures:
        if alert.still is None and alert.clip is None:  # it may have been raised in SQL
            return self._wanted(alert.stream_id, asked=False)
        return WantedPictures(still=alert.still == "pending", clip=alert.clip == "pending")

    def _is_busy(self, owner_id: str) -> bool:
        return (
            self._captures[owner_id] >= MAX_CAPTURES_OF_USER
            or self._captures.total() >= MAX_CAPTURES
        )

    def _begin_clip(self, stream: Stream, wanted: WantedPictures) -> PendingClip:
        """Take the pictures before this moment, which may be gone in the next."""
        interval = 0.9 / self._limits.fps if wanted.clip else 0.0
        clip = PendingClip(self._limits.buffer, interval)
        if wanted.clip and stream.ring is not None:
            stream.ring.trim(trio.current_time())
            clip.begin_with(stream.ring.pictures)
        return clip

    async def _keep_counted(self, stream: Stream, job: _Capture, clip: PendingClip) -> None:
        try:
            await self._keep(stream, job, clip)
        except Exception:  # it must not end the captures of others
            log.exception("the pictures of an alert are not kept", alert_id=job.alert_id)
        finally:
            self._captures[job.owner_id] -= 1
            if not self._captures[job.owner_id]:
                del self._captures[job.owner_id]

    async def _keep(self, stream: Stream, job: _Capture, clip: PendingClip) -> None:
        began = trio.current_time()
        newest = newest_picture(stream)
        is_fresh = newest is not None and began - newest.accepted_at <= FRESH_SECONDS
        if job.wanted.clip or not is_fresh:
            with _recording(stream, clip):
                if job.wanted.still:
                    await self._keep_still(job, newest if is_fresh else None, clip, newest)
                if job.wanted.clip:
                    await clip.wait_until(began + self._limits.after)
            if job.wanted.clip:
                clip.end()
                with _listening(stream, clip):
                    await self._clip_turns.acquire()
                try:
                    await self._keep_clip(job, clip)
                finally:
                    self._clip_turns.release()
        else:
            await self._keep_still(job, newest, clip, newest)

    async def _keep_still(
        self, job: _Capture, fresh: KeptPicture | None, clip: PendingClip, older: KeptPicture | None
    ) -> None:
        """Keep a fresh picture, or the next one that comes, or else an older one."""
        picture = fresh
        if picture is None:
            before = clip.newest
            with trio.move_on_after(STILL_TIMEOUT):
                await clip.wait_for_one()
            picture = clip.newest if clip.newest is not before else None
        if picture is None and older is not None:
            age = trio.current_time() - older.accepted_at
            picture = older if age <= MAX_STILL_AGE else None
        async with self._still_turns:
            content = None if picture is None else await picture.content()
            await self._store(job, "still", [] if content is None else [content])

    async def _keep_clip(self, job: _Capture, clip: PendingClip) -> None:
        if clip.given_up:
            await self._record(job, "clip", PictureOutcome.NO_ROOM)
        else:
            await self._store(job, "clip", await clip_file(clip))

    async def _store(self, job: _Capture, kind: PictureKind, pieces: Sequence[bytes]) -> None:
        """Write a file, and note what became of it."""
        size = room_of(size_of(pieces))
        if not pieces:
            await self._record(job, kind, PictureOutcome.NO_PICTURE)
        elif not self._usage.has_room(job.owner_id, size):
            self.on_full()
            self._failing.warn("as many bytes are kept as may be")
            await self._record(job, kind, PictureOutcome.NO_ROOM)
        else:
            place = await self._write(PictureName(job.alert_id, kind), pieces)
            outcome = PictureOutcome.WRITE_FAILED if place is None else PictureOutcome.KEPT
            await self._record(job, kind, outcome, place=place, size=size)

    async def _write(self, name: PictureName, pieces: Sequence[bytes]) -> str | None:
        """Write a file; returns the name of its place, or None."""
        why = f"it took longer than {WRITE_TIMEOUT:g} s"
        with trio.move_on_after(WRITE_TIMEOUT):
            try:
                place = await self._storage.place()
                await self._storage.write(name, pieces)
            except NotStored as problem:
                why = str(problem)
            else:
                return place
        self._failing.warn(why)
        return None

    async def _fail(self, job: _Capture, outcome: PictureOutcome) -> None:
        if job.wanted.still:
            await self._record(job, "still", outcome)
        if job.wanted.clip:
            await self._record(job, "clip", outcome)

    async def _record(
        self,
        job: _Capture,
        kind: PictureKind,
        outcome: PictureOutcome,
        *,
        place: str | None = None,
        size: int = 0,
    ) -> None:
        """Note what became of a still or a clip: in the figures, and with the alert."""
        self._metrics.alert_pictures[kind, outcome] += 1
        is_kept = outcome is PictureOutcome.KEPT
        if is_kept:
            self._usage.add(job.owner_id, size)
            if self._usage.too_much:
                self.on_full()
        picture = AlertPicture(
            PictureName(job.alert_id, kind),
            "kept" if is_kept else "failed",
            job.owner_id,
            place,
            size if is_kept else 0,
        )
        for attempt in range(RECORD_ATTEMPTS):
            if attempt:
                await trio.sleep(RECORD_RETRY_INTERVAL)
            try:
                await self._batcher.ask(picture)
            except StoreUnavailable:
                continue
            except StoreRejects as why:
                self._failing.warn(str(why))
            return


@frozen
class _Capture:
    """What is to be kept of one alert."""

    alert_id: int
    owner_id: str
    wanted: WantedPictures


@contextmanager
def _recording(stream: Stream, clip: PendingClip) -> Iterator[None]:
    """Get the pictures of a stream within the block, as somebody who watches."""
    with _listening(stream, clip):
        stream.demand(1)
        try:
            yield
        finally:
            stream.demand(-1)


@contextmanager
def _listening(stream: Stream, clip: PendingClip) -> Iterator[None]:
    """Let the clip know within the block what comes, and when there is no room for it."""
    stream.listen(clip)
    try:
        yield
    finally:
        stream.unlisten(clip)


def newest_picture(stream: Stream) -> KeptPicture | None:
    """The newest JPEG picture that the stream keeps, for clips or for newcomers."""
    ring = stream.ring
    kept = ring.pictures[-1] if ring is not None and ring.pictures else None
    frame = stream.fanout.newest
    if frame is None or not shows_jpeg(frame.message, frame.codec):
        return kept
    age_of_kept = -math.inf if kept is None else kept.accepted_at
    return KeptPicture.of(frame) if frame.accepted_at > age_of_kept else kept
