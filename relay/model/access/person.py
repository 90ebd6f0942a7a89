"""The people behind user ids, as operators see them."""

from __future__ import annotations

from attrs import frozen

MAX_PERSON_TEXT = 200
"""Characters of a name or an e-mail address; the user table may have more."""


@frozen
class Person:
    """What a user is called. The user chose the name, and may have chosen that of another."""

    name: str | None
    email: str | None
