"""What waits in a mailbox, and who makes room when all of them hold too much."""

from __future__ import annotations

import pytest

from relay.transport.budget import Budget
from relay.transport.mailbox import Mailbox
from relay.transport.outlet import Outlet
from tests.unit.memory import MemoryLink, SocketBuffer

pytestmark = pytest.mark.mock_clock


async def test_a_mailbox_that_makes_room_by_itself_takes_nothing_more() -> None:
    outlet = Outlet(MemoryLink(SocketBuffer(), SocketBuffer()), 30.0)  # nobody writes yet
    evictions: list[str] = []
    mailbox = Mailbox(outlet, Budget(100), lambda: evictions.append("evicted"))
    frames = [b"a" * 60, b"b" * 60, b"c" * 60]
    assert not all(map(mailbox.post, frames))
    assert evictions == ["evicted"]
    assert not mailbox.waiting()
    assert mailbox.reserved == 0
