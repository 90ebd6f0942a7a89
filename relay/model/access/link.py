"""Links to the pictures of one stream, for tools that can send no token."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from urllib.parse import quote

from attrs import field, frozen

LINK_PREFIX = "relay_link_"
"""How each capability begins."""
MAX_LINK_SECONDS = 24 * 3600
DEFAULT_LINK_READERS, MAX_LINK_READERS = 3, 100
MAX_LINKS_OF_USER = 100
"""That have not expired."""
MAX_LINKS_OF_TARGET = 1000
"""That relay makes for the messages to one target of alerts."""

LinkPurpose = Literal["still", "mjpeg"]
_ENDPOINTS: dict[LinkPurpose, str] = {"still": "latest.jpg", "mjpeg": "live.mjpeg"}


@frozen
class PictureLink:
    """A link: who has its capability sees one stream in one way, as long as its maker may."""

    link_id: str
    """Names it in lists; it lets nobody in."""
    stream_id: str
    purpose: LinkPurpose
    made_by: str
    """The id of a user."""
    readers: int
    """The most that may have an answer at a time."""
    expires_at: datetime
    """Aware, in UTC."""
    remaining: float = field(default=0.0, eq=False)
    """Seconds until then when it was read, by the clock of the database."""


@frozen
class NewLink:
    """A link to be made."""

    stream_id: str
    purpose: LinkPurpose
    seconds: int
    """Its lifetime."""
    readers: int = DEFAULT_LINK_READERS


def path_of(link: PictureLink, capability: str, base_path: str) -> str:
    """Where a link leads to, on any relay of its database that is under this path."""
    return (
        f"{base_path}/streams/{quote(link.stream_id)}/{_ENDPOINTS[link.purpose]}?link={capability}"
    )
