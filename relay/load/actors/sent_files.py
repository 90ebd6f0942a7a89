"""What a scenario's files hold, for a process that may open none. No I/O."""

from __future__ import annotations

import hashlib

import msgspec

from relay.errors import RelayError


class NotSent(RelayError):
    """A file of the scenario was not sent to a process that may open none."""


class SentFiles(msgspec.Struct, frozen=True):
    """The content of files, by the names that the scenario has for them."""

    recordings: dict[str, bytes] = {}
    videos: dict[str, list[bytes]] = {}
    """The pictures of each."""
    script: bytes | None = None
    links: dict[str, bytes] = {}

    @property
    def script_digest(self) -> str | None:
        """The script's SHA-256 in hexadecimal."""
        return None if self.script is None else hashlib.sha256(self.script).hexdigest()

    @property
    def size(self) -> int:
        """Bytes."""
        pictures = sum(len(picture) for video in self.videos.values() for picture in video)
        lines = sum(map(len, (*self.recordings.values(), *self.links.values())))
        return lines + pictures + len(self.script or b"")

    def __repr__(self) -> str:
        return f"SentFiles({self.size} bytes)"
