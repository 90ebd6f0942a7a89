"""A subscription that hands its frames to a reader who fetches them one by one."""

from __future__ import annotations

import trio
from attrs import define, field

from relay.concurrency.wakeup import Wakeup
from relay.hub.consumer import Consumer
from relay.hub.frames.frame import Frame
from relay.hub.ledger import Drop

FETCHED = 256
"""An obstacle that is always there: nothing is written by the connection itself."""


@define(eq=False)
class StillConsumer(Consumer):
    """Keeps the newest frame until it is fetched.

    It is a consumer like any other, and so the producer sends as long as there is one.
    """

    _came: Wakeup = field(factory=Wakeup)
    _unusable: bool = False
    """Whether a frame came that cannot be had in the form that was asked for."""

    def __attrs_post_init__(self) -> None:
        super(StillConsumer, self).__attrs_post_init__()  # noqa: UP008 (slots)
        self.obstacles |= FETCHED

    async def fetch(self) -> Frame | None:
        """Wait for a frame; None for one that cannot be had in the form that was asked for. A large
        one is still to be encoded."""
        while (frame := self._take_waiting()) is None:
            if self._unusable:
                self._unusable = False
                return None
            await self._came.wait()
        now = trio.current_time()
        self._metrics.frame_age.observe(now - frame.accepted_at)
        self._note_sent(frame, frame.size, now, probed=False)
        return frame

    def _may_send(self, frame: Frame | None = None) -> bool:  # noqa: ARG002 (it is fetched)
        return False

    def _let_wait(self, frame: Frame, size: int) -> None:
        super(StillConsumer, self)._let_wait(frame, size)  # noqa: UP008 (slots)
        self._came.set()

    def _drop(self, frame: Frame, why: Drop) -> None:
        super(StillConsumer, self)._drop(frame, why)  # noqa: UP008 (slots)
        if why is Drop.UNENCODABLE:
            self._unusable = True
            self._came.set()
