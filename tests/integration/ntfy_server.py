"""A small server on loopback that speaks the publish API of ntfy, as its documentation has it:
https://docs.ntfy.sh/publish/#publish-as-json
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field

from tests.integration.web_server import Request, WebServer, open_web_server, says

MAX_MESSAGE_BYTES = 4096
KNOWN_FIELDS = {
    *("topic", "message", "title", "tags", "priority", "click", "attach", "filename", "markdown"),
    *("icon", "actions", "email", "delay"),
}


@define(eq=False)
class NtfyServer:
    """Takes messages to topics, from those who have the credentials if there are any."""

    authorization: str | None = None
    """The header that is wanted."""
    failure: tuple[str, tuple[str, ...]] | None = None
    """A status line and headers to answer with instead."""
    messages: list[dict[str, Any]] = field(factory=list)
    attempts: int = 0
    _web: WebServer | None = None

    @property
    def url(self) -> str:
        assert self._web is not None
        return self._web.url

    def on(self, topic: str) -> list[dict[str, Any]]:
        return [each for each in self.messages if each["topic"] == topic]

    async def answer(self, request: Request, stream: trio.abc.Stream) -> None:
        self.attempts += 1
        if self.failure is not None:
            status, headers = self.failure
            await says({"error": status}, status, *headers)(request, stream)
            return
        if request.line != "POST / HTTP/1.1":
            await says({"code": 40401, "error": "page not found"}, "404 Not Found")(request, stream)
        elif self.authorization and request.headers.get("authorization") != self.authorization:
            await says({"code": 40301, "error": "forbidden"}, "403 Forbidden")(request, stream)
        elif problem := _problem_of(request.body):
            await says({"code": 40024, "error": problem}, "400 Bad Request")(request, stream)
        else:
            message = json.loads(request.body)
            self.messages.append(message)
            answer = {"id": f"m{len(self.messages)}", "event": "message", **message}
            await says(answer)(request, stream)


def _problem_of(body: bytes) -> str | None:
    """Why ntfy would refuse a message; None if it would take it."""
    try:
        message = json.loads(body)
    except ValueError:
        return "request body must be message JSON"
    tags = message.get("tags", [])
    links = [message[name] for name in ("click", "attach") if name in message]
    problems = {
        "topic invalid": not re.fullmatch(r"[-_A-Za-z0-9]{1,64}", message.get("topic", "")),
        "a field that ntfy does not know": bool(message.keys() - KNOWN_FIELDS),
        "message too long": len(message.get("message", "").encode()) > MAX_MESSAGE_BYTES,
        "priority invalid": message.get("priority", 3) not in range(1, 6),
        "tags invalid": not all(isinstance(each, str) for each in tags),
        "URL invalid": not all(each.startswith(("http://", "https://")) for each in links),
    }
    return next((problem for problem, so in problems.items() if so), None)


@asynccontextmanager
async def open_ntfy(authorization: str | None = None) -> AsyncIterator[NtfyServer]:
    """One that answers until the block ends."""
    ntfy = NtfyServer(authorization)
    async with open_web_server(ntfy.answer) as ntfy._web:
        yield ntfy
