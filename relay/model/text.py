"""The text that Postgres can store.

JSON may carry U+0000 and lone surrogates. A parameter with one of them fails the whole statement,
and a statement is shared by all requests of a batch.
"""

from __future__ import annotations


def storable(text: str) -> str:
    """`text`, with the characters replaced that Postgres cannot store."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def is_storable(text: str) -> bool:
    return storable(text) == text
