"""Tracing is on where the variables ask for it, and tells nobody what may be secret."""

from __future__ import annotations

import sys

import pytest

from relay.errors import ConfigError
from relay.tracing.setup import TracingRequest, open_tracer
from relay.tracing.tracer import NO_SPAN, NO_TRACER, TracedStep

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SECRET = "s3same"


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        ({ENDPOINT: ""}, None),
        ({ENDPOINT: "http://collector:4318"}, "http://collector:4318"),
        ({ENDPOINT: f"https://me:{SECRET}@c.example/x?key={SECRET}"}, "https://c.example"),
        ({ENDPOINT: "http://[::1]:4318"}, "http://[::1]:4318"),
        ({ENDPOINT: "http://a", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/t"}, "http://b"),
        ({ENDPOINT: "http://a", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({ENDPOINT: "http://a", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318"),
        ({"OTEL_SERVICE_NAME": "relay", "OTEL_TRACES_SAMPLER": "always_on"}, None),
    ],
)
def test_an_endpoint_asks_for_tracing(variables: dict[str, str], place: str | None) -> None:
    request = TracingRequest.of(variables)
    assert (None if request is None else request.place) == place
    assert SECRET not in repr(request)


@pytest.mark.parametrize(
    "variables",
    [
        {ENDPOINT: f"collector:{SECRET}"},
        {ENDPOINT: f"ftp://{SECRET}@collector"},
        {ENDPOINT: f"http://{SECRET}:{SECRET}"},
        {ENDPOINT: f"http://[{SECRET}"},
        {ENDPOINT: "http://a", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {ENDPOINT: "http://a", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
        {ENDPOINT: "http://a", "OTEL_TRACES_EXPORTER": "zipkin"},
        {ENDPOINT: "http://a", "OTEL_TRACES_SAMPLER": "allways_on"},
        {ENDPOINT: "http://a", "OTEL_TRACES_SAMPLER_ARG": "10%"},
        {ENDPOINT: "http://a", "OTEL_TRACES_SAMPLER_ARG": "nan"},
        {ENDPOINT: "http://a", "OTEL_EXPORTER_OTLP_HEADERS": SECRET},
        {ENDPOINT: "http://a", "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET},{SECRET}"},
        {ENDPOINT: "http://a", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f'a="{SECRET}"'},
    ],
)
def test_what_cannot_be_used_is_named_and_not_quoted(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="OTEL_") as raised:
        TracingRequest.of(variables)
    assert SECRET not in str(raised.value)


async def test_without_the_variables_nothing_is_recorded() -> None:
    async with open_tracer({}) as tracer:
        assert tracer is NO_TRACER
        assert tracer.begin(TracedStep.ACCEPT, None) is NO_SPAN


async def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "relay.tracing.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match="its extra 'otel'"):
        async with open_tracer({ENDPOINT: "http://127.0.0.1:9"}):
            raise AssertionError
