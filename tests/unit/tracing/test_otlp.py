"""Spans are recorded in the trace they belong to, as many as there may be, whatever the collector
does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
import structlog
import trio
from attrs import define, field
from structlog.testing import LogCapture

pytest.importorskip("opentelemetry.sdk", reason="needs relay[otel]")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from relay.errors import ConfigError
from relay.model.trace_context import TraceContext
from relay.tracing import setup
from relay.tracing.otlp import (
    MAX_TRACES_PER_SECOND,
    LimitedSampler,
    OtlpTracing,
    ReportingExporter,
    open_exporter,
)
from relay.tracing.setup import open_tracer
from relay.tracing.tracer import NO_SPAN, TracedStep, Tracer

CALLER = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
PLACE = "http://collector:4318"


@define(eq=False)
class Collector(SpanExporter):
    """Keeps what is exported."""

    spans: list[ReadableSpan] = field(factory=list)
    batches: list[int] = field(factory=list)
    answer: SpanExportResult | Exception = SpanExportResult.SUCCESS
    hangs: threading.Event = field(factory=threading.Event)

    def __attrs_post_init__(self) -> None:
        self.hangs.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.hangs.wait(30)
        self.batches.append(len(spans))
        self.spans.extend(spans)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def tracing(collector: Collector) -> Iterator[OtlpTracing]:
    tracing = OtlpTracing.exporting(collector)
    yield tracing
    collector.hangs.set()
    tracing.close()


@pytest.fixture
def lines() -> Iterator[LogCapture]:
    capture = LogCapture()
    with structlog.testing.capture_logs() as entries:
        capture.entries = entries
        yield capture


def context_of(span: ReadableSpan) -> tuple[str, str, str | None]:
    """Its trace, its id, and that of its parent."""
    assert span.context is not None
    parent = None if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


def test_a_step_continues_the_trace_of_the_one_before(
    tracing: OtlpTracing, collector: Collector
) -> None:
    caller = TraceContext(CALLER.trace_id, CALLER.span_id, sampled=True, tracestate="a=b")
    with tracing.tracer.begin(TracedStep.ACCEPT, caller) as accepted:
        accepted.note("alert.id", 7)
    with pytest.raises(KeyError), tracing.tracer.follow(TracedStep.STORE, accepted.context) as span:
        raise KeyError("a secret")
    assert span.context is not None
    assert span.context.tracestate == "a=b"
    tracing.close()
    first, second = collector.spans
    assert context_of(first)[::2] == (CALLER.trace_id, CALLER.span_id)
    assert context_of(second)[::2] == (CALLER.trace_id, context_of(first)[1])
    assert context_of(second)[1] == span.context.span_id
    assert dict(first.attributes or {}) == {"relay.alert.id": 7}
    assert (second.status.status_code, second.status.description) == (StatusCode.ERROR, "KeyError")
    assert "a secret" not in f"{first.to_json()} {second.to_json()}"


def test_what_is_not_sampled_is_passed_on_and_not_recorded(
    tracing: OtlpTracing, collector: Collector
) -> None:
    unsampled = CALLER.unsampled()
    with tracing.tracer.begin(TracedStep.ACCEPT, unsampled) as accepted:
        assert accepted.context == unsampled
    assert tracing.tracer.follow(TracedStep.POST, unsampled).context == unsampled
    assert tracing.tracer.follow(TracedStep.POST, None) is NO_SPAN
    tracing.close()
    assert collector.spans == []


@pytest.mark.parametrize("caller", [None, CALLER])
def test_of_ten_thousand_alerts_a_second_a_bounded_number_is_recorded(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caller: TraceContext | None
) -> None:
    monkeypatch.setattr("relay.tracing.otlp.time.monotonic", lambda: 1.0)
    tracing = OtlpTracing.exporting(collector)
    recorded = 0
    for _ in range(10_000):
        with tracing.tracer.begin(TracedStep.ACCEPT, caller) as accepted:
            with tracing.tracer.follow(TracedStep.STORE, accepted.context) as stored:
                pass
            if stored.context is not None and stored.context.sampled:
                recorded += 1
            else:
                assert stored.context == (None if caller is None else caller.unsampled())
    tracing.close()
    assert recorded == MAX_TRACES_PER_SECOND
    assert len(collector.spans) == 2 * MAX_TRACES_PER_SECOND


def test_the_variables_choose_the_sampler(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    tracing = OtlpTracing.exporting(collector)
    for _ in range(1000):
        assert tracing.tracer.begin(TracedStep.ACCEPT, None) is NO_SPAN
    with tracing.tracer.begin(TracedStep.ACCEPT, CALLER) as span:
        assert span.context is not None
    tracing.close()
    assert len(collector.spans) == 1


def test_the_variables_name_the_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resource() -> dict[str, object]:
        tracing = OtlpTracing.exporting(collector)
        tracing.close()
        return dict(tracing._provider.resource.attributes)

    assert resource()["service.name"] == "relay"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=door,deployment.environment=x")
    assert resource()["service.name"] == "door"
    assert resource()["deployment.environment"] == "x"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "relay-eu")
    assert resource()["service.name"] == "relay-eu"


def test_a_collector_that_is_away_is_said_once(lines: LogCapture) -> None:
    collector = Collector(answer=SpanExportResult.FAILURE)
    tracing = OtlpTracing.exporting(ReportingExporter(collector, PLACE))
    spans = [one_span(tracing.tracer) for _ in range(3)]
    tracing.close()
    exporter = ReportingExporter(collector, PLACE)
    for answer in (SpanExportResult.FAILURE, RuntimeError("a secret"), SpanExportResult.SUCCESS):
        collector.answer = answer
        for _ in range(3):
            exporter.export(collector.spans[:2])
    assert len(spans) == 3
    said = [(each["log_level"], each["event"]) for each in lines.entries]
    away = ("warning", "the collector takes no traces: they are dropped")
    assert [each for each in said if each[0] != "debug"] == [
        away,
        away,
        ("info", "the collector takes traces again"),
    ]
    assert lines.entries[-1]["lost"] == 12
    assert "a secret" not in str(lines.entries)


def one_span(tracer: Tracer) -> TraceContext | None:
    with tracer.begin(TracedStep.ACCEPT, None) as span:
        return span.context


ENDLESS = b"Content-Length: 1000000000000\r\n\r\n"


@contextmanager
def answering(status: bytes) -> Iterator[str]:
    """A server that answers with this status, and then writes until nobody reads; its URL."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + ENDLESS)
            while True:
                connection.sendall(bytes(1 << 16))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (b"200 OK", SpanExportResult.SUCCESS),
        (b"400 Bad Request", SpanExportResult.FAILURE),
        (b"308 Permanent Redirect\r\nLocation: http://127.0.0.1:9/", SpanExportResult.FAILURE),
    ],
)
def test_of_an_answer_nothing_is_read_but_its_head(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, status: bytes, result: SpanExportResult
) -> None:
    tracing = OtlpTracing.exporting(collector)
    one_span(tracing.tracer)
    tracing.close()
    with answering(status) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        assert ReportingExporter(open_exporter(), PLACE).export(collector.spans) is result


