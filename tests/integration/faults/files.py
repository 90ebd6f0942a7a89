"""The relay may have no more files open. Also what `scripts/figures.py faults` measures with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.integration.raw import open_raw
from tests.integration.relay_process import RELAY, RelayProcess

FILES = 64
FEW_FILES = ("sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh", *RELAY, "serve")
"""The command of a relay that may have so few open."""


@asynccontextmanager
async def used_up(relay: RelayProcess) -> AsyncIterator[None]:
    """All files are used within the block: by clients that say nothing, and more wait."""
    async with AsyncExitStack() as stack:
        for _ in range(2 * FILES):
            await stack.enter_async_context(open_raw(relay))
        await relay.until_logged("no connection can be accepted")
        yield
