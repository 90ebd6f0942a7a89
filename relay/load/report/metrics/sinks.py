"""Sends the figures of a run to monitoring systems while it runs.

A sink never fails or delays a run: what it cannot take in time is dropped, and a failure is said
once. All counters count from the start of the run, so what was dropped is in the next request.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import trio
from attrs import define, evolve, field, frozen

from relay.errors import ConfigError
from relay.load.measures.results import Second
from relay.load.measures.stats import plain
from relay.load.report.metrics.otlp import OTLP_HEADERS, OTLP_PATH, export_request
from relay.load.report.metrics.remote_write import (
    REMOTE_WRITE_HEADERS,
    REMOTE_WRITE_PATH,
    STALE,
    write_request,
)
from relay.load.report.metrics.samples import Labels, MetricSample, MetricTotals
from relay.outgoing.http_client import HttpClient, RequestFailed, open_http_client

MAX_WAITING_BATCHES = 10
"""Batches, one each second, that wait for a sink; what comes then is dropped."""
SINK_TIMEOUT = 5.0
SINK_FLUSH_TIMEOUT = 2.0
"""Seconds after the run in which a sink gets the rest."""
MAX_SINK_ANSWER_BYTES = 64 * 1024
MAX_SHOWN_ANSWER = 200

Batch = tuple[Sequence[MetricSample], float]
"""Samples and their time, in seconds since the Unix epoch."""
Encode = Callable[[Sequence[MetricSample], float], bytes]
"""Makes the body of a request of samples and their time."""


@frozen
class SinkAddress:
    """Where to send metrics."""

    url: str = field(repr=False)
    """May have a user name and a password."""
    shown: str
    """The same without them."""

    @classmethod
    def of(cls, url: str, option: str, default_path: str) -> Self:
        """Read an option; `ConfigError`."""
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in {"http", "https"} and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            is_url = False
        if not is_url:
            raise ConfigError(
                f"{option}: expected an address such as http://localhost:9090{default_path}"
            )
        path = default_path if parts.path in {"", "/"} else parts.path
        place = parts.netloc.rpartition("@")[2]
        whole = (parts.scheme, parts.netloc, path, parts.query, "")
        return cls(urlunsplit(whole), urlunsplit((parts.scheme, place, path, "", "")))


@frozen
class SinkAddresses:
    """What the command line says."""

    remote_write: SinkAddress | None = None
    otlp: SinkAddress | None = None

    @classmethod
    def of(cls, remote_write: str | None, otlp: str | None) -> Self:
        """Read the options; `ConfigError`."""
        return cls(
            None
            if remote_write is None
            else SinkAddress.of(remote_write, "--remote-write", REMOTE_WRITE_PATH),
            None if otlp is None else SinkAddress.of(otlp, "--otlp", OTLP_PATH),
        )


@define(eq=False)
class MetricSink:
    """Sends samples to one address."""

    address: SinkAddress
    _encode: Encode
    _headers: Mapping[str, str]
    _on_failure: Callable[[str], None]
    _http: HttpClient
    ends_series: bool
    """Whether the address is told that series have ended, so that they do so at once."""
    _outlet: trio.MemorySendChannel[Batch] = field(init=False)
    _waiting: trio.MemoryReceiveChannel[Batch] = field(init=False)
    is_done: bool = False
    _has_failed: bool = False
    _is_failing: bool = False
    _has_ended: bool = False

    def __attrs_post_init__(self) -> None:
        self._outlet, self._waiting = trio.open_memory_channel[Batch](MAX_WAITING_BATCHES)

    def offer(self, batch: Batch) -> None:
        """Take samples; this never waits."""
        try:
            self._outlet.send_nowait(batch)
        except trio.WouldBlock:
            self.fail("it is too slow")

    def end(self) -> None:
        self._has_ended = True
        self._outlet.close()

    async def run(self) -> None:
        """Send until the end; what waits then is sent if the sink works."""
        async for samples, at in self._waiting:
            if self._has_ended and self._is_failing:
                break
            with trio.move_on_after(SINK_TIMEOUT) as sending:
                await self._send(samples, at)
            if sending.cancelled_caught:
                self.fail(f"no answer within {SINK_TIMEOUT:g} s")
        self.is_done = True

    async def _send(self, samples: Sequence[MetricSample], at: float) -> None:
        try:
            answer = await self._http.post(
                self.address.url,
                self._encode(samples, at),
                headers=self._headers,
                max_bytes=MAX_SINK_ANSWER_BYTES,
            )
        except RequestFailed as failure:
            self.fail(str(failure))
            return
        self._is_failing = False
        if answer.status // 100 != 2:
            words = plain(answer.body.decode(errors="replace"))[:MAX_SHOWN_ANSWER]
            self.fail(f"status {answer.status}" + (f": {words}" if words else ""))

    def fail(self, why: str) -> None:
        """Say why, the first time."""
        self._is_failing = True
        if not self._has_failed:
            self._has_failed = True
            self._on_failure(f"metrics do not reach {self.address.shown}: {why}")


@define(eq=False)
class MetricFeed:
    """Gives the seconds of a run to all sinks."""

    sinks: list[MetricSink] = field(factory=list)
    _totals: MetricTotals = field(factory=MetricTotals)
    _last: Sequence[MetricSample] = ()

    def take(self, second: Second) -> None:
        """Offer what happened in a second; this never waits."""
        if self.sinks:
            self._last = self._totals.add(second)
            for sink in self.sinks:
                sink.offer((self._last, time.time()))

    def end(self) -> None:
        for sink in self.sinks:
            if sink.ends_series:
                sink.offer(([evolve(each, value=STALE) for each in self._last], time.time()))
            sink.end()

    def note_unfinished(self) -> None:
        for sink in self.sinks:
            if not sink.is_done:
                sink.fail(f"no answer within {SINK_FLUSH_TIMEOUT:g} s after the run")


@asynccontextmanager
async def open_metric_feed(
    addresses: SinkAddresses, run: Labels, on_failure: Callable[[str], None]
) -> AsyncIterator[MetricFeed]:
    """Open the sinks of a run; `run` are labels of all samples.

    At the end, sinks have `SINK_FLUSH_TIMEOUT` for what waits.
    """
    feed = MetricFeed()
    kinds = (
        (addresses.remote_write, partial(write_request, run=run), REMOTE_WRITE_HEADERS),
        (addresses.otlp, partial(export_request, start=time.time(), run=run), OTLP_HEADERS),
    )
    if not any(address for address, _, _ in kinds):
        yield feed
        return
    async with open_http_client() as http, trio.open_nursery() as nursery:
        for address, encode, headers in kinds:
            if address is not None:
                sink = MetricSink(
                    address, encode, headers, on_failure, http,
                    ends_series=address is addresses.remote_write,
                )  # fmt: skip
                feed.sinks.append(sink)
                nursery.start_soon(sink.run)
        yield feed
        feed.end()
        nursery.cancel_scope.deadline = trio.current_time() + SINK_FLUSH_TIMEOUT
    feed.note_unfinished()
