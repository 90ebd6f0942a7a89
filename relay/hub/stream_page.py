"""The list of live streams, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from attrs import frozen

from relay.errors import StoreUnavailable
from relay.hub.hub import Hub
from relay.model.access.identity import Identity
from relay.protocol.messages import Metadata, StreamEntry, StreamStatus

MAX_PAGE_STREAMS = 1000
MAX_STREAM_PAGE_BYTES = 256 << 10
"""Bytes of metadata in a page; one stream fits always."""
ENTRY_BYTES = 200
"""What an entry takes without its metadata, at most about."""


class ListedStream(Protocol):
    """A live stream."""

    @property
    def stream_id(self) -> str: ...

    @property
    def status(self) -> StreamStatus: ...

    @property
    def metadata(self) -> Metadata | None: ...

    @property
    def metadata_bytes(self) -> int:
        """Its size as JSON."""


class AllStreams(Protocol):
    """The live streams of all nodes."""

    async def listed(self, identity: Identity, after: str, limit: int) -> Sequence[ListedStream]:
        """The first behind an id that somebody may see; `StoreUnavailable`."""


@frozen
class StreamLists:
    """Lists the live streams that somebody may see, a page at a time."""

    _hub: Hub
    _everywhere: AllStreams | None
    """None where there are no other nodes."""

    async def page(
        self, identity: Identity, after: str | None, limit: int | None
    ) -> tuple[list[StreamEntry], bool]:
        """The first streams behind an id, and whether there are more; only those that are known
        here while the store is away."""
        if self._everywhere is not None:
            with suppress(StoreUnavailable):
                most = min(limit or MAX_PAGE_STREAMS, MAX_PAGE_STREAMS)
                found = await self._everywhere.listed(identity, after or "", most + 1)
                return page_of(found, limit)
        return page_of(self._hub.visible_to(identity, after or ""), limit)


def page_of(streams: Iterable[ListedStream], limit: int | None) -> tuple[list[StreamEntry], bool]:
    """As many of the streams as fit a page, and whether there are more."""
    entries: list[StreamEntry] = []
    size = 0
    for each in streams:
        size += ENTRY_BYTES + each.metadata_bytes
        if len(entries) == (limit or MAX_PAGE_STREAMS) or (
            entries and size > MAX_STREAM_PAGE_BYTES
        ):
            return entries, True
        entries.append(
            StreamEntry(stream_id=each.stream_id, status=each.status, metadata=each.metadata)
        )
    return entries, False
