"""An ingest that plays into a real relay, in the process of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, field

from relay.ingest import ingest
from relay.ingest.ingest import Ingest, IngestOptions
from relay.ingest.source import parse_source
from tests.integration.accounts import Accounts
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess, until


@define(eq=False)
class Play:
    """One ingest, and what it has said."""

    stream_id: str
    said: list[str] = field(factory=list)
    ended: trio.Event = field(factory=trio.Event)

    async def until_said(self, text: str) -> None:
        await until(lambda: any(text in each for each in self.said))


StartIngest = Callable[..., AbstractAsyncContextManager[Play]]


@pytest.fixture
def play(relay: RelayProcess, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> StartIngest:
    """Play a source into the relay, with the token of a service that produces for Ann."""
    monkeypatch.setattr(ingest, "LINGER", 0.2)
    monkeypatch.setattr(ingest, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(ingest, "LONGEST_PAUSE", 0.2)

    @asynccontextmanager
    async def start(source: str, *, url: str = relay.url, **options: Any) -> AsyncIterator[Play]:
        accounts.session("ann")
        made = Play(new_stream_id())
        token = accounts.service(alerts=False, produce=[made.stream_id], user_id="ann")
        camera = parse_source(source, insecure_tls=options.pop("insecure_tls", False))
        chosen = IngestOptions(camera, made.stream_id, **options)

        async def run() -> None:
            await Ingest(chosen, made.said.append).run(url, token)
            made.ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield made
            nursery.cancel_scope.cancel()

    return start


@pytest.fixture
def ann(accounts: Accounts) -> str:
    """The token of the user who owns what is played."""
    return accounts.session("ann")
