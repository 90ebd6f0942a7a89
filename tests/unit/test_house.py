"""The house: who may import whom.

A file imports only from rooms on floors below its own, or from its own room. Ask this table before
moving something; change it when the house is rebuilt.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import relay

FLOORS = {
    6: [
        *("__main__", "cli", "commands", "audit_report", "demo", "load"),
        *("doctor", "top", "readiness"),
    ],
    5: ["app"],
    4: ["server", "supervisor", "web"],
    3: [
        *("connection", "admission", "authentication", "inbox", "expiry"),
        *("session", "participant", "production", "alert_requests", "services", "errands"),
    ],
    2: ["hub", "auth", "alerts", "answers", "audit", "client", "guard", "hangup"],
    1: ["transport", "postgres", "batching", "outbound", "courier"],
    0: [
        *("protocol", "closing", "config", "settings", "errors", "logs", "metrics", "model"),
        *("policy", "token_settings", "limit_settings", "turns", "complaints"),
        *("printable", "setting_doubts", "settings_report"),
    ],
}

# Rooms of one floor do not import one another, but for these.
NEIGHBOURS = {
    ("__main__", "cli"),
    ("cli", "commands"),
    ("cli", "demo"),
    ("cli", "load"),
    ("load", "demo"),
    ("commands", "audit_report"),
    ("web", "supervisor"),
    ("connection", "admission"),
    ("connection", "authentication"),
    ("connection", "expiry"),
    ("connection", "inbox"),
    ("connection", "session"),
    ("inbox", "authentication"),
    ("inbox", "errands"),
    ("inbox", "session"),
    ("session", "alert_requests"),
    ("session", "participant"),
    ("session", "production"),
    ("session", "services"),
    ("production", "participant"),
    ("production", "services"),
    ("alert_requests", "participant"),
    ("alert_requests", "services"),
    ("connection", "services"),
    ("metrics", "closing"),
    ("closing", "protocol"),
    ("config", "errors"),
    ("config", "settings"),
    ("settings", "errors"),
    ("policy", "model"),
    ("settings", "token_settings"),
    ("token_settings", "errors"),
    ("config", "limit_settings"),
    ("settings", "limit_settings"),
    ("limit_settings", "errors"),
    ("setting_doubts", "config"),
    ("setting_doubts", "settings"),
    ("settings_report", "config"),
    ("settings_report", "settings"),
    ("cli", "readiness"),
    ("commands", "doctor"),
    ("commands", "top"),
}

ONLY_IN = {
    "trio_websocket": "transport",
    "psycopg": "postgres",
    "httpx2": "outbound",
    "httpcore2": "courier",
    "joserfc": "auth",
    "limits": "guard",
}
NO_TRIO = {"protocol", "closing"}

FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ROOT = Path(relay.__file__).parent
FILES = {
    ".".join(("relay", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room_of(module: str) -> str:
    """`hub` for relay.hub.stream; the package itself is no room, and nobody needs it."""
    return module.split(".")[1]


def imports(module: str, source: str) -> Iterator[str]:
    """The full names of what a module imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module="relay", level=0, names=names):
                yield from (f"relay.{name.name}" for name in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name
            case ast.ImportFrom():
                yield f"a relative name, in {module}"


def objections(module: str, source: str) -> list[str]:
    room = room_of(module)
    found: list[str] = []
    for imported in imports(module, source):
        package, *_ = imported.split(".")
        if package == "relay":
            found += object_to_room(room, room_of(imported))
        elif " " in package:
            found.append("imports by a relative name: write it out, from relay")
        elif ONLY_IN.get(package, room) != room:
            found.append(f"imports {package}, which is for relay/{ONLY_IN[package]} alone")
        elif package == "trio" and room in NO_TRIO:
            found.append("imports trio: what is said there holds for any kind of I/O")
    return found


def object_to_room(room: str, imported: str) -> Iterator[str]:
    here, there = FLOOR_OF[room], FLOOR_OF.get(imported)
    if there is None:
        yield f"imports relay.{imported}, which is on no floor: add it to FLOORS"
    elif imported != room and there >= here and (room, imported) not in NEIGHBOURS:
        yield f"is on floor {here} and imports relay.{imported}, on floor {there}"


@pytest.mark.parametrize("module", [name for name in FILES if name != "relay.__init__"])
def test_a_module_imports_only_from_below(module: str) -> None:
    assert room_of(module) in FLOOR_OF, f"{module} is on no floor: add it to FLOORS"
    found = objections(module, FILES[module].read_text())
    assert not found, f"{module} {'; '.join(found)}"


@pytest.mark.parametrize("module", FILES)
def test_a_module_says_what_it_is_for_and_where_it_stands(module: str) -> None:
    about = ast.get_docstring(ast.parse(FILES[module].read_text()))
    assert about, f"{module} has no docstring"
    if module != "relay.__init__":
        named = re.findall(r"\bFloor\s+(\d)\b", about)
        assert named == [str(FLOOR_OF[room_of(module)])], f"{module} says floor {named}"


def test_every_room_of_the_table_is_there() -> None:
    assert set(FLOOR_OF) == {room_of(name) for name in FILES if name != "relay.__init__"}


def test_every_exception_of_the_table_is_in_use() -> None:
    used = {
        (room_of(module), room_of(imported))
        for module, path in FILES.items()
        if module != "relay.__init__"
        for imported in imports(module, path.read_text())
        if imported.startswith("relay.")
    }
    assert used >= NEIGHBOURS


@pytest.mark.parametrize(
    ("module", "source", "objection"),
    [
        ("relay.hub.stream", "from relay.session import Session", "imports relay.session, on fl"),
        ("relay.hub.stream", "from relay import app", "imports relay.app, on floor 5"),
        ("relay.hub.stream", "import relay.auth.verification", "imports relay.auth, on floor 2"),
        ("relay.hub.stream", "def f():\n    import relay.cli", "imports relay.cli, on floor 6"),
        ("relay.hub.stream", "from . import consumer", "relative name"),
        ("relay.hub.stream", "from ..session import Session", "relative name"),
        ("relay.hub.stream", "from relay.attic import old", "on no floor"),
        ("relay.hub.stream", "from psycopg import sql", "for relay/postgres alone"),
        ("relay.postgres.alerts", "import trio_websocket", "for relay/transport alone"),
        ("relay.protocol.codec", "from trio import lowlevel", "imports trio"),
        ("relay.closing", "if True:\n    import trio.abc", "imports trio"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, objection: str) -> None:
    (found,) = objections(module, source)
    assert objection in found


def test_right_imports_are_not_objected_to() -> None:
    source = "import trio\nfrom relay.errors import RelayError\nfrom relay.hub.hub import Hub"
    assert objections("relay.hub.stream", source) == []
