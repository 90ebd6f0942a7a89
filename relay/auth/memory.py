"""Answers about tokens, remembered for a few seconds. Floor 2."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime

import trio
from attrs import define, field, frozen

from relay.model import User


@frozen
class Remembered:
    """What was answered."""

    user: User | None
    until: float
    """By Trio's clock."""


@define(eq=False)
class Memory:
    """The newest answers by the digests of their tokens, never beyond a token's expiry."""

    _seconds: float
    _most: int
    _answers: OrderedDict[bytes, Remembered] = field(factory=OrderedDict, repr=False)
    changes: int = 0
    """Grows when something is forgotten: an answer that was under way then may be out of date."""

    def recall(self, digest: bytes) -> Remembered | None:
        answer = self._answers.get(digest)
        if answer is None:
            return None
        if answer.until <= trio.current_time():
            del self._answers[digest]
            return None
        self._answers.move_to_end(digest)
        return answer

    def keep(self, digest: bytes, user: User | None) -> None:
        seconds = self._seconds
        if user is not None:
            left = (user.expires_at - datetime.now(UTC)).total_seconds()
            seconds = min(seconds, left)
        if seconds <= 0:
            return
        self._answers[digest] = Remembered(user, trio.current_time() + seconds)
        self._answers.move_to_end(digest)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def forget(self, *, user_id: str | None = None, session_id: str | None = None) -> None:
        """What is known of this user, or of this session; of neither, everything."""
        self.changes += 1
        if user_id is None and session_id is None:
            self._answers.clear()
            return
        for digest, answer in list(self._answers.items()):
            user = answer.user
            if user is not None and (user.user_id == user_id or user.session_id == session_id):
                del self._answers[digest]

    def __len__(self) -> int:
        return len(self._answers)
