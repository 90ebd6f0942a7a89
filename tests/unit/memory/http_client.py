"""A double of `HttpClient`: another server answers what and when a test says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import trio
from attrs import define, field

from relay.outgoing.http_client import RequestFailed

URL = "https://id.example.org/asked"


@define(eq=False)
class MemoryHttpClient:
    """An `HttpClient` that asks nobody."""

    answer: Any = None
    """The response: bytes, something to encode as JSON, or a function of the form."""
    delay: float = 0.0
    away: bool = False
    asked: list[Mapping[str, str]] = field(factory=list)
    authorizations: list[str] = field(factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def get(self, url: str, *, max_bytes: int) -> bytes:
        return await self._ask({})

    async def post_form(
        self, url: str, form: Mapping[str, str], *, authorization: str, max_bytes: int
    ) -> bytes:
        self.authorizations.append(authorization)
        return await self._ask(form)

    async def _ask(self, form: Mapping[str, str]) -> bytes:
        self.asked.append(form)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answer
            away = self.away
            await trio.sleep(self.delay)
            if away:
                raise RequestFailed("ConnectError")
            if isinstance(answer, Callable):  # type: ignore[arg-type]
                answer = answer(form)
            return answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        finally:
            self.at_once -= 1
