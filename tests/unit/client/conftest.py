from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from relay.concurrency.background import open_background
from tests.unit.client.scripted_relay import ScriptedRelay


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedRelay]:
    async with open_background() as nursery:
        yield ScriptedRelay(nursery)
