"""Compares the relays' own totals with what the clients saw. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Self

import msgspec
from attrs import asdict, define, field, frozen

from relay.load.measures.reconciliation.observations import StreamObservation
from relay.load.measures.stats import GroupStats
from relay.protocol.reports import FiguresReport, StatsReport

read_totals = msgspec.json.Decoder(StatsReport).decode
"""Decodes `/stats`; `msgspec.DecodeError`."""
read_figures = msgspec.json.Decoder(FiguresReport).decode
"""Decodes `/figures`; `msgspec.DecodeError`."""


@frozen
class LedgerLine:
    """One total of a relay, and what the clients saw."""

    what: str
    relay: int
    clients: str
    agrees: bool
    target: str = ""
    """"" for the only one, or for all together."""


@frozen(kw_only=True)
class HopTotals:
    """What crossed between nodes, as one target counts it over all its streams."""

    written: int = 0
    """Frames for other nodes, like the next."""
    dropped: int = 0
    received: int = 0
    """Frames of other nodes, like the next."""
    lost: int = 0


@frozen(kw_only=True)
class TargetTotals:
    """What a target has counted."""

    accepted: int = 0
    """Frames from phones."""
    offered: int = 0
    """Frames for viewers, like those that follow."""
    written: int = 0
    dropped: int = 0
    waiting: int = 0
    stored: int = 0
    """Alerts, like the next."""
    delivered: int = 0
    hop: HopTotals = field(factory=HopTotals)

    @classmethod
    def of(cls, stats: StatsReport, hop: HopTotals) -> Self:
        frames = stats.frames_to_consumers
        return cls(
            accepted=stats.frames_accepted,
            offered=frames.accepted,
            written=frames.written,
            dropped=sum(frames.dropped.values()),
            waiting=frames.waiting,
            stored=stats.alerts_stored,
            delivered=stats.alerts_delivered,
            hop=hop,
        )

    def as_counts(self) -> dict[str, int]:
        """By name, what crossed between nodes as `hop.NAME`."""
        counts = asdict(self, filter=lambda attribute, _: attribute.name != "hop")
        return counts | {f"hop.{name}": number for name, number in asdict(self.hop).items()}

    def plus(self, other: TargetTotals, sign: int = 1) -> TargetTotals:
        """The sum of both; with -1 as the sign, what has come since the other."""
        theirs = other.as_counts()
        sums = {name: number + sign * theirs[name] for name, number in self.as_counts().items()}
        hop = {name: sums.pop(f"hop.{name}") for name in asdict(self.hop)}
        return TargetTotals(**sums, hop=HopTotals(**hop))


@define(eq=False)
class LostFrames:
    """What the nodes of a target say they have lost of each stream that they carry.

    A node counts anew with each link, so its figures are read again and again.
    """

    _before: dict[tuple[str, str], int] = field(factory=dict)
    """By node and stream: what was lost over links that have ended."""
    _now: dict[tuple[str, str], tuple[int, int]] = field(factory=dict)
    """Received and lost over the present link."""

    def note(self, figures: FiguresReport) -> None:
        for stream in figures.streams:
            if stream.received is None:
                continue
            key = (stream.node or "", stream.stream_id)
            received, lost = self._now.get(key, (0, 0))
            if stream.received < received:
                self._before[key] = self._before.get(key, 0) + lost
            self._now[key] = (stream.received, stream.lost or 0)

    def by_stream(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, stream), (_, lost) in self._now.items():
            found[stream] += lost
        for (_, stream), lost in self._before.items():
            found[stream] += lost
        return found


@frozen(kw_only=True)
class TargetLedger:
    """What one target says of the run."""

    target: str
    totals: TargetTotals
    """Since the start of the run."""
    lost: LostFrames = field(factory=LostFrames)
    is_complete: bool = True
    """Whether all is in it; nobody knows what a relay counted last that has ended."""


def viewers_by_stream(observations: Iterable[StreamObservation]) -> dict[str, Counter[str]]:
    """How many viewers each stream had at each target: by target, then by stream."""
    found: dict[str, Counter[str]] = {}
    for seen in observations:
        if seen.watched:
            found.setdefault(seen.target, Counter())[seen.stream] += 1
    return found


def compare_ledger(
    ledger: TargetLedger, stats: GroupStats, viewers: Mapping[str, int]
) -> list[LedgerLine]:
    """Compare a target's totals with what its clients saw, of whom each stream had so many."""
    totals, counts = ledger.totals, stats.counts
    lines = []

    def line(what: str, relay: int, least: int, most: int | None) -> None:
        clients = (
            f"{least}"
            if most == least
            else f"{least} or more"
            if most is None
            else f"{least} to {most}"
        )
        agrees = relay >= least and (most is None or relay <= most)
        lines.append(LedgerLine(what, relay, clients, agrees, ledger.target))

    is_complete = ledger.is_complete
    # Frames in flight when a connection broke may or may not have arrived.
    least = 0 if stats.errors or not is_complete else counts["sent"]
    line("frames accepted", totals.accepted, least, counts["sent"] + counts["unsure"])
    least = counts["alerts.accepted"] if is_complete else 0
    line("alerts stored", totals.stored, least, counts["alerts.sent"])
    if not is_complete:
        return lines
    line("frames written to viewers", totals.written, counts["received"] - counts["doubled"], None)
    accounted = totals.written + totals.dropped + totals.waiting
    line("frames offered: written, dropped, waiting", totals.offered, accounted, accounted)
    line("alerts delivered", totals.delivered, counts["alerts.received"], None)
    explained = totals.dropped + lost_at_viewers(ledger, viewers)
    line("gaps of viewers: dropped here, lost on the way here", explained, counts["skipped"], None)
    return lines


def lost_at_viewers(ledger: TargetLedger, viewers: Mapping[str, int]) -> int:
    """How many frames viewers may miss since they were lost between nodes: each of its viewers
    misses a frame of a stream. What no reading of the figures showed may be of any stream."""
    known = ledger.lost.by_stream()
    found = sum(number * viewers.get(stream, 0) for stream, number in known.items())
    unknown = ledger.totals.hop.lost - sum(known.values())
    return found + max(0, unknown) * max(viewers.values(), default=0)


def compare_hops(ledgers: Iterable[TargetLedger]) -> LedgerLine:
    """Compare what nodes say that they got from others with what these have sent.

    What they lost has no such bound: a frame that came while there was no link was not sent.
    """
    hops = [each.totals.hop for each in ledgers]
    written, received = sum(each.written for each in hops), sum(each.received for each in hops)
    return LedgerLine(
        *("frames between nodes: received, of those written", received),
        *(f"{written} or less", received <= written),
    )
