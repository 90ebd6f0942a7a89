"""The users and the key of notifications in browsers, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field


@define(eq=False)
class PushStore:
    granted: dict[str, frozenset[str]] = field(factory=lambda: {"ann": frozenset()})
    """Of users that are not banned."""
    deleted: set[str] = field(factory=set)
    private_key: str = ""
    looks: list[int] = field(factory=list)
    """At how many events each look for targets of users was, at most."""
    answers: list[bool | None] = field(factory=list)
    """To those looks."""
    before_query: Callable[[], object] = field(default=lambda: None)

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        self.before_query()
        return {each: self.granted[each] for each in user_ids if each in self.granted}

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        self.before_query()
        return self.deleted & {*user_ids}

    async def wake_viewers(self, most: int) -> bool | None:
        self.looks.append(most)
        self.before_query()
        return self.answers.pop(0) if self.answers else None

    async def push_key(self, new: str) -> str:
        self.before_query()
        self.private_key = self.private_key or new
        return self.private_key
