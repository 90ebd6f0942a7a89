"""What a service is at, so that its supervisor sees when it gets nowhere. Floor 0."""

from __future__ import annotations

import trio
from attrs import define


@define(eq=False)
class Turn:
    """One piece of work that is due to end, `with turn:` around it; waiting for work is none.

    Of a service with several tasks it is about one of them.
    """

    began: float | None = None
    """When it did, by Trio's clock; None between two."""

    def __enter__(self) -> None:
        self.began = trio.current_time()

    def __exit__(self, *_: object) -> None:
        self.began = None

    def lasts(self, seconds: float) -> bool:
        """Whether it has been under way for so long, or longer."""
        return self.began is not None and trio.current_time() >= self.began + seconds
