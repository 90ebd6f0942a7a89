"""More clients call than the listen queue holds, while nobody accepts. Also what
`scripts/figures.py faults` measures with."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import trio
from attrs import frozen

from tests.integration.faults.crowd import open_crowd
from tests.integration.faults.scene import Scene
from tests.integration.relay_process import RelayProcess

BACKLOG = 16
SHORT_QUEUE = (
    sys.executable,
    "-c",
    f"import relay.transport.listener as it; it.BACKLOG = {BACKLOG}; import relay.__main__",
    "serve",
)
"""The command of a relay whose queue is soon full."""


@frozen
class Queued:
    """How it went; times are seconds from the moment that calls are taken again."""

    all_in: float
    frame_again: float


async def fill_queue(scene: Scene, tokens: Sequence[str], seconds: float) -> Queued:
    """Stop the relay for so long, while a client calls for each token; all have to get in."""
    relay: RelayProcess = scene.relay
    async with trio.open_nursery() as nursery:
        relay.signal(signal.SIGSTOP)
        try:
            all_in = trio.Event()
            nursery.start_soon(_call, relay, tokens, all_in)
            await trio.sleep(seconds)
        finally:
            relay.signal(signal.SIGCONT)
        start = trio.current_time()
        await scene.frames_go_on()
        frame_again = trio.current_time() - start
        await all_in.wait()
        all_again = trio.current_time() - start
    return Queued(all_again, frame_again)


async def _call(relay: RelayProcess, tokens: Sequence[str], all_in: trio.Event) -> None:
    async with open_crowd(relay, tokens, at_once=len(tokens)):
        all_in.set()
