"""Builds a JSON Schema of the messages from their classes.

It describes what `JsonCodec` decodes and encodes, except for what a schema cannot express: what
`metadata` may hold, and the size of a message. In MessagePack, `data` is bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from relay.protocol.messages import ClientMessage, ServerMessage, SlowLinkMessage

BASE64 = {"type": "string", "contentEncoding": "base64"}
NULL = {"type": "null"}
OBJECT = {"type": "object"}

Schema = dict[str, Any]


def message_schema() -> Schema:
    """Build the schema of all messages, in the 2020-12 dialect. Under `$defs`, `ClientMessage` and
    `ServerMessage` are the messages of either side."""
    sides, definitions = msgspec.json.schema_components(
        (ClientMessage, ServerMessage | SlowLinkMessage), ref_template="#/$defs/{name}"
    )
    client, server = (_without_openapi(side) for side in sides)
    for name in _members(server) | {"StreamEntry"}:
        _as_sent(definitions[name])
    for name in _members(client):
        _with_nulls(definitions[name])
    for name in ("VideoFrame", "VideoFrameEvent"):
        definitions[name]["properties"]["data"] = BASE64
    definitions["Part"]["properties"]["data"] = {"type": "string"}
    for name in ("VideoFrame", "Register", "Alert"):
        definitions[name]["properties"]["metadata"] = {"anyOf": [OBJECT, NULL], "default": None}
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


def _with_nulls(request: Schema) -> None:
    """Allow null for each field that may be absent."""
    for name, field in request["properties"].items():
        if "default" in field and NULL not in field.get("anyOf", [NULL]):
            field["anyOf"].append(NULL)
        elif "default" in field and "anyOf" not in field:
            default = field.pop("default")
            request["properties"][name] = {"anyOf": [field, NULL], "default": default}


def _as_sent(event: Schema) -> None:
    """Turn null into absence, and make fields required that the server always fills in."""
    for name, field in event["properties"].items():
        if "default" not in field:
            if name not in event["required"]:
                event["required"].append(name)
            continue
        present = [each for each in field["anyOf"] if each != NULL]
        event["properties"][name] = present[0] if len(present) == 1 else {"anyOf": present}
