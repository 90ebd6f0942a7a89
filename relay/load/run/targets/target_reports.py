"""What a relay under test says about itself over HTTP."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec
import trio
from attrs import evolve, field, frozen

from relay.errors import RelayError
from relay.load.actors.network.endpoint import is_encrypted
from relay.load.measures.process_usage import ProcessUsage
from relay.load.measures.reconciliation.ledger import (
    HopTotals,
    TargetTotals,
    read_figures,
    read_totals,
)
from relay.outgoing.http_client import HttpClient, RequestFailed
from relay.protocol.reports import FiguresReport

T = TypeVar("T")
REPORT_TIMEOUT = 5.0
MAX_STATS_BYTES = 1 << 20
MAX_METRICS_BYTES = 4 << 20
MAX_FIGURES_BYTES = 64 << 20
_SAMPLE = re.compile(
    r"^(relay_hop_frames_total|process_cpu_seconds_total|process_resident_memory_bytes"
    r"|process_cpu_wait_seconds_total"
    r"|relay_verification_seconds_sum|relay_verification_seconds_count|relay_verifications_total)"
    r"(?:\{([^}]*)\})? ([0-9.eE+-]+)$",
    re.MULTILINE,
)


class TargetFailed(RelayError):
    """A relay cannot be started or reached."""


@frozen
class MetricsReading:
    """What is of use here in `/metrics`."""

    hop: HopTotals = field(factory=HopTotals)
    usage: ProcessUsage | None = None
    """That of all workers together; None where the relay does not know it."""
    has_workers: bool = False
    verification_seconds: float = 0.0
    """Of all verifications of tokens."""
    verifications: float = 0.0
    """That got an answer."""
    verifications_begun: float = 0.0
    """Those that got none, too."""

    def at(self, read_at: float) -> MetricsReading:
        """The same, with when it was read."""
        usage = None if self.usage is None else evolve(self.usage, read_at=read_at)
        return evolve(self, usage=usage)

    def verification_since(self, before: MetricsReading) -> float | None:
        """The mean seconds that a verification has taken since then; None if there was none."""
        number = self.verifications - before.verifications
        seconds = self.verification_seconds - before.verification_seconds
        return seconds / number if number > 0 else None

    def unverified_since(self, before: MetricsReading) -> float:
        """The part of the verifications begun since then that have got no answer."""
        begun = self.verifications_begun - before.verifications_begun
        answered = self.verifications - before.verifications
        return max(0.0, 1 - answered / begun) if begun > 0 else 0.0


def read_metrics(text: str) -> MetricsReading:
    """Read Prometheus' text format; `ValueError` or `OverflowError` for numbers that are none."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, labels, value in _SAMPLE.findall(text):
        found[name][labels] = float(value)
    sums = {name: sum(by_labels.values()) for name, by_labels in found.items()}
    if not all(map(math.isfinite, sums.values())):
        raise ValueError("a number is infinite")
    cpu = found["process_cpu_seconds_total"]
    has_workers = any("worker=" in labels for labels in cpu)
    usage = None
    if memory := int(sums.get("process_resident_memory_bytes", 0)):
        by_process = cpu if has_workers else {}
        waited = found["process_cpu_wait_seconds_total"]
        usage = ProcessUsage(sum(cpu.values()), memory, by_process, waited=waited)
    return MetricsReading(
        _read_hop(found["relay_hop_frames_total"]),
        usage,
        has_workers,
        sums.get("relay_verification_seconds_sum", 0.0),
        sums.get("relay_verification_seconds_count", 0.0),
        sums.get("relay_verifications_total", 0.0),
    )


def _read_hop(samples: Mapping[str, float]) -> HopTotals:
    hop: dict[str, int] = {}
    for labels, value in samples.items():
        outcome = re.search(r'outcome="(written|dropped|received|lost)"', labels)
        if outcome is not None:
            hop[outcome[1]] = int(value)
    return HopTotals(**hop)


@frozen
class TargetReports:
    """Reads the reports of one relay; `TargetFailed`."""

    url: str
    _name: str
    """"" if it is the only one."""
    _http: HttpClient = field(repr=False)

    async def totals(self) -> TargetTotals:
        """All that it has counted."""
        stats = await self._read("/stats", MAX_STATS_BYTES)
        metrics = await self.metrics()
        try:
            return TargetTotals.of(read_totals(stats), metrics.hop)
        except msgspec.DecodeError as error:
            raise self._failed("/stats", str(error)) from None

    async def verification_queries(self) -> int:
        """How many queries it has made to verify tokens."""
        try:
            return read_totals(await self._read("/stats", MAX_STATS_BYTES)).verification_queries
        except msgspec.DecodeError as error:
            raise self._failed("/stats", str(error)) from None

    async def metrics(self) -> MetricsReading:
        body = await self._read("/metrics", MAX_METRICS_BYTES)
        try:
            return read_metrics(body.decode(errors="replace"))
        except (ValueError, OverflowError):
            raise self._failed("/metrics", "it has numbers that are none") from None

    async def figures(self, token: str) -> FiguresReport:
        """What it counts for each stream, for an operator."""
        url = self._url("/figures")
        get = self._http.get_any(url, token=token, max_bytes=MAX_FIGURES_BYTES)
        answer = await self._in_time("/figures", get)
        try:
            if answer.status != 200:
                raise self._failed("/figures", f"status {answer.status}")
            return read_figures(answer.body)
        except msgspec.DecodeError as error:
            raise self._failed("/figures", str(error)) from None

    async def _read(self, path: str, max_bytes: int) -> bytes:
        return await self._in_time(path, self._http.get(self._url(path), max_bytes=max_bytes))

    async def _in_time(self, path: str, answer: Awaitable[T]) -> T:
        try:
            with trio.fail_after(REPORT_TIMEOUT):
                return await answer
        except trio.TooSlowError:
            raise self._failed(path, f"no answer within {REPORT_TIMEOUT:g} s") from None
        except RequestFailed as error:
            raise self._failed(path, str(error)) from None

    def _failed(self, path: str, why: str) -> TargetFailed:
        whose = f"{path} of the target {self._name}" if self._name else f"the relay's {path}"
        return TargetFailed(f"cannot read {whose}: {why}")

    def _url(self, path: str) -> str:
        scheme = "https" if is_encrypted(self.url) else "http"
        return urlunsplit((scheme, urlsplit(self.url).netloc, path, "", ""))
