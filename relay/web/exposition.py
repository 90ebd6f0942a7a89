"""Exposes relay's counters to Prometheus.

The counters are plain numbers and are converted at a scrape. No label names a stream, a user or a
connection, so the size of a scrape does not grow with the load. `docs/operations.md` lists all
metrics with the help texts from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import inf
from typing import TYPE_CHECKING

from attrs import define, field
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from relay.audit.log import AuditLog
from relay.concurrency.supervisor import Supervisor, TaskState
from relay.hub.hub import Hub
from relay.hub.ledger import Drop
from relay.metrics import Histogram, Limit, Metrics, PictureOutcome, RenditionOutcome
from relay.model.targets.alert_target import TARGET_KINDS
from relay.process.cpu_wait import read_cpu_wait
from relay.protocol.endings import Ending
from relay.protocol.messages import StreamStatus
from relay.transport.budget import Budget

if TYPE_CHECKING:  # one process alone does not load it
    from relay.cluster.reports import ClusterReports

AUTH_OUTCOMES = ("succeeded", "failed", "refused", "limited", "unavailable", "timeout")
"""Outcomes that are shown from the start, like all endings, limits and drops."""

WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up")
TARGET_OUTCOMES = (*WEBHOOK_OUTCOMES, "suppressed", "withheld")
HANDOVER_OUTCOMES = ("continued", "renewed")
MOVE_OUTCOMES = ("moved", "stayed")


@define(eq=False)
class Exposition(Collector):
    """The metrics of one relay and its process."""

    _metrics: Metrics
    _hub: Hub
    _supervisor: Supervisor
    _audit: AuditLog
    _unread: Budget
    """Replies and alerts that WebSocket clients have not read."""
    _cluster: ClusterReports | None = None
    """None where there are no other nodes."""
    _registry: CollectorRegistry = field(factory=CollectorRegistry)

    def __attrs_post_init__(self) -> None:
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # empty but on Linux

    def encode(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an `Accept` header asks for, and the content type."""
        return encode_registry(self._registry, accept)

    def metrics(self) -> Iterable[Metric]:
        """All metrics, those of the process as well."""
        return self._registry.collect()

    def collect(self) -> Iterator[Metric]:
        yield from self._connections()
        yield from self._verification()
        yield from self._frames()
        yield from self._renditions()
        yield from self._alerts_and_streams()
        yield from self._other_nodes()
        yield from self._services()
        yield from _process()

    def _connections(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _gauge("connections", "Open WebSocket connections", metrics.connections)
        yield _counter(
            "connections_accepted",
            "Accepted WebSocket connections",
            metrics.connections_accepted,
        )
        yield _gauge(
            "connections_authenticated",
            "Open connections that are authenticated",
            metrics.authenticated,
        )
        yield _counters(
            "connection_endings",
            "Ended connections, by the way they ended; plain HTTP requests count as well",
            "ending",
            ((ending.label, metrics.endings[ending]) for ending in Ending),
        )
        yield _counters(
            "auth_attempts",
            "Attempts to authenticate, renewals included",
            "outcome",
            (dict.fromkeys(AUTH_OUTCOMES, 0) | metrics.auth_attempts).items(),
        )
        yield _counters(
            "limits_hit",
            "Times a limit was exceeded, by the kind of limit",
            "limit",
            ((limit.value, metrics.limits_hit[limit]) for limit in Limit),
        )

        yield _gauge(
            "unread_reply_bytes",
            "Bytes of replies and alerts that WebSocket clients have not read",
            self._unread.reserved,
        )

    def _verification(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _counter("verifications", "Tokens to be verified", metrics.verifications)
        yield _counter(
            "verification_queries", "Queries to verify tokens", metrics.verification_queries
        )
        yield _histogram(
            "verification_seconds",
            "Time to verify a token, if there was an answer",
            metrics.verification_time,
        )
        yield _histogram(
            "verification_batch_size",
            "Tokens looked up together in one query",
            metrics.verification_batch,
        )

    def _frames(self) -> Iterator[Metric]:
        frames = self._hub.ledger()
        yield _counter(
            "frames_accepted", "Frames that producers sent", self._metrics.frames_accepted
        )
        yield _counter(
            "frames_offered",
            "Frames offered to consumers, counted once per consumer",
            frames.accepted,
        )
        yield _counter("frames_written", "Frames written to consumers", frames.written)
        yield _counters(
            "frames_dropped",
            "Frames that a consumer did not get, by reason",
            "reason",
            ((drop.value, frames.dropped.get(drop, 0)) for drop in Drop),
        )
        switches = self._metrics.layer_switches
        yield _counters(
            "layer_switches",
            "Times a consumer was given a larger layer of a stream, or a smaller one",
            "direction",
            ((each, switches[each]) for each in ("up", "down")),
        )
        yield _gauge("frames_waiting", "Frames that wait for a consumer", frames.waiting)
        yield _histogram(
            "frame_age_seconds",
            "Age of a frame when it is written to a consumer",
            self._metrics.frame_age,
        )
        yield _histogram(
            "frame_delivery_seconds",
            "Time from accepting a frame to the consumer's answer to the ping behind it;"
            " nearly all frames have one on slow links, few on fast links",
            self._metrics.links.frame_delivery,
        )
        yield _histogram(
            "link_round_trip_seconds",
            "Round trips of pings that were sent to consumers while no frame was under way;"
            " every few seconds at least on slow links, seldom on fast links",
            self._metrics.links.round_trip,
        )

    def _renditions(self) -> Iterator[Metric]:
        yield _counters(
            "renditions",
            "Pictures to be made smaller for slow viewers",
            "outcome",
            ((each.value, self._metrics.renditions[each]) for each in RenditionOutcome),
        )
        yield _histogram(
            "rendition_seconds",
            "Time to make a picture smaller, in all the sizes wanted",
            self._metrics.rendition_time,
        )

    def _alerts_and_streams(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _counter("alerts_stored", "Alerts that were stored", metrics.alerts_stored)
        yield _counter(
            "alerts_delivered", "Alerts that were sent to a connection", metrics.alerts_delivered
        )
        yield _counter(
            "alerts_removed",
            "Alerts removed because they were too old or too many",
            metrics.alerts_removed,
        )
        yield _counter(
            "alerts_unreadable",
            "Alerts skipped because they cannot be read or delivered",
            metrics.alerts_unreadable,
        )
        yield _gauge(
            "alert_dispatch_stalled_seconds",
            "Seconds for which stored alerts have not been delivered, because they cannot be read",
            metrics.dispatch_stalled_for(),
        )
        yield _counters(
            "webhook_alerts",
            "Attempts to post an alert to a webhook, and webhooks given up",
            "outcome",
            (dict.fromkeys(WEBHOOK_OUTCOMES, 0) | metrics.webhook_alerts).items(),
        )
        deliveries = CounterMetricFamily(
            "relay_target_events",
            "Attempts to deliver an event to a target, events suppressed or withheld, and targets"
            " given up",
            labels=("kind", "outcome"),
        )
        outcomes = dict.fromkeys(product(TARGET_KINDS, TARGET_OUTCOMES), 0)
        for each, value in (outcomes | metrics.target_events).items():
            deliveries.add_metric(each, value)
        yield deliveries
        yield from self._alert_pictures()
        counts = self._hub.count()
        live = {
            StreamStatus.ONLINE.value: counts.online,
            StreamStatus.STREAMING.value: counts.streaming,
        }
        yield _gauges("streams", "Currently registered streams", "status", live.items())
        yield _gauge("consumers", "Subscriptions, whether or not frames flow", counts.consumers)

    def _alert_pictures(self) -> Iterator[Metric]:
        metrics = self._metrics
        for kind in ("still", "clip"):
            yield _counters(
                f"alert_{kind}s",
                f"{kind.capitalize()}s to be kept with alerts",
                "outcome",
                ((each.value, metrics.alert_pictures[kind, each]) for each in PictureOutcome),
            )
        yield _gauge(
            "clip_buffer_bytes",
            "Bytes of pictures held in memory for clips; a part of the frame buffer",
            metrics.clip_buffer_bytes,
        )
        yield _gauge(
            "alert_picture_bytes",
            "Bytes of stills and clips kept on all nodes, as last counted",
            metrics.picture_bytes,
        )
        yield _counter(
            "alert_pictures_removed",
            "Alerts whose still and clip this relay removed",
            metrics.pictures_removed,
        )

    def _other_nodes(self) -> Iterator[Metric]:
        hop = self._metrics.hop
        if hop is None or self._cluster is None:
            return
        counts = self._cluster.count()
        frames = {
            ("out", "written"): counts.frames.written,
            ("out", "dropped"): sum(counts.frames.dropped.values()),
            ("in", "received"): hop.frames["received"],
            ("in", "lost"): hop.frames["lost"],
        }
        crossed = CounterMetricFamily(
            "relay_hop_frames",
            "Frames for other nodes, counted once for each, and from other nodes",
            labels=("direction", "outcome"),
        )
        for labels, value in frames.items():
            crossed.add_metric(labels, value)
        yield crossed
        yield _gauge("hop_frames_waiting", "Frames that wait for another node", counts.waiting)
        yield _histogram(
            "hop_age_seconds",
            "Age of a frame when it is written to another node",
            hop.sent.frame_age,
        )
        yield _gauges(
            "links",
            "Links to other nodes, by the direction of the frames",
            "direction",
            (("out", counts.links_out), ("in", counts.links_in)),
        )
        yield _gauge(
            "carried_streams", "Streams of other nodes that are watched here", counts.carried
        )
        yield _counters(
            "handovers",
            "Streams taken over from another node, which told how far it came, or did not",
            "outcome",
            ((each, hop.takes[each]) for each in HANDOVER_OUTCOMES),
        )
        yield _counters(
            "viewer_moves",
            "Viewers that were to be served by another worker, which took them, or did not",
            "outcome",
            ((each, hop.moves[each]) for each in MOVE_OUTCOMES),
        )
        yield _gauges(
            "nodes",
            "Nodes of the cluster, this one among them",
            "state",
            (("live", counts.live), ("draining", counts.draining)),
        )
        yield _gauge(
            "nodes_unreachable",
            "Nodes to which no link could be opened a moment ago",
            counts.unreachable,
        )

    def _services(self) -> Iterator[Metric]:
        tasks = self._supervisor.tasks
        states = GaugeMetricFamily(
            "relay_service_state",
            "1 for the state that a service is in",
            labels=("service", "state"),
        )
        for name, task in tasks.items():
            for state in TaskState:
                states.add_metric((name, state.value), task.state is state)
        yield states
        yield _counters(
            "service_restarts",
            "Times a service failed and was restarted",
            "service",
            ((name, task.restarts) for name, task in tasks.items()),
        )
        audit = self._audit
        yield _counter("audit_written", "Rows written to the audit", audit.written)
        yield _counter("audit_dropped", "Rows that the audit lost", audit.dropped)
        yield _gauge("audit_waiting", "Rows that wait to be written to the audit", audit.waiting)


def encode_registry(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """As `Exposition.encode` does."""
    try:
        encoder, content_type = choose_encoder(accept)
    except TypeError:  # an invalid version
        encoder, content_type = choose_encoder("")
    return encoder(registry), content_type


def _process() -> Iterator[Metric]:
    """What `ProcessCollector` leaves out; on Linux only, as all that it has."""
    waited = read_cpu_wait()
    if waited is not None:
        about = "Total time that the main thread was ready to run and had no core in seconds"
        yield CounterMetricFamily("process_cpu_wait_seconds", about, value=waited)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"relay_{name}", about, value)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"relay_{name}", about, value)


def _counters(name: str, about: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(f"relay_{name}", about, labels=(label,))
    for each, value in values:
        family.add_metric((each,), value)
    return family


def _gauges(name: str, about: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(f"relay_{name}", about, labels=(label,))
    for each, value in values:
        family.add_metric((each,), value)
    return family


def _histogram(name: str, about: str, histogram: Histogram) -> Metric:
    buckets = [
        ("+Inf" if bound == inf else str(float(bound)), count)
        for bound, count in histogram.cumulative()
    ]
    return HistogramMetricFamily(f"relay_{name}", about, buckets=buckets, sum_value=histogram.total)
