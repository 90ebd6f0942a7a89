"""Keeps MP4 files that were made a moment ago, because players ask for one piece after another."""

from __future__ import annotations

import structlog
import trio
from attrs import define, field, frozen

from relay.concurrency.alarms import Alarms
from relay.model.alerts.alert_picture import PictureName

MAX_MADE_BYTES = 32 << 20
"""Of all files that are kept; a larger one is made anew for each request."""
MADE_SECONDS = 60.0
"""For which a file is kept after it was asked for."""

log = structlog.get_logger()


@frozen
class MadeClip:
    """An MP4 file."""

    content: bytes = field(repr=False)
    etag: str
    """The same for the same bytes, on all relays."""


@define(eq=False)
class MadeClips:
    """The MP4 files that are kept, by the clips they were made of. An `Owner` of alarms."""

    _alarms: Alarms
    """Let go of files that nobody asks for any more."""
    _clips: dict[PictureName, tuple[float, MadeClip]] = field(factory=dict)
    """With the times when they were asked for; the one that was asked for last is the last."""
    _is_set: bool = False
    """Whether an alarm is set."""

    @property
    def held_bytes(self) -> int:
        """Of all that are kept."""
        return sum(len(clip.content) for _, clip in self._clips.values())

    def find(self, name: PictureName) -> MadeClip | None:
        """A file, which is kept for longer now."""
        found = self._clips.get(name)
        if found is None:
            return None
        self.keep(name, found[1])
        return found[1]

    def keep(self, name: PictureName, clip: MadeClip) -> None:
        """Keep a file, in place of those that were asked for longest ago."""
        self._clips.pop(name, None)
        if len(clip.content) > MAX_MADE_BYTES:
            return
        while self.held_bytes + len(clip.content) > MAX_MADE_BYTES:
            del self._clips[next(iter(self._clips))]
        now = trio.current_time()
        self._clips[name] = now, clip
        self._set_alarm(now)

    def fail(self, problem: Exception) -> None:
        log.error("MP4 files are not let go of", exc_info=problem)

    def _set_alarm(self, used_at: float) -> None:
        if not self._is_set:
            self._is_set = True
            self._alarms.set(used_at + MADE_SECONDS, self._forget_old, self)

    def _forget_old(self) -> None:
        self._is_set = False
        now = trio.current_time()
        for name, (used_at, _) in [*self._clips.items()]:
            if used_at + MADE_SECONDS > now:
                self._set_alarm(used_at)
                return
            del self._clips[name]
