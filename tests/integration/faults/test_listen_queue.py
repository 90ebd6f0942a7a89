"""More clients call than the listen queue holds: they get in a little later, and none is lost."""

from __future__ import annotations

from tests.integration.accounts import Accounts
from tests.integration.faults.listen_queue import BACKLOG, SHORT_QUEUE, fill_queue
from tests.integration.faults.scene import open_scene
from tests.integration.relay_process import start_relay


async def test_all_who_call_at_once_get_in(database_url: str, accounts: Accounts) -> None:
    tokens = [accounts.session("ann")] * (5 * BACKLOG)
    with start_relay(command=SHORT_QUEUE, database_url=database_url) as relay:
        async with open_scene(relay, accounts) as scene:
            queued = await fill_queue(scene, tokens, seconds=0.5)
    assert queued.frame_again < 1.0
    assert queued.all_in < 10.0  # the system calls again after 1, 2 and 4 seconds
