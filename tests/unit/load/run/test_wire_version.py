"""The version of the wire between a coordinator and its agents is raised with each change of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec.inspect as inspect_types

from relay.load.run.wire import WIRE_VERSION, Order, Statement
from relay.load.scenario import groups, scenario

KNOWN = (3, "fcd27e7765dbaaea")
"""The version, and the digest of what its messages and the keys of scenarios are. When the digest
changes, a relay of before cannot work with this one: raise WIRE_VERSION, and note both here."""


def shape(kind: inspect_types.Type) -> Any:
    """What a type is on the wire, without where it is defined and what its defaults are."""
    match kind:
        case inspect_types.StructType() | inspect_types.DataclassType():
            fields = {each.encode_name: [shape(each.type), each.required] for each in kind.fields}
            return {getattr(kind, "tag", None) or kind.cls.__name__: fields}
        case inspect_types.UnionType():
            return sorted((shape(each) for each in kind.types), key=json.dumps)
        case inspect_types.LiteralType():
            return sorted(map(str, kind.values))
    return [type(kind).__name__, *map(shape, _parts(kind))]


def _parts(kind: inspect_types.Type) -> Iterator[inspect_types.Type]:
    """The types of what is in a collection."""
    for name in ("key_type", "value_type", "item_type"):
        if (part := getattr(kind, name, None)) is not None:
            yield part
    yield from getattr(kind, "item_types", ())


def scenario_keys() -> Iterator[tuple[str, list[str]]]:
    """The keys of all tables of a scenario, which agents get as text."""
    for module in (groups, scenario):
        for name, cls in vars(module).items():
            if attrs.has(cls) and cls.__module__ == module.__name__:
                yield name, [each.name for each in attrs.fields(cls) if each.metadata]


def test_the_version_is_raised_when_messages_or_scenarios_change() -> None:
    messages = [shape(inspect_types.type_info(each)) for each in (Order, Statement)]
    whole = json.dumps([messages, sorted(scenario_keys())], sort_keys=True)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
    assert (WIRE_VERSION, digest) == KNOWN, "raise WIRE_VERSION, and note both in KNOWN"
