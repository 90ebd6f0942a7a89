"""Records spans with the SDK of OpenTelemetry, and exports them by OTLP over HTTP.

The SDK reads its own variables. Spans wait in a bounded queue of the SDK, and a thread of the SDK
exports them: the event loop never waits for the collector, and what does not fit is dropped. What
the SDK logs may quote URLs and headers, so it is not heard; relay says in its own words when the
collector is away, and when it is back.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from uuid import uuid4

import structlog
from attrs import define, field, frozen
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

import relay
from relay.errors import ConfigError
from relay.model.trace_context import TraceContext
from relay.tracing.bounded_http import bounded_session
from relay.tracing.tracer import NO_SPAN, Span, TracedStep, Unrecorded

MAX_TRACES_PER_SECOND = 100
"""Requests of which one process records a trace in a second at most, whatever the sampler says and
callers ask for: what tracing costs is bounded."""
MAX_STATUS_LENGTH = 200
CREDENTIAL_PROVIDERS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)
"""With one of these, the SDK sends with a session of somebody else's."""
SPAN_KINDS = {
    TracedStep.ACCEPT: SpanKind.SERVER,
    TracedStep.READ: SpanKind.SERVER,
    TracedStep.STORE: SpanKind.CLIENT,
    TracedStep.DISPATCH: SpanKind.INTERNAL,
    TracedStep.POST: SpanKind.CLIENT,
}

log = structlog.get_logger()


def open_exporter() -> SpanExporter:
    """Exports by the variables of this process."""
    if any(map(os.environ.get, CREDENTIAL_PROVIDERS)):
        return OTLPSpanExporter()
    return OTLPSpanExporter(session=bounded_session())


@define(eq=False)
class ReportingExporter(SpanExporter):
    """Says once that the collector does not take spans, and once that it does again."""

    _exporter: SpanExporter
    _place: str
    _failing: bool = False
    _lost: int = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as bug:  # noqa: BLE001 (the SDK would log it with what it quotes)
            log.debug("traces not exported", error=type(bug).__name__)
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed:
            self._lost += len(spans)
        if failed and not self._failing:
            log.warning("the collector takes no traces: they are dropped", collector=self._place)
        elif self._failing and not failed:
            log.info("the collector takes traces again", collector=self._place, lost=self._lost)
            self._lost = 0
        self._failing = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


@define(eq=False)
class LimitedSampler(Sampler):
    """The sampler that the variables name, with a limit on how many requests it samples."""

    _sampler: Sampler
    _per_second: int = MAX_TRACES_PER_SECOND
    _second: int = -1
    _sampled: int = 0
    """In this second."""
    _lock: threading.Lock = field(factory=threading.Lock)
    _warned: bool = False

    def should_sample(  # noqa: PLR0917 (as the SDK has it)
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        result = self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if (
            kind is SpanKind.SERVER
            and result.decision is Decision.RECORD_AND_SAMPLE
            and not self._has_room()
        ):
            return SamplingResult(Decision.DROP)
        return result

    def get_description(self) -> str:
        return f"Limited{{{self._sampler.get_description()}}}"

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second, self._sampled = second, 0
            self._sampled += 1
            if self._sampled <= self._per_second:
                return True
            if not self._warned:
                self._warned = True
                log.warning(
                    "not all traces are recorded: set OTEL_TRACES_SAMPLER to sample fewer",
                    most_per_second=self._per_second,
                )
        return False


@frozen
class Recorded:
    """A span that is recorded. A `relay.tracing.tracer.Span`."""

    context: TraceContext
    _span: trace.Span

    def note(self, name: str, value: str | int) -> None:
        self._span.set_attribute(f"relay.{name}", value)

    def fail(self, why: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, why[:MAX_STATUS_LENGTH]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.fail(kind.__name__)  # its text may quote what is nobody's business
        self._span.end()


@frozen
class OtlpTracer:
    """Begins spans of the SDK. A `Tracer`."""

    _tracer: trace.Tracer

    def begin(self, step: TracedStep, caller: TraceContext | None) -> Span:
        return self._start(step, caller)

    def follow(self, step: TracedStep, before: TraceContext | None) -> Span:
        if before is None:
            return NO_SPAN
        return self._start(step, before) if before.sampled else Unrecorded(before)

    def _start(self, step: TracedStep, parent: TraceContext | None) -> Span:
        is_remote = step is not TracedStep.STORE
        within = Context() if parent is None else _as_parent(parent, is_remote=is_remote)
        span = self._tracer.start_span(step.value, within, SPAN_KINDS[step])
        context = span.get_span_context()
        if not context.trace_flags.sampled:
            return NO_SPAN if parent is None else Unrecorded(parent.unsampled())
        trace_id, span_id = (
            trace.format_trace_id(context.trace_id),
            trace.format_span_id(context.span_id),
        )
        tracestate = "" if parent is None else parent.tracestate
        return Recorded(TraceContext(trace_id, span_id, sampled=True, tracestate=tracestate), span)


def _as_parent(parent: TraceContext, *, is_remote: bool) -> Context:
    context = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote,
        TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
        TraceState.from_header([parent.tracestate]) if parent.tracestate else None,
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


@frozen
class OtlpTracing:
    """A tracer with its exporter."""

    tracer: OtlpTracer
    _provider: TracerProvider

    @classmethod
    def open(cls, place: str) -> Self:
        """By the variables of this process; `ConfigError`. `place` is the collector as it may be
        shown. Not for the event loop: it reads files."""
        _silence("opentelemetry")
        _silence("urllib3")
        try:
            return cls.exporting(ReportingExporter(open_exporter(), place))
        except (ValueError, OSError, RuntimeError) as problem:
            named = ", ".join(sorted(each for each in os.environ if each.startswith("OTEL_")))
            raise ConfigError(
                f"OpenTelemetry's SDK does not take one of these variables, or a file that it names"
                f" ({type(problem).__name__}): {named}"
            ) from None

    @classmethod
    def exporting(cls, exporter: SpanExporter) -> Self:
        """With this exporter, and the variables of this process for all else."""
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.sampler = LimitedSampler(provider.sampler)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(OtlpTracer(provider.get_tracer("relay", relay.__version__)), provider)

    def close(self) -> None:
        """Export what waits. It takes as long as the collector does."""
        self._provider.shutdown()


def _silence(library: str) -> None:
    logger = logging.getLogger(library)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _resource() -> Resource:
    """What the variables say of this process, and else what relay does."""
    own = Resource.create(
        {
            "service.name": "relay",
            "service.version": relay.__version__,
            "service.instance.id": str(uuid4()),
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )
    return own.merge(OTELResourceDetector().detect())
