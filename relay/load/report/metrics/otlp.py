"""OpenTelemetry's protocol for metrics, OTLP 1.x over HTTP. No I/O.

https://opentelemetry.io/docs/specs/otlp/ and
https://github.com/open-telemetry/opentelemetry-proto (metrics/v1/metrics.proto)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from relay.load.report.metrics import protobuf
from relay.load.report.metrics.samples import JOB, Labels, Metric, MetricSample

OTLP_PATH = "/v1/metrics"
OTLP_HEADERS = {"Content-Type": "application/x-protobuf"}
CUMULATIVE = 2
"""The values of a counter count from the start of the run."""
SCOPE = "relay load"


def export_request(samples: Iterable[MetricSample], at: float, start: float, run: Labels) -> bytes:
    """The body of a request. `at` and `start` (of the run) are in seconds since the Unix epoch;
    `run` are attributes of all points."""
    by_metric: dict[Metric, list[MetricSample]] = defaultdict(list)
    for sample in samples:
        by_metric[sample.metric].append(sample)
    times = protobuf.fixed64(2, int(start * 1e9)) + protobuf.fixed64(3, int(at * 1e9))
    resource = protobuf.message(1, _attribute(1, "service.name", JOB))
    scope = protobuf.message(1, protobuf.text(1, SCOPE))
    metrics = (_metric(metric, points, times, run) for metric, points in by_metric.items())
    return protobuf.message(1, resource, protobuf.message(2, scope, *metrics))


def _metric(metric: Metric, samples: Sequence[MetricSample], times: bytes, run: Labels) -> bytes:
    points = [
        protobuf.message(
            1,
            *(_attribute(7, key, value) for key, value in (*sample.labels, *run)),
            times,
            protobuf.double(4, sample.value),
        )
        for sample in samples
    ]
    if metric.is_counter:
        kind = (protobuf.whole_number(2, CUMULATIVE), protobuf.whole_number(3, 1))  # monotonic
        data = protobuf.message(7, *points, *kind)
    else:
        data = protobuf.message(5, *points)
    name, unit = protobuf.text(1, f"relay_load.{metric.name}"), protobuf.text(3, metric.unit)
    return protobuf.message(2, name, unit, data)


def _attribute(field: int, key: str, value: str) -> bytes:
    return protobuf.message(
        field, protobuf.text(1, key), protobuf.message(2, protobuf.text(1, value))
    )
