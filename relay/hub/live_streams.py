"""The ids of the live streams, in their order, so that a list of some needs no look at the rest."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from attrs import define, field

from relay.model.access import permissions
from relay.model.access.identity import Identity


@define(eq=False)
class LiveStreams:
    """The live streams by id and by owner."""

    ids: list[str] = field(factory=list)
    """Sorted."""
    by_owner: dict[str, set[str]] = field(factory=dict)

    def add(self, stream_id: str, owner_id: str) -> None:
        insort(self.ids, stream_id)
        self.by_owner.setdefault(owner_id, set()).add(stream_id)

    def discard(self, stream_id: str, owner_id: str) -> None:
        del self.ids[bisect_left(self.ids, stream_id)]
        ids = self.by_owner[owner_id]
        ids.discard(stream_id)
        if not ids:
            del self.by_owner[owner_id]

    def __contains__(self, stream_id: str) -> bool:
        at = bisect_left(self.ids, stream_id)
        return at < len(self.ids) and self.ids[at] == stream_id

    def visible_to(self, identity: Identity, after: str = "") -> Iterator[str]:
        """The ids behind `after` of what the identity may see, in order, and perhaps of others."""
        visible = permissions.visible_streams(identity)
        if visible.everything:
            return self._behind(after)
        ids = set(self.by_owner.get(visible.owner_id or "", ()))
        ids.update(each for each in visible.stream_ids if each in self)
        for prefix in visible.prefixes:
            ids.update(self._beginning_with(prefix))
        return iter(sorted(each for each in ids if each > after))

    def _behind(self, after: str) -> Iterator[str]:
        for at in range(bisect_right(self.ids, after), len(self.ids)):
            yield self.ids[at]

    def _beginning_with(self, prefix: str) -> list[str]:
        # The characters of an id are ASCII.
        return self.ids[bisect_left(self.ids, prefix) : bisect_left(self.ids, prefix + "\x7f")]
