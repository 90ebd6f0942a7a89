"""The path under which clients reach a relay that is behind a proxy, such as `/relay`."""

from __future__ import annotations

import re

MAX_BASE_PATH_LENGTH = 255
BASE_PATH_RULE = (
    "a path such as /relay, that does not begin as relay's own (/streams, /page): segments of"
    f" letters, digits and - . _ ~, at most {MAX_BASE_PATH_LENGTH} characters, with no slash at"
    " the end"
)
OWN_SEGMENTS = frozenset(
    (
        *("alerts", "core", "figures", "health", "links", "metrics", "operate", "page", "player"),
        *("ready", "relay-client.d.ts", "relay-client.js", "relay-player.d.ts", "relay-player.js"),
        *("revocations", "stats", "streams", "app.webmanifest", "push", "push-worker.js"),
    )
)
"""How relay's own paths begin: below a path that begins so, nobody could tell what is meant."""
_BASE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
"""No character of it means anything in a URL, in HTML or in a header."""


def is_base_path(text: str) -> bool:
    """Whether a text can stand in front of a path; the empty one does."""
    if len(text) > MAX_BASE_PATH_LENGTH or _BASE_PATH.fullmatch(text) is None:
        return False
    return text[1:].partition("/")[0] not in OWN_SEGMENTS


def path_below(base_path: str, path: str) -> str:
    """What a path is below the base path; proxies may have removed that already."""
    return path.removeprefix(base_path) if path.startswith(f"{base_path}/") else path
