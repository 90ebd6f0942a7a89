"""One word, one thing: class names and constants of `relay/` that are defined more than once.

    .venv/bin/python scripts/names.py            # the list
    .venv/bin/python scripts/names.py --check    # exit status 1 when a name on it has no reason

A name that is defined twice makes a reader ask which is meant. `REASONS` has those where both
mean the same to somebody of the field, and why.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "relay"

_SEEN_BY_A_CLIENT = "the message, and the event that a client makes of it"

REASONS: dict[str, str] = {
    "Alert": _SEEN_BY_A_CLIENT,
    "Frame": "a video frame, as the hub forwards it and as a client gets it",
    "FramesReceived": _SEEN_BY_A_CLIENT,
    "Notice": _SEEN_BY_A_CLIENT,
    "Status": _SEEN_BY_A_CLIENT,
    "StreamEntry": _SEEN_BY_A_CLIENT,
    "Streams": _SEEN_BY_A_CLIENT,
    "T": "the usual name of a type variable",
}
"""Names that may be defined more than once, each with the reason."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail when a name has no reason")
    options = parser.parse_args()
    found = repeated_names(PACKAGE)
    for name, places in sorted(found.items()):
        reason = f"  ({REASONS[name]})" if name in REASONS else ""
        print(f"{name}: {', '.join(places)}{reason}")
    unexplained = found.keys() - REASONS.keys()
    unused = REASONS.keys() - found.keys()
    for name in sorted(unused):
        print(f"{name}: has a reason and is defined once: remove it from REASONS")
    print(f"{len(found)} names are defined more than once, {len(unexplained)} without a reason")
    return 1 if options.check and (unexplained or unused) else 0


def repeated_names(package: Path) -> dict[str, list[str]]:
    """Where each name stands that is defined in more than one module, as paths in the package."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for name in definitions(ast.parse(path.read_text())):
            places[name].append(path.relative_to(package).as_posix())
    return {name: where for name, where in places.items() if len(where) > 1}


def definitions(module: ast.Module) -> Iterator[str]:
    """The public and private classes and constants at the top of a module."""
    for node in module.body:
        match node:
            case ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from constants(target)
            case ast.AnnAssign(target=target):
                yield from constants(target)


def constants(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name(id=name) if name.isupper() and name != "_":
            yield name
        case ast.Tuple(elts=elements):
            for element in elements:
                yield from constants(element)


if __name__ == "__main__":
    sys.exit(main())
