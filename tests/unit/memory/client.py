"""A WebSocket client on wsproto, in the hands of a test."""

from __future__ import annotations

import json
from collections import deque
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgpack
import wsproto
from attrs import define, field
from wsproto import events

from relay.protocol.schema import message_schema
from tests.unit.memory.link import SIZE, MemoryLink


def _validators() -> dict[str, jsonschema_rs.Validator]:
    """What every message of the server has to be, by its type."""
    definitions = message_schema()["$defs"]
    found = {}
    for member in definitions["ServerMessage"]["anyOf"]:
        schema = definitions[member["$ref"].rpartition("/")[2]]
        (kind,) = schema["properties"]["type"]["enum"]
        found[kind] = jsonschema_rs.validator_for({**schema, "$defs": definitions})
    return found


SERVER_MESSAGES = _validators()


class Closed(Exception):
    """The server ended the WebSocket; `args` are the code and the reason."""


LONG = 1000
"""Characters of what is often sent again, as frames are."""
_quoted = lru_cache(maxsize=32)(json.dumps)


def _to_json(message: dict[str, Any]) -> str:
    """What `json.dumps` gives, which takes as long for one frame as a relay does."""
    data = message.get("data")
    if not isinstance(data, str) or len(data) < LONG:
        return json.dumps(message)
    before, after = json.dumps({**message, "data": "\x00data"}).split('"\\u0000data"')
    return f"{before}{_quoted(data)}{after}"


@define(eq=False)
class Client:
    """A WebSocket client in the hands of a test."""

    link: MemoryLink
    protocol: wsproto.WSConnection = field(
        factory=lambda: wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    )
    msgpack: bool = False
    _content: str | bytes | None = None
    _events: deque[Any] = field(factory=deque)

    async def send_bytes(self, data: bytes) -> None:
        while data:
            await self.link.wait_writable()
            data = data[self.link.send(data) :]

    async def upgrade(self, target: str = "/streams/register", **options: Any) -> Any:
        """Ask for a WebSocket; returns the event that answers."""
        if self.msgpack:
            options.setdefault("subprotocols", ["relay.v1.msgpack"])
        request = events.Request(host="relay", target=target, **options)
        await self.send_bytes(self.protocol.send(request))
        return await self.event()

    async def event(self) -> Any:
        """The next event that is not a ping. Pings are answered as soon as they are read."""
        while True:
            for event in self.protocol.events():
                if isinstance(event, events.Ping):
                    await self.send_bytes(self.protocol.send(event.response()))
                elif not isinstance(event, events.Pong):
                    self._events.append(event)
            if self._events:
                return self._events.popleft()
            await self.link.wait_readable()
            buffer = bytearray(SIZE)
            count = self.link.recv_into(memoryview(buffer))
            if self.protocol.state is wsproto.connection.ConnectionState.CLOSED:
                raise EOFError
            self.protocol.receive_data(bytes(buffer[:count]) or None)

    async def send(self, message: dict[str, Any] | str | bytes) -> None:
        if isinstance(message, dict):
            message = msgpack.packb(message) if self.msgpack else _to_json(message)
        event: events.Event = (
            events.TextMessage(data=message)
            if isinstance(message, str)
            else events.BytesMessage(data=message)
        )
        await self.send_bytes(self.protocol.send(event))

    async def receive(self) -> dict[str, Any]:
        """The next message; `Closed` when a Close comes instead."""
        while True:
            event = await self.event()
            if isinstance(event, events.CloseConnection):
                raise Closed(event.code, event.reason)
            kind = events.BytesMessage if self.msgpack else events.TextMessage
            assert isinstance(event, kind), event
            data = event.data if isinstance(event.data, str) else bytes(event.data)
            self._content = data if self._content is None else self._content + data  # type: ignore[operator]
            if event.message_finished:
                content, self._content = self._content, None
                read = msgpack.unpackb if self.msgpack else json.loads
                message: dict[str, Any] = read(content)
                if not self.msgpack:
                    SERVER_MESSAGES[message["type"]].validate(message)
                return message

    async def receive_type(self, kind: str) -> dict[str, Any]:
        """The next message of a type; others are passed over."""
        while (message := await self.receive())["type"] != kind:
            pass
        return message

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request; returns the `success` or `error` that answers."""
        await self.send(message)
        while (reply := await self.receive())["type"] not in ("success", "error"):
            pass
        return reply

    async def closing(self) -> tuple[int, str]:
        """Wait for the Close; returns its code and reason."""
        try:
            while True:
                await self.receive()
        except Closed as closed:
            code, reason = closed.args
            return int(code), reason

    async def hear_end(self) -> tuple[dict[str, Any], tuple[int, str]]:
        """The last message before the Close, and the Close."""
        last: dict[str, Any] = {}
        try:
            while True:
                last = await self.receive()
        except Closed as closed:
            code, reason = closed.args
            return last, (int(code), reason)

    async def has_ended(self) -> None:
        """Wait until the server's end of the link is closed."""
        buffer = self.link.incoming
        while not buffer.ended:
            buffer.content.clear()
            await buffer.wait(lambda: bool(buffer.content))
