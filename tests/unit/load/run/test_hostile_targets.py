"""What a target that is no good relay says to those who load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from relay.load.actors.network.client import IncomingMessage, LoadClient
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.actors.stream_actor import StreamWatch
from relay.load.actors.viewer import Viewer
from relay.load.run.targets.target import Target
from relay.load.run.targets.target_reports import TargetFailed, TargetReports
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Presence, Timeline
from relay.outgoing.http_client import HttpClient

RUN = "abcd1234"
SOURCE = "[phones.p]\n[viewers.v]\nwatch = 'p'\n[services.alarm-bell]\nwatch = 'p'\ncount = 2\n"


def viewer() -> Viewer:
    timeline = Timeline(parse_scenario(SOURCE, "mine.toml", Path()))
    context = RunContext(timeline, Endpoint("ws://x", ("t",)), RUN)
    made = Viewer(context, "v", 0, Presence(0.0, 10.0))
    made.watches["s"] = StreamWatch("s", 0.0, None)
    return made


def alert(words: str) -> IncomingMessage:
    return IncomingMessage(type="alert", stream_id="s", message=words)


async def test_an_alert_of_a_service_of_the_run_is_received() -> None:
    made = viewer()
    made.receive(alert(f"load {RUN} alarm-bell-1 7 1500000"), 0)
    assert made.stats.counts["alerts.received"] == 1
    assert made.watches["s"].alerts["alarm-bell-1"].ranges == [(7, 7)]
    assert not made.stats.errors


@pytest.mark.parametrize(
    "words",
    [
        f"load {RUN} alarm-bell-1 seven 1500000",
        f"load {RUN} alarm-bell-1 7 x",
        f"load {RUN} alarm-bell-1 -7 1500000",
        f"load {RUN} alarm-bell-1 {'9' * 5000} 1500000",
        f"load {RUN} alarm-bell-1 \u0667 1500000",
        f"load {RUN} alarm-bell-2 7 1500000",
        f"load {RUN} nobody-0 7 1500000",
        f"load {RUN} alarm-bell 7 1500000",
    ],
)
async def test_an_alert_that_no_service_of_the_run_has_sent_is_an_error_and_nothing_else(
    words: str,
) -> None:
    made = viewer()
    made.receive(alert(words), 0)
    assert made.stats.errors["an alert of this run that no service of it has sent"] == 1
    assert made.watches["s"].alerts == {}
    assert made.stats.counts["alerts.received"] == 0


@pytest.mark.parametrize("is_msgpack", [False, True])
@pytest.mark.parametrize("fields", [{"seq": 1 << 60}, {"seq": -1}, {"epoch": 1 << 60}])
def test_a_message_with_numbers_that_cannot_be_counted_cannot_be_read(
    fields: dict[str, int], is_msgpack: bool
) -> None:
    got: list[IncomingMessage] = []
    client = LoadClient(cast(Any, None), is_msgpack, lambda incoming, _: got.append(incoming))
    encode = msgspec.msgpack.encode if is_msgpack else msgspec.json.encode
    client._receive(memoryview(encode({"type": "video-frame", "seq": 3})))
    assert [each.seq for each in got] == [3]
    client._receive(memoryview(encode({"type": "video-frame", **fields})))
    assert (len(got), client.unreadable) == (1, 1)


class Http:
    """Answers each request with this."""

    def __init__(self, body: str) -> None:
        self.body = body

    async def get(self, _url: str, *, max_bytes: int) -> bytes:
        return self.body.encode()


@pytest.mark.parametrize(
    "body",
    [
        "process_cpu_seconds_total 1.2.3",
        "process_resident_memory_bytes 1e999",
        'relay_hop_frames_total{outcome="written"} 1e999',
        "relay_verification_seconds_sum ++",
    ],
)
async def test_metrics_that_hold_no_numbers_are_not_known_and_end_no_run(body: str) -> None:
    reports = TargetReports("ws://relay.test:3000", "", cast(HttpClient, Http(body)))
    with pytest.raises(TargetFailed, match="cannot read the relay's /metrics: it has numbers"):
        await reports.metrics()
    target = Target("", "ws://relay.test:3000", reports)
    await target.poll()
    assert target.usage() is None
