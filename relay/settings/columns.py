"""Types and checks of the settings about Better Auth's columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from relay.errors import ConfigError

USER_FIELDS = (
    *("id", "name", "email", "emailVerified", "createdAt", "updatedAt", "banned", "banExpires"),
)
SESSION_FIELDS = ("id", "token", "userId", "expiresAt", "createdAt", "updatedAt")
"""The names that Better Auth has for the fields of its tables."""

Columns = Annotated[
    tuple[str, ...],
    Meta(
        title="FIELD=COLUMN,…",
        description="a list of Better Auth's fields and their columns, such as expiresAt=expires",
    ),
]
TimeZone = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z_]+(/[A-Za-z0-9_+-]+)*\Z",
        title="ZONE",
        description="the name of a time zone, such as UTC or Europe/Berlin",
    ),
]


def parse_columns(columns: tuple[str, ...]) -> Mapping[str, str]:
    """The columns by the names of their fields."""
    pairs = (each.partition("=") for each in columns)
    return {field.strip(): column.strip() for field, _, column in pairs}


def check_columns(_settings: object, attribute: object, columns: tuple[str, ...]) -> None:
    name = getattr(attribute, "name", "")
    known = USER_FIELDS if "user" in name else SESSION_FIELDS
    seen = set()
    for text in columns:
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\S.{0,62})", text)
        if match is None:
            raise ConfigError(f"{name}: expected FIELD=COLUMN, such as id=key, not {text!r}")
        if match[1] not in known:
            raise ConfigError(f"{name}: {match[1]!r} is not one of {', '.join(known)}")
        if match[1] in seen:
            raise ConfigError(f"{name}: {match[1]} is given twice")
        seen.add(match[1])
