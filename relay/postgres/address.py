"""The address of a database: parsed once, completed, and its password kept out of messages."""

from __future__ import annotations

import math
import re
import traceback
from typing import Any
from urllib.parse import quote

import psycopg
from attrs import field, frozen
from psycopg.conninfo import conninfo_to_dict

from relay.errors import ConfigError, StoreUnavailable
from relay.postgres.url_parameters import (
    OTHER_DRIVERS_PARAMETERS,
    UNKNOWN_PARAMETER,
    translate,
)

EXPECTED = (
    "the database URL cannot be read: it should look like"
    " postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
    " with special characters in the password percent-encoded"
)


@frozen
class DatabaseAddress:
    """The arguments of `psycopg.connect`, and its errors without secrets."""

    arguments: dict[str, Any] = field(repr=False)
    _secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, url: str, *, connect_timeout: float) -> DatabaseAddress:
        """Parse a URL, or libpq's `key=value` form; its own values win over our defaults."""
        try:
            given = conninfo_to_dict(translate(url))
        except (psycopg.ProgrammingError, UnicodeDecodeError) as error:
            # The reason quotes the part that cannot be read, which may be the password.
            option = re.search(r'invalid connection option "(\w+)"', str(error))
            if option and option[1].lower() in OTHER_DRIVERS_PARAMETERS:
                raise ConfigError(UNKNOWN_PARAMETER.format(option[1])) from None
            raise ConfigError(EXPECTED) from None
        passwords = {str(given[name]) for name in ("password", "sslpassword") if given.get(name)}
        return cls(
            {
                "application_name": "relay",
                "connect_timeout": max(2, math.ceil(connect_timeout)),
                # Notice a peer that vanished within seconds, not hours.
                "keepalives_idle": 10,
                "keepalives_interval": 3,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
                **given,
                # Another one would lack characters that clients send.
                "client_encoding": "utf8",
                # PgBouncer may run each transaction on another server connection.
                "prepare_threshold": None,
                "autocommit": True,
            },
            tuple(sorted(passwords | {quote(password, safe="") for password in passwords})),
        )

    @property
    def host(self) -> str | None:
        """The host, or the folder of its Unix socket; None for the default of libpq."""
        given = self.arguments.get("hostaddr") or self.arguments.get("host")
        return None if given is None else str(given).split(",", maxsplit=1)[0]

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """The `StoreUnavailable` for an error of psycopg."""
        # Its frames would keep a half-made connection, and its file, until garbage is collected.
        traceback.clear_frames(error.__traceback__)
        return StoreUnavailable(self.clean(error))

    def clean(self, error: BaseException) -> str:
        """The text of an error, in one line and without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if "local user with ID" in text:  # libpq asks who we are; a container may not know
            text += "; name a user in database_url"
        return text
