"""A relay whose services break as a test says."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from tests.integration.relay_process import RelayProcess, start_relay

MODULE = "tests.integration.faults.broken_relay"
TURN = 0.7
"""Seconds that a start or a turn of a service may take there, if a test does not say more."""
LATE = 0.5
"""Seconds by which a service that `starts-late` is late."""


@frozen
class Faults:
    """What is wrong with a relay."""

    folder: Path
    relay: RelayProcess

    @asynccontextmanager
    async def there_is(self, fault: str) -> AsyncIterator[None]:
        """A fault to the end of the block."""
        (self.folder / fault).touch()
        yield
        (self.folder / fault).unlink()

    async def figure(self, name: str) -> float:
        """One of the figures for Prometheus."""
        text = (await self.relay.get("/metrics")).body.decode()
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        return float(line.rpartition(" ")[2])


@contextmanager
def breakable_relay(database_url: str, *already: str, turn: float = TURN) -> Iterator[Faults]:
    """A relay that can be broken, if it is not `already`."""
    with TemporaryDirectory(prefix="relay-test-") as folder:
        for fault in already:
            Path(folder, fault).touch()
        command = ("env", f"FAULTS={folder}", f"TURN={turn}", sys.executable, "-m", MODULE, "serve")
        with start_relay(command=command, database_url=database_url, flawless=False) as relay:
            yield Faults(Path(folder), relay)
