"""The list of live streams, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator

from relay.hub.stream import Stream
from relay.protocol.messages import StreamEntry

MAX_PAGE_STREAMS = 1000
MAX_STREAM_PAGE_BYTES = 256 << 10
"""Bytes of metadata in a page; one stream fits always."""
ENTRY_BYTES = 200
"""What an entry takes without its metadata, at most about."""


def page_of(streams: Iterator[Stream], limit: int | None) -> tuple[list[StreamEntry], bool]:
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
