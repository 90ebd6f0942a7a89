"""The metrics of a run, in the encodings of Prometheus and OpenTelemetry."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.measures.process_usage import ProcessUsage
from relay.load.measures.results import Second, second_of
from relay.load.measures.stats import GroupStats
from relay.load.report.metrics.otlp import export_request
from relay.load.report.metrics.protobuf import whole_number
from relay.load.report.metrics.remote_write import STALE, snappy, write_request
from relay.load.report.metrics.samples import FRAME_AGE, FRAMES, MetricSample, MetricTotals
from tests.protobuf import fields, only, varint

RUN = (("run", "abcd"), ("scenario", "s"))
SAMPLES = [
    MetricSample(FRAMES, (("group", "viewers"), ("outcome", "received")), 7.0),
    MetricSample(FRAME_AGE, (("group", "viewers"), ("quantile", "0.5")), 0.25),
]
EXPORTED = bytes.fromhex(
    "0abf020a1e0a1c0a0c736572766963652e6e616d65120c0a0a72656c6179"
    "2d6c6f6164129c020a0c0a0a72656c6179206c6f6164128a010a1172656c"
    "61795f6c6f61642e6672616d65731a077b6672616d657d3a6c0a663a120a"
    "0567726f757012090a07766965776572733a150a076f7574636f6d65120a"
    "0a0872656365697665643a0d0a0372756e12060a04616263643a0f0a0873"
    "63656e6172696f12030a01731100002a36fe9c9717190065f753fe9c9717"
    "210000000000001c4010021801127f0a1472656c61795f6c6f61642e6672"
    "616d655f6167651a01732a640a623a120a0567726f757012090a07766965"
    "776572733a110a087175616e74696c6512050a03302e353a0d0a0372756e"
    "12060a04616263643a0f0a087363656e6172696f12030a01731100002a36"
    "fe9c9717190065f753fe9c971721000000000000d03f"
)
"""What the package opentelemetry-proto 1 reads as `SAMPLES`."""


def unpacked(data: bytes) -> bytes:
    """Snappy's block format, as far as it is used."""
    size, at = varint(data, 0)
    found = b""
    while at < len(data):
        tag, length = struct.unpack_from("<BH", data, at)
        assert tag == 0b111101_00  # a literal with a length of two bytes
        found += data[at + 3 : at + 4 + length]
        at += 4 + length
    assert len(found) == size
    return found


@given(st.binary(max_size=200) | st.integers(0, 200_000).map(bytes))
def test_snappy_keeps_all_bytes(data: bytes) -> None:
    assert unpacked(snappy(data)) == data


@given(st.integers(0, 2**63 - 1))
def test_a_whole_number_is_read_back(number: int) -> None:
    assert fields(whole_number(3, number)) == {3: [number]}


def test_a_series_of_prometheus_has_sorted_labels_and_milliseconds() -> None:
    series = fields(unpacked(write_request(SAMPLES, 1700000000.5, RUN)))[1]
    first = fields(series[0])
    labels = [(only(each, 1), only(each, 2)) for each in map(fields, first[1])]
    assert labels == sorted(labels)
    assert dict(labels) == {
        b"__name__": b"relay_load_frames_total", b"job": b"relay-load", b"group": b"viewers",
        b"outcome": b"received", b"run": b"abcd", b"scenario": b"s",
    }  # fmt: skip
    assert fields(only(first, 2)) == {1: [7.0], 2: [1700000000500]}
    assert struct.pack("<d", STALE) == struct.pack("<Q", 0x7FF0000000000002)
    assert math.isnan(STALE)


def test_a_request_of_otlp_is_what_a_collector_reads() -> None:
    assert export_request(SAMPLES, 1700000000.5, 1700000000.0, RUN) == EXPORTED


def second(at: int, received: int) -> Second:
    viewers = GroupStats()
    viewers.counts.update({"received": received, "lost": 1})
    viewers.time("frame_age").record(0.5)
    viewers.connected = 3
    before, usage = {"": ProcessUsage(1.0, 100)}, {"": ProcessUsage(1.5, 200)}
    recent = {"viewers": viewers}
    return second_of(at, recent=recent, usage=usage, before=before, last_at=at - 1)


def test_counters_count_from_the_start_and_gauges_are_of_the_last_second() -> None:
    totals = MetricTotals()
    totals.add(second(1, 5))
    named = {
        (each.metric.name, *(value for _, value in each.labels)): each.value
        for each in totals.add(second(2, 6))
    }
    assert named["frames", "viewers", "received"] == 11
    assert named["frames", "viewers", "missed"] == 2
    assert named["connections", "viewers"] == 3
    assert named["frame_age", "viewers", "0.99"] == pytest.approx(0.5, rel=0.01)
    assert (named["target_cpu",], named["target_memory",]) == (0.5, 200)
