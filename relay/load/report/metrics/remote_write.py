"""Prometheus remote write 1.0. No I/O.

https://prometheus.io/docs/specs/prw/remote_write_spec/
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from relay.load.report.metrics import protobuf
from relay.load.report.metrics.samples import JOB, Labels, MetricSample

REMOTE_WRITE_PATH = "/api/v1/write"
REMOTE_WRITE_HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
(STALE,) = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))
"""The value that ends a series, a NaN."""
MAX_LITERAL_BYTES = 1 << 16
_LONG_LITERAL = 61 << 2
"""The tag of a literal with a length of two bytes."""


def write_request(samples: Iterable[MetricSample], at: float, run: Labels) -> bytes:
    """The body of a request. `at` is in seconds since the Unix epoch; `run` are labels of all."""
    milliseconds = protobuf.whole_number(2, int(at * 1000))
    series = (
        protobuf.message(
            1,
            *_labels(sample, run),
            protobuf.message(2, protobuf.double(1, sample.value), milliseconds),
        )
        for sample in samples
    )
    return snappy(b"".join(series))


def _labels(sample: MetricSample, run: Labels) -> Iterable[bytes]:
    """Labels in the order of their names, as receivers want them."""
    name = f"relay_load_{sample.metric.name}{sample.metric.suffix}"
    labels = sorted((*sample.labels, *run, ("__name__", name), ("job", JOB)))
    for key, value in labels:
        yield protobuf.message(1, protobuf.text(1, key), protobuf.text(2, value))


def snappy(data: bytes) -> bytes:
    """Snappy's block format, without compression: requests have a few kilobytes.

    https://github.com/google/snappy/blob/main/format_description.txt
    """
    parts = [protobuf.varint(len(data))]
    for start in range(0, len(data), MAX_LITERAL_BYTES):
        literal = data[start : start + MAX_LITERAL_BYTES]
        parts += [struct.pack("<BH", _LONG_LITERAL, len(literal) - 1), literal]
    return b"".join(parts)
