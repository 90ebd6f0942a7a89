"""Hints for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`; None if none is near."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name closest to `name`, or else all known names."""
    names = sorted(known)
    found = closest(name, names)
    return f"; known are {', '.join(names)}" if found is None else f"; did you mean {found}?"