@contextmanager
def dripping(beginning: bytes) -> Iterator[int]:
    """A server that answers so, and then with a byte at a time for as long as anybody listens; its
    port."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(beginning)
            while not over.wait(0.05):
                connection.sendall(b"a")
            is_left.clear()

    over, is_left = threading.Event(), threading.Event()
    is_left.set()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        stop = threading.Timer(20, over.set)  # so that a test that fails has an end
        stop.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join(30)
            stop.cancel()
        assert is_left.is_set(), "the exporter has not closed its connection"


@pytest.mark.parametrize(
    ("scheme", "beginning"),
    [
        ("http", b""),
        ("http", b"HTTP/1.1 200 OK\r\nX-Long: "),
        ("https", b"\x16\x03\x03\x40\x00"),  # the head of a TLS record
    ],
)
def test_a_collector_that_drips_holds_up_an_export_no_longer_than_its_timeout(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, scheme: str, beginning: bytes
) -> None:
    tracing = OtlpTracing.exporting(collector)
    one_span(tracing.tracer)
    tracing.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    with dripping(beginning) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{scheme}://127.0.0.1:{port}")
        exporter = ReportingExporter(open_exporter(), PLACE)
        assert exporter.export(collector.spans) is SpanExportResult.FAILURE


def test_a_proxy_that_drips_holds_it_up_no_longer_either(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing = OtlpTracing.exporting(collector)
    one_span(tracing.tracer)
    tracing.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.test:4318")
    with dripping(b"HTTP/1.1 200 OK\r\nX-Long: ") as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        exporter = ReportingExporter(open_exporter(), PLACE)
        assert exporter.export(collector.spans) is SpanExportResult.FAILURE


def test_behind_a_collector_that_hangs_no_more_waits_than_the_queue_holds(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setattr(LimitedSampler, "_has_room", lambda _: True)
    collector.hangs.clear()
    tracing = OtlpTracing.exporting(collector)
    for _ in range(5000):
        one_span(tracing.tracer)
    collector.hangs.set()
    tracing.close()
    assert 50 <= len(collector.spans) <= 60  # one batch was on its way


async def test_a_collector_that_hangs_does_not_hold_up_the_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    tracing = OtlpTracing.exporting(collector)
    collector.hangs.clear()
    monkeypatch.setattr(OtlpTracing, "open", lambda _place: tracing)
    began = trio.current_time()
    async with open_tracer({"OTEL_TRACES_EXPORTER": "otlp"}) as tracer:
        one_span(tracer)
    assert trio.current_time() - began <= setup.TRACES_FLUSH_TIMEOUT + 0.1
    assert collector.spans == []
    collector.hangs.set()


async def test_what_the_sdk_does_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(ConfigError, match="OTEL_BSP_MAX_QUEUE_SIZE"):
        async with open_tracer({"OTEL_TRACES_EXPORTER": "otlp"}):
            raise AssertionError
