"""The settings as `relay config show` prints them, with secrets hidden."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relay.settings.loading import VARIABLE_PREFIX, Configuration
from relay.settings.settings import SETTINGS

MASK = "***"

# A URL is shown only if its parts are beyond doubt: a password with a character that should have
# been encoded can make one part look like another.
_DATABASE_URL = re.compile(
    r"(?P<scheme>postgres(?:ql)?)://"
    r"(?:(?P<user>[\w.%+-]+)(?P<password>:[^@/?#\s]*)?@)?"
    r"(?P<host>[\w.-]*|\[[0-9A-Fa-f:]+\])(?P<port>:[0-9]+)?"
    r"(?P<name>/[\w.%-]*)?(?:\?(?P<options>[\w.%/=&-]*))?",
    re.ASCII,
)
_SHOWN_OPTIONS = {"host", "port", "dbname", "user", "sslmode", "connect_timeout"}


def describe(configuration: Configuration) -> Iterator[str]:
    """Each setting as a line of TOML with its source."""
    for name in SETTINGS:
        value = getattr(configuration.settings, name)
        source = configuration.sources.get(name, "default")
        if value is None:
            yield f"# {name} is not set"
        elif is_secret(name):
            address = without_password(value)
            known = f"{name} = {_toml(address)}" if address else f"{name} is hidden"
            yield f"# {known}  ({source})"
        else:
            yield f"{name} = {_toml(value)}  # {source}"


def as_values(configuration: Configuration) -> dict[str, dict[str, Any]]:
    """Each setting with its value and its source, for JSON."""
    found = {}
    for name in SETTINGS:
        value: Any = getattr(configuration.settings, name)
        if value is not None and is_secret(name):
            value = without_password(value) or MASK
        elif isinstance(value, Path):
            value = str(value)
        source = configuration.sources.get(name)
        found[name] = {
            "value": value,
            "secret": is_secret(name),
            "from": _kind(source),
            "source": source,
        }
    return found


def is_secret(name: str) -> bool:
    return bool(SETTINGS[name].metadata["secret"])


def without_password(url: str) -> str | None:
    """The URL of a database without its secrets; None if it may not be a URL."""
    parts = _DATABASE_URL.fullmatch(url)
    if parts is None:
        return None
    user = parts["user"]
    login = "" if user is None else f"{user}:{MASK}@" if parts["password"] else f"{user}@"
    options = [
        f"{key}={value if key in _SHOWN_OPTIONS else MASK}"
        for key, _, value in (each.partition("=") for each in (parts["options"] or "").split("&"))
        if key
    ]
    return (
        f"{parts['scheme']}://{login}{parts['host']}{parts['port'] or ''}{parts['name'] or ''}"
        f"{'?' + '&'.join(options) if options else ''}"
    )


def _kind(source: str | None) -> str:
    if source is None:
        return "default"
    if source.startswith("--"):
        return "option"
    return "environment" if re.fullmatch(rf"{VARIABLE_PREFIX}\w+", source) else "file"


def _toml(value: str | float | Path | tuple[str, ...]) -> str:
    """A value in TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else f"{value}"
