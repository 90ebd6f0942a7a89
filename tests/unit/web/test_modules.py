"""The JavaScript that relay serves: browsers ask for all modules at once, not level by level."""

from __future__ import annotations

import posixpath
import re

import pytest

from relay.web.assets import FILES, load_assets

MAX_CONNECTIONS = 6
"""Connections that a browser opens to one host. Each carries one request."""
IMPORT = re.compile(r"""^(?:import|export)\b(?:[^;'"(]*?\bfrom)?\s*'([^']+)'""", re.MULTILINE)
PRELOAD = re.compile(r'<link rel="modulepreload" href="([^"]+)">')
SCRIPT = re.compile(r'<script type="module" src="([^"]+)">')

SOURCES = {path: asset.content.decode() for path, asset in load_assets().items()}


def imports(path: str) -> list[str]:
    """What a module names itself, apart from what it loads later."""
    folder = posixpath.dirname(path)
    return [
        posixpath.normpath(posixpath.join(folder, name)) for name in IMPORT.findall(SOURCES[path])
    ]


def closure(path: str) -> set[str]:
    """All modules without which a module does not run, itself among them."""
    found, due = {path}, [path]
    while due:
        new = {*imports(due.pop())} - found
        found |= new
        due += new
    return found


@pytest.mark.parametrize("entry", ["/relay-client.js", "/relay-player.js"])
def test_what_applications_import_names_all_modules(entry: str) -> None:
    assert {entry, *imports(entry)} == closure(entry)


def test_the_modules_of_the_client_come_in_one_round_of_connections() -> None:
    assert 1 < len({*imports("/relay-client.js")}) <= MAX_CONNECTIONS


def test_the_page_names_all_modules_of_its_first_view() -> None:
    (script,) = SCRIPT.findall(SOURCES["/"])
    preloaded = [f"/{name}" for name in PRELOAD.findall(SOURCES["/"])]
    assert sorted([f"/{script}", *preloaded]) == sorted(closure(f"/{script}"))


def test_modules_import_only_what_is_served() -> None:
    modules = [path for path in FILES if path.endswith(".js")]
    assert {each for path in modules for each in imports(path)} <= set(modules)
    assert "/relay-client.js" in imports("/page/broadcast.js")
