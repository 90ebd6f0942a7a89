"""The relay's own totals, and how they agree with what the clients saw. Floor 6, no I/O."""

from __future__ import annotations

import msgspec
from attrs import frozen

from relay.load.figures import Book


class Frames(msgspec.Struct, frozen=True):
    """Offered to viewers: what became of each."""

    accepted: int
    written: int
    waiting: int
    dropped: dict[str, int]


class Totals(msgspec.Struct, frozen=True):
    """The part of a relay's `/stats` that a load test looks at."""

    frames_accepted: int
    frames_to_consumers: Frames
    alerts_stored: int
    alerts_delivered: int


read_totals = msgspec.json.Decoder(Totals).decode
"""`msgspec.DecodeError` where they are none."""


@frozen
class Comparison:
    """A line of the relay's ledger beside what the clients saw."""

    what: str
    relay: int
    clients: str
    agrees: bool


def compare_ledger(before: Totals, after: Totals, book: Book) -> list[Comparison]:
    """The relay's own figures against the clients'."""
    total = book.total().counts
    lines = []

    def line(what: str, relay: int, least: int, most: int | None) -> None:
        clients = (
            f"{least}" if most == least else f"{least} to {most}" if most else f"{least} or more"
        )
        agrees = relay >= least and (most is None or relay <= most)
        lines.append(Comparison(what, relay, clients, agrees))

    # What was under way when a phone was torn off may or may not have come.
    torn = any(figures.errors for figures in book.groups.values())
    line(
        "frames accepted",
        after.frames_accepted - before.frames_accepted,
        0 if torn else total["sent"],
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
