"""Something about the database that seems to be wrong."""

from __future__ import annotations

from attrs import frozen


@frozen
class Suspicion:
    """What seems to be wrong, and what to do about it."""

    said: str
    do: str
    is_certain: bool = False
