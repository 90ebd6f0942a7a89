"""Escapes untrusted text for a terminal."""

from __future__ import annotations


def printable(text: str, max_length: int = 200) -> str:
    """Cut `text` to `max_length` characters and escape those that do not print.

    A name can then neither move the cursor, nor colour what follows, nor reverse the direction of
    writing. Escapes may make the result longer.
    """
    cut = text if len(text) <= max_length else text[: max_length - 1] + "…"
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode()
        for each in cut
    )
