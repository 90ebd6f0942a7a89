"""The pictures that come while something is being kept with an alert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import trio
from attrs import define, field

from relay.hub.frames.picture_ring import KeptPicture


@define(eq=False, repr=False)
class PendingClip:
    """Collects pictures of a stream, as a `PictureListener`, in order and within bounds."""

    _max_bytes: int
    """Of what comes after the beginning."""
    _min_interval: float = 0.0
    """Seconds between two pictures, where the stream itself does not thin them."""
    _pictures: list[KeptPicture] = field(factory=list)
    _bytes: int = 0
    given_up: bool = False
    _first: trio.Event = field(factory=trio.Event)
    """Set when a picture has come, and when none will."""
    _over: trio.Event = field(factory=trio.Event)

    def begin_with(self, pictures: Iterable[KeptPicture]) -> None:
        """Put the pictures before the alert ahead."""
        self._pictures.extend(pictures)

    def take(self, picture: KeptPicture) -> None:
        if self._over.is_set():
            return
        last = self._pictures[-1] if self._pictures else None
        if last is not None and last.seq == picture.seq:
            if picture.layer < last.layer:
                return
            self._pictures.pop()
        elif last is not None and picture.accepted_at - last.accepted_at < self._min_interval:
            return
        self._bytes += picture.size
        if self._bytes > self._max_bytes:
            self.end()  # what there is, is a clip
            return
        self._pictures.append(picture)
        self._first.set()

    def give_up(self) -> None:
        self.given_up = True
        self._pictures.clear()
        self.end()

    def end(self) -> None:
        self._first.set()
        self._over.set()

    @property
    def newest(self) -> KeptPicture | None:
        return self._pictures[-1] if self._pictures else None

    async def wait_for_one(self) -> None:
        """Wait until a picture has come, or none will."""
        await self._first.wait()

    async def wait_until(self, moment: float) -> None:
        """Wait for this moment, by Trio's clock, or until no more pictures will come."""
        with trio.move_on_at(moment):
            await self._over.wait()

    def take_all(self) -> Iterator[KeptPicture]:
        """Each picture, which is not held any more then."""
        self._over.set()
        self._pictures.reverse()
        while self._pictures:
            yield self._pictures.pop()
