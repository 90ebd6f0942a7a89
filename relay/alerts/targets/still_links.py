"""Links to the newest picture of a stream, for messages to targets.

A link is a capability as `relay link make` makes it, in the name of the stream's owner, or of the
user to whom the target belongs, and for this stream alone; it expires, and is revoked with its
target. It is made again only when it is half through its life, since the table counts those that
are valid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import trio
from attrs import define, field, frozen

from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.access.link import MAX_LINK_SECONDS, NewLink, PictureLink, path_of
from relay.model.cluster import LiveStream
from relay.model.targets.alert_target import AlertTarget

STILL_LINK_SECONDS = 6 * 3600
"""How long a link lives, unless its target says otherwise."""
STILL_LINK_READERS = 10
MAX_REMEMBERED_LINKS = 10_000
JPEG_CODECS = {"jpeg", "jpg", "mjpeg"}
JPEG_TYPE = "image/jpeg"


class LinkMaker(Protocol):
    """Makes links; `StoreUnavailable`."""

    async def owner_of(self, stream_id: str) -> tuple[str, bool]:
        """The owner of a stream, and whether that is a row of the user table; `ConfigError`."""

    async def make(
        self, link: NewLink, user_id: str, *, by_session: bool, target_id: str | None = None
    ) -> tuple[PictureLink, str]:
        """Make a link; returns it and its capability. `ConfigError` if there are too many."""


class LiveStreamsOfNodes(Protocol):
    """The live streams of a cluster."""

    async def find(self, stream_ids: Sequence[str]) -> Sequence[LiveStream]:
        """Those of these streams that are live; `StoreUnavailable`."""


@frozen
class MadeLink:
    """A link that was made for a target."""

    url: str = field(repr=False)
    made_again_at: float
    """By Trio's clock."""


@define(eq=False, repr=False)
class TargetStillLinks:
    """Makes links for targets. A `StillLinks`."""

    _maker: LinkMaker
    _elsewhere: LiveStreamsOfNodes
    _sends_jpeg: Callable[[str], bool | None]
    """Whether a stream of this process sends JPEG; None if it has none of this id, or has seen no
    picture of it."""
    _public_url: str
    """What links begin with; empty: they are paths."""
    _made: dict[tuple[str, str], MadeLink] = field(factory=dict)
    """By target and stream; the oldest first."""

    async def link_to(self, target: AlertTarget, stream_id: str) -> str | None:
        """A URL of the newest picture of a stream; None if it is not live, or sends no JPEG, or
        none can be made now: a message does not wait for its picture."""
        try:
            if not await self._shows_jpeg(stream_id):
                return None
            key = target.target_id, stream_id
            known = self._made.get(key)
            if known is None or trio.current_time() >= known.made_again_at:
                known = await self._make(target, stream_id)
                self._remember(key, known)
        except (ConfigError, StoreUnavailable, StoreRejects):
            return None
        return known.url

    async def _make(self, target: AlertTarget, stream_id: str) -> MadeLink:
        seconds = min(int(target.options.get("picture_for", STILL_LINK_SECONDS)), MAX_LINK_SECONDS)
        if target.viewer is not None:
            owner_id, by_session = target.viewer.user_id, target.viewer.by_session
        else:
            owner_id, by_session = await self._maker.owner_of(stream_id)
        new = NewLink(stream_id, "still", seconds, STILL_LINK_READERS)
        link, capability = await self._maker.make(
            new, owner_id, by_session=by_session, target_id=target.target_id
        )
        url = path_of(link, capability, self._public_url)
        return MadeLink(url, trio.current_time() + seconds / 2)

    def _remember(self, key: tuple[str, str], link: MadeLink) -> None:
        self._made.pop(key, None)
        self._made[key] = link
        while len(self._made) > MAX_REMEMBERED_LINKS:
            del self._made[next(iter(self._made))]

    async def _shows_jpeg(self, stream_id: str) -> bool:
        here = self._sends_jpeg(stream_id)
        if here is not None:
            return here
        return any(_says_jpeg(row.metadata) for row in await self._elsewhere.find([stream_id]))


def _says_jpeg(metadata: Mapping[str, object] | None) -> bool:
    """Whether a phone says in its metadata that it sends JPEG, as docs/clients.md asks it to."""
    if metadata is None:
        return False
    codec, kind = metadata.get("codec"), metadata.get("mimeType")
    return (isinstance(codec, str) and codec.lower() in JPEG_CODECS) or kind == JPEG_TYPE
