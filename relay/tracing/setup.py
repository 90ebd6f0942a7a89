"""Decides by the standard variables of OpenTelemetry whether there is tracing, and opens it.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog
import trio
from attrs import field, frozen

from relay.errors import ConfigError
from relay.tracing.tracer import NO_TRACER, Tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
DEFAULT_ENDPOINT = "http://localhost:4318"
SAMPLERS = ("always_on", "always_off", "traceidratio")
"""And each of them after `parentbased_`."""
PROTOCOL = "http/protobuf"
EXPORT_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=[^\"\\;,]*")
"""One of `OTEL_EXPORTER_OTLP_HEADERS`, as the SDK takes it."""
TRACES_FLUSH_TIMEOUT = 3.0
"""Seconds to export, when relay stops, what has not been exported."""

log = structlog.get_logger()


@frozen
class TracingRequest:
    """What the variables ask for."""

    endpoint: str = field(repr=False)
    """It may hold credentials."""

    @property
    def place(self) -> str:
        """The endpoint as it may be shown."""
        parts = urlsplit(self.endpoint)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}" + ("" if parts.port is None else f":{parts.port}")

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> TracingRequest | None:
        """None unless tracing is asked for; `ConfigError`, which quotes no value that may hold
        credentials."""
        exporter = _word(variables, "OTEL_TRACES_EXPORTER")
        named = TRACES_ENDPOINT if variables.get(TRACES_ENDPOINT, "").strip() else ENDPOINT
        endpoint = variables.get(named, "").strip()
        if _word(variables, "OTEL_SDK_DISABLED") == "true" or exporter == "none":
            return None
        if not endpoint and exporter != "otlp":
            return None
        if exporter not in ("", "otlp"):
            raise ConfigError("OTEL_TRACES_EXPORTER: relay exports traces by `otlp`, or `none`")
        _check_protocol(variables)
        _check_endpoint(named, endpoint or DEFAULT_ENDPOINT)
        for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
            _check_headers(name, variables.get(name, ""))
        _check_sampler(variables)
        return cls(endpoint or DEFAULT_ENDPOINT)


def _word(variables: Mapping[str, str], name: str) -> str:
    return variables.get(name, "").strip().lower()


def _check_protocol(variables: Mapping[str, str]) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = _word(variables, name)
        if protocol and protocol != PROTOCOL:
            raise ConfigError(
                f"{name}: relay speaks {PROTOCOL} only, which collectors take on port 4318"
                " (OTEL_SDK_DISABLED=true turns tracing off)"
            )
        if protocol:
            return


def _check_endpoint(name: str, endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{name}: it should be a URL, such as {DEFAULT_ENDPOINT}")


def _check_sampler(variables: Mapping[str, str]) -> None:
    """The SDK would record everything instead."""
    sampler = _word(variables, "OTEL_TRACES_SAMPLER")
    if sampler and sampler.removeprefix("parentbased_") not in SAMPLERS:
        raise ConfigError(
            f"OTEL_TRACES_SAMPLER: it should be {', '.join(SAMPLERS)}, or one of them after"
            " parentbased_"
        )
    share = _word(variables, "OTEL_TRACES_SAMPLER_ARG")
    try:
        valid = not share or 0 <= float(share) <= 1
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError("OTEL_TRACES_SAMPLER_ARG: it should be a number from 0 to 1")


def _check_headers(name: str, value: str) -> None:
    """The SDK would leave out what it cannot read, and log it."""
    entries = [entry for each in value.split(",") if (entry := each.strip())]
    if not all(map(EXPORT_HEADER.fullmatch, entries)):
        raise ConfigError(f"{name}: it should be name=value,name=value, with URL-encoded values")


@asynccontextmanager
async def open_tracer(variables: Mapping[str, str] = os.environ) -> AsyncIterator[Tracer]:
    """The tracer that the variables ask for, until the block ends; `ConfigError`.

    A thread exports what is recorded. At the end it has `TRACES_FLUSH_TIMEOUT` seconds for the
    rest.
    """
    request = TracingRequest.of(variables)
    if request is None:
        yield NO_TRACER
        return
    try:
        from relay.tracing.otlp import OtlpTracing  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ConfigError(
            "the OTEL_ variables ask for traces: install relay with its extra 'otel', which brings"
            " opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
            " (OTEL_SDK_DISABLED=true turns tracing off)"
        ) from None
    tracing = await trio.to_thread.run_sync(OtlpTracing.open, request.place)
    log.info("alerts are traced", collector=request.place)
    try:
        yield tracing.tracer
    finally:
        with trio.move_on_after(TRACES_FLUSH_TIMEOUT, shield=True):
            await trio.to_thread.run_sync(tracing.close, abandon_on_cancel=True)
