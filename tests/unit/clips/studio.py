"""A recorder of pictures beside a relay in memory, with a table and a storage in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import trio
from attrs import define, field

from relay.clips.recorder import ClipLimits, ClipRecorder
from relay.clips.storage import NotStored
from relay.clips.usage import PictureUsage
from relay.errors import StoreUnavailable
from relay.model.access.identity import Identity
from relay.model.alerts.alert_picture import (
    AlertPicture,
    PictureName,
    RemovablePicture,
    WantedPictures,
)
from relay.protocol.messages import AlertEvent
from tests.unit.memory import MemoryRelay

PLACE = "memory"


@define(eq=False)
class MemoryPictureTable:
    """What is kept, by alert and kind."""

    rows: dict[PictureName, AlertPicture] = field(factory=dict)
    away: int = 0
    """So many calls fail."""
    transactions: int = 0
    """That noted something."""
    looks: int = 0
    unreadable: bool = False
    removed: list[int] = field(factory=list)
    old: list[RemovablePicture] = field(factory=list)
    too_many: list[RemovablePicture] = field(factory=list)

    async def record(self, pictures: Sequence[AlertPicture]) -> None:
        await trio.lowlevel.checkpoint()
        self.transactions += 1
        if self.away:
            self.away -= 1
            raise StoreUnavailable
        self.rows |= {each.name: each for each in pictures}

    async def find(self, reader: Identity | None, name: PictureName) -> AlertPicture | None:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        if self.unreadable:
            raise StoreUnavailable
        row = self.rows.get(name)
        if row is None or (reader is not None and row.owner_id != reader.user_id):
            return None
        return row

    async def usage(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        found: dict[str, int] = {}
        for row in self.rows.values():
            found[row.owner_id] = found.get(row.owner_id, 0) + row.bytes
        return found

    async def removable(
        self, place: str, older_than: timedelta, *, most: int
    ) -> Sequence[RemovablePicture]:
        await trio.lowlevel.checkpoint()
        return self.old[:most]

    async def excess(
        self, place: str, *, of_owner: int, in_all: int, most: int
    ) -> Sequence[RemovablePicture]:
        await trio.lowlevel.checkpoint()
        return self.too_many[:most]

    async def remove(self, alert_ids: Sequence[int]) -> int:
        await trio.lowlevel.checkpoint()
        self.removed += alert_ids
        for each in (self.old, self.too_many):
            each[:] = [row for row in each if row.alert_id not in alert_ids]
        self.rows = {name: row for name, row in self.rows.items() if name.alert_id not in alert_ids}
        return len(alert_ids)


@define(eq=False)
class MemoryFile:
    content: bytes
    _at: int = 0

    @property
    def size(self) -> int:
        return len(self.content)

    async def read(self, count: int) -> bytes:
        await trio.lowlevel.checkpoint()
        found = self.content[self._at : self._at + count]
        self._at += len(found)
        return found

    def seek(self, at: int) -> None:
        self._at = at


@define(eq=False)
class MemoryStorage:
    """Files in a dictionary."""

    files: dict[PictureName, bytes] = field(factory=dict)
    problem: str | None = None
    """Why nothing can be written."""
    delay: float = 0.0
    removal_delay: float = 0.0
    """Seconds for each file."""
    writing: int = 0
    most_at_once: int = 0
    """Files that were written at the same time."""
    named: str = PLACE

    async def place(self) -> str:
        await trio.lowlevel.checkpoint()
        return self.named

    async def write(self, name: PictureName, pieces: Sequence[bytes]) -> None:
        self.writing += 1
        self.most_at_once = max(self.most_at_once, self.writing)
        try:
            await trio.sleep(self.delay)
        finally:
            self.writing -= 1
        if self.problem is not None:
            raise NotStored(self.problem)
        self.files[name] = b"".join(pieces)

    @asynccontextmanager
    async def open(self, name: PictureName) -> AsyncIterator[MemoryFile]:
        await trio.lowlevel.checkpoint()
        if name not in self.files:
            raise NotStored("it is not there")
        yield MemoryFile(self.files[name])

    async def remove(self, names: Sequence[PictureName]) -> None:
        await trio.lowlevel.checkpoint()
        if self.problem is not None:
            raise NotStored(self.problem)
        for name in names:
            await trio.sleep(self.removal_delay)
            self.files.pop(name, None)

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()

    async def sweep(self, before_day: int) -> None:
        await trio.lowlevel.checkpoint()


@define(eq=False)
class Studio:
    """A recorder, and what it has recorded."""

    relay: MemoryRelay
    recorder: ClipRecorder
    table: MemoryPictureTable
    storage: MemoryStorage
    usage: PictureUsage
    full: int = 0
    _ids: int = 0

    def alert(
        self,
        stream_id: str = "front-door",
        owner_id: str = "ann",
        *,
        ago: float = 0.0,
        **kinds: str,
    ) -> int:
        """Deliver an alert with these kinds, such as `still="pending"`; returns its id."""
        self._ids += 1
        alert_id = int((time.time() - ago) * 1e6) + self._ids
        event = AlertEvent(
            alert_id=alert_id,
            stream_id=stream_id,
            severity="high",
            message="m",
            timestamp=0,
            **kinds,  # type: ignore[arg-type]
        )
        self.recorder.note(event, owner_id)
        return alert_id

    def state(self, alert_id: int, kind: str) -> str | None:
        """What the alert says."""
        row = self.table.rows.get(PictureName(alert_id, kind))  # type: ignore[arg-type]
        return None if row is None else row.state

    def file(self, alert_id: int, kind: str) -> bytes:
        return self.storage.files[PictureName(alert_id, kind)]  # type: ignore[arg-type]


@asynccontextmanager
async def open_studio(
    relay: MemoryRelay,
    *,
    clips: bool = False,
    every: bool = False,
    limits: ClipLimits | None = None,
    alone: bool = True,
) -> AsyncIterator[Studio]:
    """A recorder that is told of alerts by hand. `clips`: all streams have rings."""

    def wanted(stream_id: str, *, asked: bool) -> WantedPictures:
        return WantedPictures(still=every or asked, clip=clips)

    table, storage, usage = MemoryPictureTable(), MemoryStorage(), PictureUsage(1 << 20, 4 << 20)
    recorder = ClipRecorder(
        *(relay.hub, table, storage, usage, relay.metrics, wanted),
        limits=limits or ClipLimits(),
        is_alone=alone,
    )
    studio = Studio(relay, recorder, table, storage, usage)

    def note_full() -> None:
        studio.full += 1

    recorder.on_full = note_full
    relay.hub.make_ring = recorder.make_ring
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        yield studio
        nursery.cancel_scope.cancel()
