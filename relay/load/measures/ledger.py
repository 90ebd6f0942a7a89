"""Compares the relay's own totals with what the clients saw. No I/O."""

from __future__ import annotations

import msgspec
from attrs import frozen

from relay.load.measures.stats import RunStats
from relay.protocol.reports import StatsReport

read_totals = msgspec.json.Decoder(StatsReport).decode
"""Decodes `/stats`; `msgspec.DecodeError`."""


@frozen
class LedgerLine:
    """One total of the relay, and what the clients saw."""

    what: str
    relay: int
    clients: str
    agrees: bool


def compare_ledger(
    before: StatsReport, after: StatsReport, run_stats: RunStats
) -> list[LedgerLine]:
    """Compare the relay's totals with the clients' statistics."""
    total = run_stats.total().counts
    lines = []

    def line(what: str, relay: int, least: int, most: int | None) -> None:
        clients = (
            f"{least}" if most == least else f"{least} to {most}" if most else f"{least} or more"
        )
        agrees = relay >= least and (most is None or relay <= most)
        lines.append(LedgerLine(what, relay, clients, agrees))

    # Frames in flight when a connection broke may or may not have arrived.
    cut = any(stats.errors for stats in run_stats.groups.values())
    line(
        "frames accepted",
        after.frames_accepted - before.frames_accepted,
        0 if cut else total["sent"],
        total["sent"] + total["unsure"],
    )
    was, now = before.frames_to_consumers, after.frames_to_consumers
    written = now.written - was.written
    line("frames written to viewers", written, total["received"] - total["doubled"], None)
    accounted = written + sum(now.dropped.values()) - sum(was.dropped.values()) + now.waiting
    offered = now.accepted - was.accepted
    line("frames offered: written, dropped, waiting", offered, accounted, accounted)
    stored = after.alerts_stored - before.alerts_stored
    line("alerts stored", stored, total["alerts.accepted"], total["alerts.sent"])
    delivered = after.alerts_delivered - before.alerts_delivered
    line("alerts delivered", delivered, total["alerts.received"], None)
    return lines
