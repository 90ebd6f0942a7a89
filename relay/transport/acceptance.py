"""How a connection came to a worker process."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen


def _ignore(_number: int) -> None:
    """Tell nobody."""


@frozen
class Acceptance:
    """How a connection came, and who wants to know what becomes of it."""

    number: int
    """The number of the connection, in the order of acceptance on this machine."""
    accepted_at: float
    """By Trio's clock, in this process."""
    on_authenticated: Callable[[int], object] = _ignore
    """Called with the number when the client is authenticated."""
    on_left: Callable[[int], object] = _ignore
    """Called with the number when the connection is over."""

    def authenticated(self) -> None:
        self.on_authenticated(self.number)

    def left(self) -> None:
        self.on_left(self.number)
