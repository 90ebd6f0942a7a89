"""The PostgreSQL of several relays that a run starts, in a process of its own.

It outlives each of them, so that any may be ended. It prints the database's URL, and ends at
SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from relay.app import open_shared_database
from relay.errors import RelayError
from relay.logs.setup import configure_logging
from relay.settings.settings import Settings


async def main(data_dir: Path, processes: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_shared_database(Settings(data_dir=data_dir), processes) as shared:
            sys.stdout.write(f"{shared.database_url}\n")
            sys.stdout.flush()
            await anext(signals)


if __name__ == "__main__":
    configure_logging("error")
    try:
        trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
    except RelayError as error:
        sys.exit(f"relay: {error}")
