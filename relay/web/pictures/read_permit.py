"""Whether a file that is kept with an alert may still be read by somebody who has begun to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from relay.clips.storage import NotStored
from relay.model.access.identity import Identity
from relay.model.alerts.alert_picture import AlertPicture, PictureName
from relay.web.api import ApiError
from relay.web.pictures.reader import PictureReader

LOOK_AGAIN_INTERVAL = 5.0
"""Seconds of reading after which it is asked whether the file may still be read."""


@define(eq=False)
class ReadPermit:
    """Whether a file may still be read by somebody who has begun to: for hours, if slowly."""

    _look_up: Callable[[Identity | None, PictureName], Awaitable[AlertPicture | None]]
    _reader: PictureReader | None
    """None: somebody with a link."""
    _name: PictureName
    _identity: Identity | None = None
    """As it was when that was asked last."""
    _asked_at: float = field(factory=trio.current_time)

    def __attrs_post_init__(self) -> None:
        self._identity = None if self._reader is None else self._reader.identity

    async def check(self) -> None:
        """`NotStored` if it may not be read any more, as far as that is known."""
        if self._reader is not None and await self._reader.has_expired():
            raise NotStored("its reader's session has ended")
        identity = None if self._reader is None else self._reader.identity
        is_changed = identity is not self._identity
        if not is_changed and trio.current_time() - self._asked_at < LOOK_AGAIN_INTERVAL:
            return
        try:
            found = await self._look_up(identity, self._name)
        except ApiError:  # the store is away; who has lost nothing reads on
            if is_changed:
                raise NotStored("it is not known whether its reader may still see it") from None
        else:
            if found is None:
                raise NotStored("its reader may not see it any more")
        self._identity, self._asked_at = identity, trio.current_time()

    async def watch(self, abort: Callable[[], object]) -> None:
        """Check it from time to time, and abort the answer once the file may not be read any
        more."""
        try:
            while True:
                await trio.sleep(LOOK_AGAIN_INTERVAL)
                await self.check()
        except NotStored:
            abort()
