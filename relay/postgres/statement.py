"""SQL statements that are composed of names, such as those of the tables of the application."""

from __future__ import annotations

from attrs import define, field
from psycopg import sql

from relay.postgres.database import Connection


@define(eq=False, repr=False)
class Statement:
    """A statement whose text is made once: to compose it takes a fifth of a short query."""

    _composed: sql.Composed
    _text: bytes | None = field(default=None, repr=False)

    def text(self, connection: Connection) -> bytes:
        """The text; names are quoted by the first connection, and all have the same encoding."""
        if self._text is None:
            self._text = self._composed.as_bytes(connection)
        return self._text
