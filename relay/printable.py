"""Text from elsewhere, made fit for a terminal. Floor 0."""

from __future__ import annotations


def printable(text: str, most: int = 200) -> str:
    """`text` in one line of at most so many characters, what does not print in its escaped form.

    So that a name can neither move the cursor, nor colour what follows, nor turn the direction of
    writing around.
    """
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode()
        for each in cut
    )
