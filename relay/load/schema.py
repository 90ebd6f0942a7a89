"""Reads tables of TOML into attrs classes, with errors that explain. Floor 6.

A field is declared by `key(...)` with a reader and the words for what it expects. What is wrong is
a `ScenarioError` that names the file, the key, what was expected, and the nearest known key.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
from attrs import define, frozen

from relay.errors import RelayError

T = TypeVar("T")
Reader = Callable[[Any], Any]
MISSING = attrs.NOTHING
LONGEST_VALUE = 60
"""Characters of a wrong value that are worth repeating."""


@define(eq=False)
class ScenarioError(RelayError):
    """What is wrong in a scenario, and where."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@frozen
class Place:
    """A table of a file, for errors."""

    file: str
    path: str = ""

    def at(self, key: str) -> Place:
        return Place(self.file, f"{self.path}.{key}" if self.path else key)

    def error(self, problem: str) -> ScenarioError:
        return ScenarioError(f"{self.file}: {self.path}" if self.path else self.file, problem)


def key(read: Reader, expected: str, default: Any = MISSING, *, factory: Any = None) -> Any:
    """A key that `read` makes a value of, or raises `ValueError`."""
    metadata = {"read": read, "expected": expected}
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


def nested(cls: type, default: Any = MISSING, *, short: Reader | None = None) -> Any:
    """A key that holds a table of another class, or with `short` also something simpler."""
    return attrs.field(default=default, metadata={"cls": cls, "short": short})


def read_table(cls: type[T], table: object, place: Place) -> T:
    """Make an instance of `cls` of a table."""
    if not isinstance(table, Mapping):
        raise place.error(f"expected a table, not {shown(table)}")
    fields = {
        attribute.name: attribute
        for attribute in attrs.fields(cls)  # type: ignore[arg-type]
        if attribute.metadata
    }
    for name in table:
        if name not in fields:
            raise place.at(name).error(f"there is no such key{nearest(name, fields)}")
    values = {}
    for name, attribute in fields.items():
        if name in table:
            values[name] = _read_value(attribute, table[name], place.at(name))
        elif attribute.default is MISSING:
            expected = attribute.metadata.get("expected", "a table")
            raise place.at(name).error(f"is missing: expected {expected}")
    try:
        return cls(**values)
    except ValueError as problem:  # what does not go together
        raise place.error(str(problem)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was perhaps meant."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]}?" if found else f"; known are {', '.join(names)}"


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _read_value(attribute: attrs.Attribute[Any], value: object, place: Place) -> Any:
    metadata = attribute.metadata
    if cls := metadata.get("cls"):
        if metadata["short"] is not None and not isinstance(value, Mapping):
            try:
                return metadata["short"](value)
            except ValueError as problem:
                words = str(problem) or "a table"
                raise place.error(f"expected {words}, not {shown(value)}") from None
        return read_table(cls, value, place)
    try:
        return metadata["read"](value)
    except ValueError:
        raise place.error(f"expected {metadata['expected']}, not {shown(value)}") from None


# -- readers


def whole(least: int, most: int) -> Reader:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    return read


def text(value: object) -> str:
    if isinstance(value, str) and value and value.isprintable():  # it is shown on terminals
        return value
    raise ValueError


def switch(value: object) -> bool:
    if value is True or value is False:
        return value
    raise ValueError


def one_of(*words: str) -> Reader:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return read


def list_of(read: Reader) -> Reader:
    def read_list(value: object) -> tuple[Any, ...]:
        if isinstance(value, list):
            return tuple(map(read, value))
        raise ValueError

    return read_list
