"""The path under which clients reach a relay that is behind a proxy, such as `/relay`."""

from __future__ import annotations

import re

MAX_BASE_PATH_LENGTH = 255
BASE_PATH_RULE = (
    f"a path such as /relay: segments of letters, digits and - . _ ~, at most"
    f" {MAX_BASE_PATH_LENGTH} characters, with no slash at the end"
)
_BASE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
"""No character of it means anything in a URL, in HTML or in a header."""


def is_base_path(text: str) -> bool:
    """Whether a text can stand in front of a path; the empty one does."""
    return len(text) <= MAX_BASE_PATH_LENGTH and _BASE_PATH.fullmatch(text) is not None


def path_below(base_path: str, path: str) -> str:
    """What a path is below the base path; proxies may have removed that already."""
    return path.removeprefix(base_path) if path.startswith(f"{base_path}/") else path
