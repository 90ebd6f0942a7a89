"""Where stills and clips are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from relay.errors import RelayError
from relay.model.alerts.alert_picture import PictureName


class NotStored(RelayError):
    """A file could not be written, read or removed. The text says why."""


class PictureFile(Protocol):
    """A file that is being read."""

    @property
    def size(self) -> int:
        """Bytes."""

    async def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; none at the end. `NotStored`."""

    def seek(self, at: int) -> None:
        """Go on at this byte, which the file has. Not while it is being read."""


class PictureStorage(Protocol):
    """Files by name. A call may take long: callers set deadlines, and may cancel it."""

    async def place(self) -> str:
        """Names the storage: whoever has one of the same name has the same files. `NotStored` if
        it cannot be used."""

    async def write(self, name: PictureName, pieces: Sequence[bytes]) -> None:
        """Write a file, whole or not at all; `NotStored`."""

    def open(self, name: PictureName) -> AbstractAsyncContextManager[PictureFile]:
        """Read a file; `NotStored` if it is not there."""

    async def remove(self, names: Sequence[PictureName]) -> None:
        """Remove files, as far as they are there; `NotStored`."""

    async def check(self) -> None:
        """Find out whether it can be written to; `NotStored`."""

    async def sweep(self, before_day: int) -> None:
        """Remove what nobody knows of any more: the folders of days before this one, and files that
        were never finished. `NotStored`."""
