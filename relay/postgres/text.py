"""What Postgres can keep as `text`, and what it cannot. Floor 1.

JSON may carry U+0000 and lone surrogates; a parameter with one of them fails the whole statement,
and a statement is shared by everyone who waits at that moment.
"""

from __future__ import annotations


def storable(text: str) -> str:
    """`text` with what Postgres cannot keep replaced."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def is_storable(text: str) -> bool:
    return storable(text) == text
