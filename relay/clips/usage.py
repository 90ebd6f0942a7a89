"""How many bytes of stills and clips are kept, and may be."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

FILE_BLOCK_BYTES = 4096
"""A file takes whole blocks: the smallest picture of many alerts would else cost nothing."""


def room_of(size: int) -> int:
    """The bytes that a file of this size takes, and counts for."""
    return -(-size // FILE_BLOCK_BYTES) * FILE_BLOCK_BYTES


@define(eq=False, repr=False)
class PictureUsage:
    """The bytes by owner, as they were last read, with what was added here since."""

    of_owner_limit: int
    in_all_limit: int
    _of_owner: dict[str, int] = field(factory=dict)
    in_all: int = 0

    def read(self, of_owner: Mapping[str, int]) -> None:
        """Go by what the table says."""
        self._of_owner, self.in_all = dict(of_owner), sum(of_owner.values())

    def add(self, owner_id: str, size: int) -> None:
        self._of_owner[owner_id] = self._of_owner.get(owner_id, 0) + size
        self.in_all += size

    def has_room(self, owner_id: str, size: int) -> bool:
        """Whether so many more bytes may be written now. The oldest make room soon, so a little
        more than the limit is let pass."""
        of_owner = self._of_owner.get(owner_id, 0) + size
        return (
            of_owner <= self.of_owner_limit * 5 // 4
            and self.in_all + size <= self.in_all_limit * 5 // 4
        )

    @property
    def too_much(self) -> bool:
        """Whether something has to be removed."""
        most = max(self._of_owner.values(), default=0)
        return most > self.of_owner_limit or self.in_all > self.in_all_limit
