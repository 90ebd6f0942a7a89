"""The address of a database: read once, completed, and kept out of every message. Floor 1."""

from __future__ import annotations

import math
import traceback
from typing import Any
from urllib.parse import quote

import psycopg
from attrs import field, frozen
from psycopg.conninfo import conninfo_to_dict

from relay.errors import ConfigError, StoreUnavailable

EXPECTED = (
    "the database URL cannot be read: it should look like"
    " postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
    " with special characters in the password percent-encoded"
)


@frozen
class Address:
    """What `psycopg.connect` is called with, and how to speak about it."""

    arguments: dict[str, Any] = field(repr=False)
    _secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, url: str, *, connect_timeout: float) -> Address:
        """Read a URL (or libpq's `key=value` form); what it says itself wins over our defaults."""
        try:
            given = conninfo_to_dict(url)
        except (psycopg.ProgrammingError, UnicodeDecodeError):
            # The reason quotes the part that cannot be read, which may be the password.
            raise ConfigError(EXPECTED) from None
        passwords = {str(given[name]) for name in ("password", "sslpassword") if given.get(name)}
        return cls(
            {
                "application_name": "relay",
                "client_encoding": "utf8",
                "connect_timeout": max(2, math.ceil(connect_timeout)),
                # A peer that vanished without a word is noticed in seconds, not hours.
                "keepalives_idle": 10,
                "keepalives_interval": 3,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
                **given,
                # PgBouncer gives every transaction another server connection.
                "prepare_threshold": None,
                "autocommit": True,
            },
            tuple(sorted(passwords | {quote(password, safe="") for password in passwords})),
        )

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """What it comes to for those who asked that psycopg raised this."""
        # Its frames would keep a half-made connection, and its file, until garbage is collected.
        traceback.clear_frames(error.__traceback__)
        return StoreUnavailable(self.clean(error))

    def clean(self, error: BaseException) -> str:
        """The text of an error in one line, without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
