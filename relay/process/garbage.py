"""Python's garbage collector, as a server wants it."""

from __future__ import annotations

import gc


def collect_garbage_less_often() -> None:
    """Make collections rare, full ones above all: with a thousand connections one delays all frames
    by 50 ms, and by default it runs once a second while many clients connect and disconnect. Called
    first, it also shortens the start, which makes much and leaves little of it as garbage."""
    gc.set_threshold(5000, 5, 10)


def keep_what_there_is() -> None:
    """Leave all that exists now out of collections, since it lives until the end."""
    gc.collect()
    gc.freeze()
