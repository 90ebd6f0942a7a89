"""The reports have the keys that their readers know, and readers of all kinds can read them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from relay.concurrency.supervisor import Supervisor
from relay.errors import StoreUnavailable
from relay.load.measures.reconciliation.ledger import read_totals
from relay.metrics import Limit
from relay.protocol.reports import FiguresReport, ReadyReport, StatsReport
from relay.top.answers import read
from relay.web.reports import DATABASE_TIMEOUT, Reports
from tests.unit.memory import MemoryRelay

pytestmark = pytest.mark.mock_clock

STATS_KEYS = [
    "connections",
    "connections_accepted",
    "authenticated",
    "verifications",
    "verification_queries",
    "frames_accepted",
    "alerts_stored",
    "alerts_delivered",
    "alerts_removed",
    "endings",
    "limits_hit",
    "frame_age",
    "profile",
    "unauthenticated",
    "streams",
    "frames_to_consumers",
]


async def answer() -> None:
    """What a database does that is well."""
    await trio.lowlevel.checkpoint()


def reports_of(relay: MemoryRelay, **changes: Any) -> Reports:
    parts: dict[str, Any] = {
        "supervisor": Supervisor({}),
        "profile": "default",
        "check_database": answer,
        "is_draining": lambda: False,
    }
    return Reports(metrics=relay.metrics, hub=relay.hub, guard=relay.guard, **parts | changes)


async def test_stats_are_the_totals_of_connections_streams_and_frames(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send({"type": "video-frame", "data": "AAAA"})
    await viewer.receive_type("video-frame")
    (await relay.login()).link.close()
    await trio.testing.wait_all_tasks_blocked()
    body = msgspec.json.encode(reports_of(relay).stats())
    stats = json.loads(body)
    assert list(stats) == STATS_KEYS
    assert stats["streams"] == {"online": 0, "streaming": 1, "consumers": 1}
    assert stats["frames_to_consumers"] == {
        "accepted": 1,
        "written": 1,
        "dropped": {},
        "waiting": 0,
    }
    assert list(stats["frames_to_consumers"]) == ["accepted", "written", "dropped", "waiting"]
    assert stats["endings"] == {"client_gone": 1}
    assert list(stats["limits_hit"]) == [limit.value for limit in Limit]
    assert (stats["frame_age"]["0.001"], stats["profile"]) == (1, "default")
    assert read(body, StatsReport, "/stats") == read_totals(body) == reports_of(relay).stats()


async def test_figures_name_each_stream_and_each_of_its_consumers(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send({"type": "video-frame", "data": "AAAA"})
    await viewer.receive_type("video-frame")
    await relay.viewer("nowhere")
    body = msgspec.json.encode(relay.hub.figures())
    live, unknown = json.loads(body)["streams"]
    keys = ["streamId", "ownerId", "status", "epoch", "frames", "producer", "consumers"]
    assert list(live) == keys
    assert (live["streamId"], live["ownerId"]) == ("front-door", "ann")
    assert (live["streamId"], live["status"], live["frames"]) == ("front-door", "streaming", 1)
    assert live["producer"] == 1
    (consumer,) = live["consumers"]
    counts = {
        "connection": 2,
        "party": "user:ann",
        "frames": 1,
        "written": 1,
        "dropped": {},
        "waiting": 0,
    }
    assert consumer == counts | {"layer": None, "link": {"roundTripSeconds": 0.0, "calm": True}}
    assert (unknown["status"], unknown["producer"], unknown["epoch"]) == ("offline", None, 0)
    assert read(body, FiguresReport, "/figures") == relay.hub.figures()


@pytest.mark.mock_clock
async def test_relay_is_not_ready_while_alerts_are_not_delivered(relay: MemoryRelay) -> None:
    relay.metrics.dispatch_failing_since = trio.current_time()
    await trio.sleep(5)
    assert (await reports_of(relay).ready()).ready
    await trio.sleep(6)
    ready = await reports_of(relay).ready()
    assert (ready.ready, ready.alerts) == (False, "stalled")
    relay.metrics.dispatch_failing_since = None
    assert (await reports_of(relay).ready()).ready


async def test_ready_says_why_not(relay: MemoryRelay) -> None:
    async def unavailable() -> None:
        await answer()
        raise StoreUnavailable

    ready = await reports_of(relay).ready()
    assert json.loads(msgspec.json.encode(ready)) == {
        "ready": True,
        "draining": False,
        "database": "ok",
        "services": {},
        "alerts": "ok",
    }
    assert read(msgspec.json.encode(ready), ReadyReport, "/ready") == ready
    away = await reports_of(relay, check_database=unavailable).ready()
    assert (away.ready, away.database) == (False, "unavailable")
    silent = await reports_of(relay, check_database=trio.sleep_forever).ready()
    assert (silent.ready, silent.database) == (False, "unavailable")
    assert trio.current_time() == DATABASE_TIMEOUT
    draining = await reports_of(relay, is_draining=lambda: True).ready()
    assert (draining.ready, draining.draining) == (False, True)
    starting = await reports_of(relay, supervisor=Supervisor({"audit": relay.audit})).ready()
    assert (starting.ready, starting.services) == (False, {"audit": "starting"})
