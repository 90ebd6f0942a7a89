"""A renderer that makes smaller pictures of nothing but their headers, after some time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio
from attrs import define, field

from relay.renditions.jpeg_header import read_size
from relay.transport.link import Buffer


def jpeg(width: int, height: int, size: int = 0) -> bytes:
    """The header of a baseline picture, and as many bytes behind it as make `size`."""
    frame = b"\xff\xc0\x00\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    head = b"\xff\xd8" + frame + b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    return head.ljust(size, b"\x55")


@define(eq=False)
class MemoryRenderer:
    """Makes pictures whose bytes grow with the width to the power of 1.5."""

    seconds: float = 0.005
    """The time that a picture takes."""
    has_room: bool = True
    fails: bool = False
    problem: Exception | None = None
    """What it raises."""
    tried: int = 0
    at_work: int = 0
    most_at_work: int = 0
    made: list[tuple[str, int]] = field(factory=list)
    """The owner and the width of each picture that was made."""

    def can_render(self, owner_id: str, now: float) -> bool:
        return self.has_room

    async def render(
        self, owner_id: str, picture: Buffer, widths: Sequence[int]
    ) -> Mapping[int, bytes]:
        assert list(widths) == sorted(widths, reverse=True)
        self.tried += 1
        self.at_work += 1
        self.most_at_work = max(self.at_work, self.most_at_work)
        await trio.sleep(self.seconds)
        self.at_work -= 1
        if self.problem is not None:
            raise self.problem
        if self.fails:
            return {}
        size = read_size(picture)
        assert size is not None
        self.made += [(owner_id, width) for width in widths]
        sizes = {width: int(len(picture) * (width / size[0]) ** 1.5) for width in widths}
        return {width: jpeg(width, size[1] * width // size[0], sizes[width]) for width in widths}
