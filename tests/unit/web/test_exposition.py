"""What Prometheus reads is what was counted, and what docs/operations.md says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from attrs import define
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)

from relay.client.websocket import WebSocket
from relay.cluster.links.handshake import LinkFailed
from relay.cluster.links.link_pool import FAILURE_SECONDS, LinkPool
from relay.cluster.reports import ClusterReports
from relay.concurrency.supervisor import Supervisor
from relay.hub.cluster_streams import ClusterStreams
from relay.metrics import Histogram, HopMetrics
from relay.model.cluster import Node
from relay.web import exposition as exposition_module
from relay.web.exposition import Exposition
from tests.unit.memory import ANN, MemoryRelay

pytestmark = pytest.mark.mock_clock

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
ROW = re.compile(r"\| `(?P<name>\w+)` \| (?P<type>\w+) \| (?P<labels>.*?) ?\| (?P<about>.+) \|")


@pytest.fixture
def exposition(relay: MemoryRelay) -> Exposition:
    supervisor = Supervisor({"audit": relay.audit})
    return Exposition(relay.metrics, relay.hub, supervisor, relay.audit, relay.unread)


@define(eq=False)
class Nodes:
    """The nodes of a cluster."""

    nodes: dict[str, Node]

    def find_node(self, node_id: str) -> Node | None:
        return self.nodes.get(node_id)

    async def read_node(self, node_id: str) -> Node | None:
        await trio.lowlevel.checkpoint()
        return self.nodes.get(node_id)

    def look_soon(self, stream_id: str) -> None:
        raise AssertionError(stream_id)


@pytest.fixture
def of_a_node(relay: MemoryRelay) -> Exposition:
    """Where there are three other nodes: one drains, and one cannot be reached."""

    async def fail(node: Node) -> WebSocket:
        await trio.lowlevel.checkpoint()
        raise LinkFailed(f"nobody listens at {node.address}")

    known = {
        name: Node(name, name, "192.0.2.1:3100", None, "", "1.0", draining=name == "leaving")
        for name in ("here", "away", "leaving", "there")
    }
    relay.metrics.hop = hop = HopMetrics()
    links = LinkPool("here", relay.hub, ClusterStreams(relay.hub, "here"), hop, fail)
    links.nodes = nodes = Nodes(known)
    relay.nursery.start_soon(links.run)
    supervisor = Supervisor({"audit": relay.audit})
    reports = ClusterReports("here", relay.hub, links, nodes)
    return Exposition(relay.metrics, relay.hub, supervisor, relay.audit, relay.unread, reports)


def families(exposition: Exposition) -> dict[str, Metric]:
    content, _ = exposition.encode("")
    return {each.name: each for each in parser.text_string_to_metric_families(content.decode())}


def value(exposition: Exposition, name: str, **labels: str) -> float:
    """The one sample of this name with these labels."""
    (found,) = (
        sample.value
        for family in families(exposition).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return found


async def test_the_way_of_a_frame_can_be_followed(
    relay: MemoryRelay, exposition: Exposition
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await viewer.receive_type("video-frame")
    assert value(exposition, "relay_frames_accepted_total") == 3
    assert value(exposition, "relay_frames_offered_total") == 3
    assert value(exposition, "relay_frames_written_total") == 3
    assert value(exposition, "relay_frame_age_seconds_count") == 3
    assert value(exposition, "relay_frames_dropped_total", reason="superseded") == 0
    assert value(exposition, "relay_connections") == 2
    assert value(exposition, "relay_streams", status="streaming") == 1
    assert value(exposition, "relay_consumers") == 1


async def test_attempts_and_endings_are_counted_by_how_they_went(
    relay: MemoryRelay, exposition: Exposition
) -> None:
    assert value(exposition, "relay_auth_attempts_total", outcome="failed") == 0
    await relay.login(ANN)
    for _ in range(2):
        stranger = await relay.open()
        await stranger.send({"type": "auth", "token": "wrong"})
        await stranger.has_ended()
    assert value(exposition, "relay_auth_attempts_total", outcome="succeeded") == 1
    assert value(exposition, "relay_auth_attempts_total", outcome="failed") == 2
    assert value(exposition, "relay_connection_endings_total", ending="auth_failed") == 2
    assert value(exposition, "relay_connections_authenticated") == 1
    assert value(exposition, "relay_audit_waiting") == 5


async def test_buckets_hold_all_that_is_at_most_their_bound(
    relay: MemoryRelay, exposition: Exposition
) -> None:
    histogram = relay.metrics.verification_batch
    for size in (1, 1, 2, 3, 500, 501):
        histogram.observe(size)
    samples = families(exposition)["relay_verification_batch_size"].samples
    buckets = {each.labels["le"]: each.value for each in samples if "le" in each.labels}
    assert buckets == {
        "1.0": 2,
        "2.0": 3,
        "5.0": 4,
        "10.0": 4,
        "20.0": 4,
        "50.0": 4,
        "100.0": 4,
        "200.0": 4,
        "500.0": 5,
        "+Inf": 6,
    }
    assert value(exposition, "relay_verification_batch_size_count") == 6
    assert value(exposition, "relay_verification_batch_size_sum") == 1008


@pytest.mark.parametrize("waited", [2.5, None])
async def test_how_long_the_process_waited_for_a_core_is_there_if_it_is_known(
    exposition: Exposition, monkeypatch: pytest.MonkeyPatch, waited: float | None
) -> None:
    monkeypatch.setattr(exposition_module, "read_cpu_wait", lambda: waited)
    found = families(exposition).get("process_cpu_wait_seconds")
    assert (None if found is None else found.samples[0].value) == waited


async def test_an_empty_histogram_is_all_zeros() -> None:
    assert Histogram((1.0, 2.0)).cumulative() == [(1.0, 0), (2.0, 0), (float("inf"), 0)]


async def test_the_state_of_a_service_is_one_of_them(relay: MemoryRelay) -> None:
    supervisor = Supervisor({"audit": relay.audit})
    exposition = Exposition(relay.metrics, relay.hub, supervisor, relay.audit, relay.unread)

    def states() -> dict[str, float]:
        samples = families(exposition)["relay_service_state"].samples
        return {each.labels["state"]: each.value for each in samples}

    assert states() == {"starting": 1, "running": 0, "stuck": 0, "failed": 0}
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(1)
        assert states() == {"starting": 0, "running": 1, "stuck": 0, "failed": 0}
        nursery.cancel_scope.cancel()
    assert value(exposition, "relay_service_restarts_total", service="audit") == 0


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=1.0.0"),
        ("application/openmetrics-text;version=1.0.0;q=0.8", "application/openmetrics-text;"),
        ("application/openmetrics-text; version=nonsense", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=" + "9" * 10_000, "text/plain; version=0.0.4"),
        ("\xff,;=;,\x00", "text/plain; version=0.0.4"),
    ],
)
async def test_the_format_is_what_was_asked_for_if_it_is_known(
    accept: str, content_type: str, exposition: Exposition
) -> None:
    content, given = exposition.encode(accept)
    assert given.startswith(content_type)
    read = (
        read_openmetrics if "openmetrics" in content_type else parser.text_string_to_metric_families
    )
    assert "relay_connections" in [each.name for each in read(content.decode())]


def documented() -> Iterator[tuple[str, str, set[str], str]]:
    _, _, section = OPERATIONS.read_text("utf-8").partition("\n## Metrics\n")
    for line in section.splitlines():
        if row := ROW.fullmatch(line):
            labels = set(re.findall(r"`(\w+)`", row["labels"]))
            yield row["name"], row["type"], labels, row["about"]


def exposed(exposition: Exposition) -> Iterator[tuple[str, str, set[str], str]]:
    for family in families(exposition).values():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        yield name, family.type, labels, family.documentation


async def test_the_page_lists_what_there_is_and_nothing_else(of_a_node: Exposition) -> None:
    written, real = list(documented()), list(exposed(of_a_node))
    ours = [each for each in written if each[0].startswith("relay_")]
    assert ours == [each for each in real if each[0].startswith("relay_")]
    # Those of the process are only on Linux, in words that are not ours.
    process = {each[:2] for each in real} - {each[:2] for each in ours}
    assert process <= {each[:2] for each in written}
    assert len(written) == len({name for name, *_ in written})


async def test_one_process_alone_has_no_metrics_of_other_nodes(
    exposition: Exposition, of_a_node: Exposition
) -> None:
    more = families(of_a_node).keys() - families(exposition).keys()
    assert {each.partition("_")[2].partition("_")[0] for each in more} == {
        "hop", "links", "carried", "handovers", "viewer", "nodes",
    }  # fmt: skip


async def test_nodes_are_counted_and_those_that_cannot_be_reached_for_a_moment(
    of_a_node: Exposition,
) -> None:
    assert value(of_a_node, "relay_nodes", state="live") == 3
    assert value(of_a_node, "relay_nodes", state="draining") == 1
    reports = of_a_node._cluster
    assert reports is not None
    await trio.testing.wait_all_tasks_blocked()
    report = msgspec.json.decode(await reports.figures_of_all())
    assert set(report["silent"]) == {"away", "leaving", "there"}
    (own,) = report["nodes"]
    assert {each["why"] for each in own["cannotReach"]} == {"nobody listens at 192.0.2.1:3100"}
    assert value(of_a_node, "relay_nodes_unreachable") == 3
    await trio.sleep(FAILURE_SECONDS + 1)
    assert value(of_a_node, "relay_nodes_unreachable") == 0


async def test_no_label_names_a_stream_a_user_or_a_connection(
    relay: MemoryRelay, exposition: Exposition
) -> None:
    before = {name: len(family.samples) for name, family in families(exposition).items()}
    for number in range(20):
        await relay.phone(f"stream-{number}", ANN)
        await relay.viewer(f"stream-{number}", ANN)
    after = families(exposition)
    assert {name: len(family.samples) for name, family in after.items()} == before
    assert "stream-1" not in exposition.encode("")[0].decode()
