"""Reads TOML tables into attrs classes, with helpful errors.

A field is declared by `key(...)` with a reader and the words for what it expects. A
`ScenarioError` names the file, the key, what was expected, and the known key with the closest name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from attrs import define, frozen

from relay.errors import RelayError
from relay.load.suggestions import suggestion

T = TypeVar("T")
Reader = Callable[[Any], Any]
MISSING = attrs.NOTHING
MAX_SHOWN_CHARS = 60
"""Characters of a wrong value that an error repeats."""


@define(eq=False)
class ScenarioError(RelayError):
    """An error in a scenario, and where it is."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@frozen
class Place:
    """A table in a file, to name it in errors."""

    file: str
    path: str = ""

    def at(self, key: str) -> Place:
        return Place(self.file, f"{self.path}.{key}" if self.path else key)

    def item(self, number: int) -> Place:
        return Place(self.file, f"{self.path}[{number}]")

    def error(self, problem: str) -> ScenarioError:
        return ScenarioError(f"{self.file}: {self.path}" if self.path else self.file, problem)


def key(read: Reader, expected: str, default: Any = MISSING, *, factory: Any = None) -> Any:
    """Declare a key. `read` makes its value or raises `ValueError`."""
    metadata = {"read": read, "expected": expected}
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


def nested(cls: type, default: Any = MISSING, *, short: Reader | None = None) -> Any:
    """Declare a key that holds a table, or a shorter value that `short` reads."""
    return attrs.field(default=default, metadata={"cls": cls, "short": short})


def tables(cls: type) -> Any:
    """Declare a key that holds a list of tables; empty by default."""
    return attrs.field(default=(), metadata={"cls_of_each": cls})


def read_table(cls: type[T], table: object, place: Place) -> T:
    """Make an instance of `cls` from a table; `ScenarioError`."""
    if not isinstance(table, Mapping):
        raise place.error(f"expected a table, not {shown(table)}")
    fields = {
        attribute.name: attribute
        for attribute in attrs.fields(cls)  # type: ignore[arg-type] # every T is an attrs class
        if attribute.metadata
    }
    for name in table:
        if name not in fields:
            raise place.at(name).error(f"there is no such key{suggestion(name, fields)}")
    values = {}
    for name, attribute in fields.items():
        if name in table:
            values[name] = _read_value(attribute, table[name], place.at(name))
        elif attribute.default is MISSING:
            expected = attribute.metadata.get("expected", "a table")
            raise place.at(name).error(f"is missing: expected {expected}")
    try:
        return cls(**values)
    except ValueError as problem:  # keys that exclude each other
        raise place.error(str(problem)) from None


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _read_value(attribute: attrs.Attribute[Any], value: object, place: Place) -> Any:
    metadata = attribute.metadata
    if cls := metadata.get("cls_of_each"):
        if not isinstance(value, list):
            raise place.error(f"expected a list of tables, not {shown(value)}")
        return tuple(read_table(cls, each, place.item(n)) for n, each in enumerate(value))
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
    if isinstance(value, str) and value and value.isprintable():  # it is printed to terminals
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
