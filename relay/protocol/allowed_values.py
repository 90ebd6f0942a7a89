"""Says which values a field may have, where a message has another one: msgspec names that alone."""

from __future__ import annotations

import re
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

MAX_REPEATED_CHARACTERS = 60
"""Of a wrong value."""

# Greedy: the value may have anything in it, also what looks like a path.
_PROBLEM = re.compile(r"Invalid enum value (.*) - at `\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[[^\]]*\]")


def with_allowed_values(problem: str, kind: Any) -> str:
    """What msgspec says of a message of this type, with the values that a field may have if it says
    that one has another value."""
    found = _PROBLEM.fullmatch(problem)
    if found is None:
        return problem
    value, path = found.groups()
    allowed = allowed_values(kind, path)
    if not allowed:
        return problem
    if len(value) > MAX_REPEATED_CHARACTERS:
        value = f"{value[:MAX_REPEATED_CHARACTERS]}…"
    listed = ", ".join(f"`{each}`" for each in allowed)
    return f"Expected {'one of ' * (len(allowed) > 1)}{listed}, got {value} - at `${path}`"


@lru_cache(256)  # paths are made of the names of fields, which are few
def allowed_values(kind: Any, path: str) -> tuple[str | int, ...]:
    """The values of a field, in the order in which they are declared; `path` is how msgspec names
    it, such as `.layers[0].codec`. Empty if that leads to no such field."""
    kinds = _plain(kind)
    for step in _STEP.finditer(path):
        kinds = [below for each in kinds for below in _below(each, step[1])]
    values = [value for each in kinds if get_origin(each) is Literal for value in get_args(each)]
    return tuple(dict.fromkeys(values))


def _below(kind: Any, name: str | None) -> list[Any]:
    """The types of a field; without a name, of what a list or a table has in it."""
    if name is None:
        return [below for each in get_args(kind)[-1:] for below in _plain(each)]
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return []
    found = [each for each in msgspec.structs.fields(kind) if each.encode_name == name]
    return [below for each in found for below in _plain(each.type)]


def _plain(kind: Any) -> list[Any]:
    """The types of which a value may be, without what else is said of it."""
    if hasattr(kind, "__metadata__"):
        return _plain(kind.__origin__)
    if get_origin(kind) in {Union, UnionType}:
        return [below for each in get_args(kind) for below in _plain(each)]
    return [kind]
