"""A relay whose clock can be stepped by an hour."""

from __future__ import annotations

import signal
import sys

from tests.integration.relay_process import RelayProcess, until

STEPPED = (sys.executable, "-m", "tests.integration.faults.stepped_relay", "serve")
"""Its command."""
STEPS = {1: signal.SIGUSR1, -1: signal.SIGUSR2}


async def step(relay: RelayProcess, hours: int) -> None:
    """Step the clock of the relay, and of nothing else."""
    before = relay.log.count(text := f"the clock has stepped by {hours} h")
    relay.signal(STEPS[hours])
    await until(lambda: relay.log.count(text) > before)
