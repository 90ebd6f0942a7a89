"""The messages as a JSON Schema, made from their classes. Floor 0.

It says of a JSON connection what `JsonCodec.decode` and `encode` do, but for what no schema can:
what `metadata` may hold and how long a message may be. In MessagePack `data` is bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from relay.protocol.messages import ClientMessage, ServerMessage

BASE64 = {"type": "string", "contentEncoding": "base64"}
NULL = {"type": "null"}
OBJECT = {"type": "object"}

Schema = dict[str, Any]


def message_schema() -> Schema:
    """All messages, in the dialect of 2020-12; those of either side are under `$defs` as
    `ClientMessage` and `ServerMessage`."""
    sides, definitions = msgspec.json.schema_components(
        (ClientMessage, ServerMessage), ref_template="#/$defs/{name}"
    )
    client, server = (_without_openapi(side) for side in sides)
    for name in _members(server) | {"StreamEntry"}:
        _as_sent(definitions[name])
    for name in ("VideoFrame", "VideoFrameEvent"):
        definitions[name]["properties"]["data"] = BASE64
    definitions["VideoFrame"]["properties"]["metadata"] = {"anyOf": [OBJECT, NULL], "default": None}
    definitions["VideoFrameEvent"]["properties"]["metadata"] = OBJECT
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "relay protocol, version 1, in JSON",
        "anyOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {"ClientMessage": client, "ServerMessage": server, **definitions},
    }


def _without_openapi(union: Schema) -> Schema:
    return {key: value for key, value in union.items() if key != "discriminator"}


def _members(union: Schema) -> set[str]:
    return {member["$ref"].rpartition("/")[2] for member in union["anyOf"]}


def _as_sent(event: Schema) -> None:
    """What the server leaves out when it has nothing to say is never null, and what it fills in
    is always there."""
    for name, field in event["properties"].items():
        if "default" not in field:
            if name not in event["required"]:
                event["required"].append(name)
            continue
        present = [each for each in field["anyOf"] if each != NULL]
        event["properties"][name] = present[0] if len(present) == 1 else {"anyOf": present}
