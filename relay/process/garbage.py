"""Python's garbage collector, as a server wants it."""

from __future__ import annotations

import gc


def collect_garbage_less_often() -> None:
    """Make full collections rare: with a thousand connections one delays all frames by 50 ms, and
    by default it runs once a second while many clients connect and disconnect."""
    gc.collect()
    gc.freeze()  # what exists now lives until the end
    gc.set_threshold(5000, 5, 10)
