"""What `relay target add` reads from files and the environment, and checks before it is stored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.errors import ConfigError
from relay.model.access.link import MAX_LINK_SECONDS

if TYPE_CHECKING:
    from datetime import timedelta

MAX_LOGIN_LENGTH = 512
MAX_AUTHORITY_LENGTH = 64 * 1024


def picture_options(picture_for: timedelta, *, wanted: bool) -> dict[str, Any]:
    if not 60 <= picture_for.total_seconds() <= MAX_LINK_SECONDS:
        raise click.BadParameter("links to pictures live between 1m and 24h")
    return {"picture": True, "picture_for": round(picture_for.total_seconds())} if wanted else {}


def credentials_in(file: Path | None, variable: str, check: Callable[[str, str], None]) -> str:
    """What to log in with, from the file or the environment; empty if there is none."""
    if file is None:
        found, where = os.environ.get(variable, "").strip(), variable
        if not found:
            return ""
    else:
        where = f"--credentials-file {file}"
        found = _text_of(file, where, MAX_LOGIN_LENGTH + 2).strip()
    check(found, where)
    return found


def check_login(text: str, where: str) -> None:
    """`ConfigError`, which shows none of it, unless it is USER:PASSWORD."""
    if not re.fullmatch(r"[^\x00-\x1f:]+:[^\x00-\x1f]*", text) or len(text) > MAX_LOGIN_LENGTH:
        raise ConfigError(f"{where} does not contain USER:PASSWORD")


def authority_in(file: Path) -> str:
    """The certificates in a file; `ConfigError` if there are none."""
    import ssl

    where = f"--ca-file {file}"
    text = _text_of(file, where, MAX_AUTHORITY_LENGTH)
    try:
        ssl.create_default_context(cadata=text or "no certificates")
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{where} contains no certificates in PEM") from None
    return text


def _text_of(file: Path, where: str, most: int) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(most)
    except OSError as error:
        raise ConfigError(f"cannot read {where}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"cannot read {where}: it is not a text file") from None
