"""The trace of an alert, from its sender to the receiver of a webhook, as a collector gets it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from attrs import define, field, frozen

pytest.importorskip("opentelemetry.sdk", reason="needs relay[otel]")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.integration.accounts import Accounts
from tests.integration.alerts.test_webhooks import LOOPBACK, Receiver, open_receiver
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import SERVE, RelayProcess, run_relay, start_relay, until
from tests.integration.web_server import Request, WebServer, open_web_server, says

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
CREDENTIAL = "s3same-of-the-collector"
STEPS = ["accept alert", "dispatch alert", "post alert", "store alert"]


@frozen
class SeenSpan:
    """A span with its ids as `traceparent` writes them."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str | int | bool]
    failed: bool

    @classmethod
    def of(cls, span: Span) -> SeenSpan:
        attributes = {
            each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
            for each in span.attributes
        }
        ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        failed = span.status.code == Status.STATUS_CODE_ERROR
        return cls(span.name, *ids, attributes, failed)


@define(eq=False)
class Collector:
    """A server that speaks OTLP over HTTP."""

    server: WebServer
    requests: list[ExportTraceServiceRequest] = field(factory=list)

    def of(self, trace_id: str) -> dict[str, SeenSpan]:
        """The spans of a trace by their names."""
        spans = [
            SeenSpan.of(span)
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return {each.name: each for each in spans if each.trace_id == trace_id}

    @property
    def services(self) -> set[str]:
        return {
            each.value.string_value
            for request in self.requests
            for resource in request.resource_spans
            for each in resource.resource.attributes
            if each.key == "service.name"
        }


@asynccontextmanager
async def open_collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector to which relays export that are started within the block."""

    async def answer(request: Request, stream: object) -> None:
        assert request.line == "POST /v1/traces HTTP/1.1"
        assert request.headers["content-type"] == "application/x-protobuf"
        assert request.headers["api-key"] == CREDENTIAL
        collector.requests.append(ExportTraceServiceRequest.FromString(request.body))
        await says(b"")(request, stream)  # type: ignore[arg-type]

    async with open_web_server(answer) as server:
        collector = Collector(server)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={CREDENTIAL}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "relay-of-a-test")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


def service_for(accounts: Accounts, stream_id: str) -> str:
    made = run_relay(
        "token", "service", "detector", "--consume", stream_id, "--alerts",
        database_url=accounts.url,
    )  # fmt: skip
    return made.stdout.split()[-1]


def check_trace(collector: Collector, receiver: Receiver, trace_id: str, parent_id: str) -> None:
    """Each step of the trace has the right parent, and the receiver got the last one."""
    spans = collector.of(trace_id)
    accept, dispatch, post, store = (spans[name] for name in STEPS)
    assert accept.parent_id == parent_id
    assert store.parent_id == accept.span_id
    assert dispatch.parent_id == post.parent_id == store.span_id
    assert dispatch.attributes["relay.consumers"] == 2  # the viewer and the phone
    [posted] = [
        each.headers["traceparent"]
        for each in receiver.server.requests
        if trace_id in each.headers.get("traceparent", "")
    ]
    assert posted == f"00-{trace_id}-{post.span_id}-01"
    assert post.attributes["relay.target.id"] == receiver.webhook_id
    alert_ids = {each.attributes["relay.alert.id"] for each in (accept, dispatch, post)}
    assert len(alert_ids) == 1
    assert not any(each.failed for each in spans.values())


async def test_one_trace_leads_from_the_sender_to_the_receiver_of_the_webhook(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_id, other_trace = new_stream_id(), "b" * 32
    async with open_collector(monkeypatch) as collector:
        with start_relay(*LOOPBACK, database_url=accounts.url) as relay:
            async with (
                login(relay, accounts.session("ann")) as phone,
                login(relay, accounts.session("ann"), path="/streams/subscribe") as viewer,
                open_receiver(accounts, "--owner", "ann") as receiver,
            ):
                await phone.register(stream_id)
                await viewer.subscribe(stream_id)
                service = service_for(accounts, stream_id)
                alert = {"type": "alert", "streamId": stream_id, "severity": "high", "message": "1"}
                traced = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
                async with login(relay, service, path="/streams/subscribe") as sender:
                    assert (await sender.ask({**alert, **traced}))["code"] == "ALERT_ACCEPTED"
                    for bad in ("", "00-nonsense", "0" * 50_000):
                        again = await sender.ask({**alert, "message": bad[:9], "traceparent": bad})
                        assert again["code"] == "ALERT_ACCEPTED"
                headers = {"Authorization": f"Bearer {service}"}
                answer = await relay.get(
                    "/alerts",
                    "POST",
                    headers={**headers, "traceparent": f"00-{other_trace}-{SPAN_ID}-01"},
                    body=json.dumps({**alert, "message": "2"}).encode(),
                )
                assert answer.status == 200
                seen = await viewer.receive_type("alert")
                assert not {"traceparent", "tracestate"} & seen.keys()
                history = await relay.get(
                    "/alerts", headers={**headers, "traceparent": f"00-{'c' * 32}-{SPAN_ID}-01"}
                )
                assert TRACE_ID.encode() not in history.body
                await until(lambda: len(receiver.taken) == 5)
                await until(
                    lambda: sorted(collector.of(TRACE_ID)) == sorted(collector.of(other_trace))
                    == STEPS and "read alerts" in collector.of("c" * 32)
                )  # fmt: skip
                check_trace(collector, receiver, TRACE_ID, SPAN_ID)
                check_trace(collector, receiver, other_trace, SPAN_ID)
                assert receiver.server.requests[0].headers["tracestate"] == "vendor=1"
                assert all(TRACE_ID.encode() not in each.body for each in receiver.server.requests)
                assert collector.services == {"relay-of-a-test"}
            assert CREDENTIAL not in relay.log


@pytest.mark.slow
async def test_what_waits_is_exported_at_the_end_and_a_collector_that_is_away_costs_nothing(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_id = new_stream_id()
    async with open_collector(monkeypatch) as collector:
        with start_relay(database_url=accounts.url, command=SERVE) as relay:
            await raise_traced(relay, accounts, stream_id, "d" * 32)
        await until(lambda: {"accept alert", "store alert"} <= collector.of("d" * 32).keys())
        collector.server.stop()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        with start_relay(database_url=accounts.url) as relay:
            await raise_traced(relay, accounts, stream_id, "e" * 32)
            await relay.until_logged("the collector takes no traces")
            await raise_traced(relay, accounts, stream_id, "f" * 32)
            relay.end()
            assert relay.log.count("the collector takes no traces") == 1
            assert CREDENTIAL not in relay.log
            assert "v1/traces" not in relay.log  # which the SDK's own lines would name


async def raise_traced(
    relay: RelayProcess, accounts: Accounts, stream_id: str, trace_id: str
) -> None:
    async with login(relay, accounts.session("ann")) as phone:
        await phone.register(stream_id)
        traceparent = f"00-{trace_id}-{SPAN_ID}-01"
        alert = {"type": "alert", "streamId": stream_id, "severity": "low", "message": trace_id[0]}
        reply = await phone.ask({**alert, "traceparent": traceparent})
        assert reply["code"] == "ALERT_ACCEPTED"
