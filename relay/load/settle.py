"""What can only be said when all have left: what never came. Floor 6, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from attrs import frozen

from relay.load.content import missing_of
from relay.load.figures import Book
from relay.load.stage import Raised, Sent, Window

SERVED_AFTER = 2.0
"""Seconds within which a viewer of a stream that flows has to see something."""


def settle(
    book: Book,
    windows: Collection[Window],
    sent: Collection[Sent],
    raised: Collection[Raised],
    *,
    end: float,
    grace: float,
) -> None:
    """Add to the book what is missing at the ends of what each client saw."""
    by_stream: dict[str, list[Sent]] = defaultdict(list)
    for each in sent:
        by_stream[each.stream].append(each)
    alerts: dict[str, dict[str, list[Raised]]] = defaultdict(lambda: defaultdict(list))
    for alert in raised:
        alerts[alert.stream][alert.sender].append(alert)
    for window in windows:
        counts = book.group(window.group).counts
        if window.watched:
            _settle_frames(counts, window, by_stream[window.stream], end)
        for sender, of_sender in alerts[window.stream].items():
            counts["alerts.lost"] += _lost_alerts(window, sender, of_sender, grace)


def _settle_frames(counts: Any, window: Window, sent: list[Sent], end: float) -> None:
    stayed = window.end >= end
    if window.first is None:
        flowing = [
            each
            for each in sent
            if min(each.end, window.end) - max(each.start, window.start) > SERVED_AFTER
        ]
        counts["unserved"] += bool(flowing)
        for each in flowing:
            counts["missed"] += _numbers_in(each, window)
    elif stayed and window.last is not None and sent:
        counts["missed"] += max(0, max(each.last for each in sent) - window.last)


def _numbers_in(sent: Sent, window: Window) -> int:
    """About how many of these frames were due in a window."""
    if sent.end <= sent.start:
        return sent.last - sent.first + 1
    share = (min(sent.end, window.end) - max(sent.start, window.start)) / (sent.end - sent.start)
    return round(share * (sent.last - sent.first + 1))


def _lost_alerts(window: Window, sender: str, raised: list[Raised], grace: float) -> int:
    expected = [
        alert.number
        for alert in raised
        if alert.due > window.start and alert.accepted + grace / 2 < window.end
    ]
    if not expected:
        return 0
    got = window.alerts.get(sender, [])
    if len(expected) == expected[-1] - expected[0] + 1:
        return missing_of(got, expected[0], expected[-1])
    return sum(missing_of(got, number, number) for number in expected)


@frozen
class Comparison:
    """A line of the relay's ledger beside what the clients saw."""

    what: str
    relay: int
    clients: str
    agrees: bool


def compare_ledger(
    before: Mapping[str, Any], after: Mapping[str, Any], book: Book
) -> list[Comparison]:
    """The relay's own figures against the clients'."""
    total = book.total().counts
    lines = []

    def line(what: str, relay: int, least: int, most: int | None) -> None:
        clients = (
            f"{least}" if most == least else f"{least} to {most}" if most else f"{least} or more"
        )
        agrees = relay >= least and (most is None or relay <= most)
        lines.append(Comparison(what, relay, clients, agrees))

    accepted = _less(before, after, "frames_accepted")
    # What was under way when a phone was torn off may or may not have come.
    line(
        "frames accepted",
        accepted,
        0 if _torn(book) else total["sent"],
        total["sent"] + total["unsure"],
    )
    consumers = after.get("frames_to_consumers", {}), before.get("frames_to_consumers", {})
    written = _less(consumers[1], consumers[0], "written")
    line("frames written to viewers", written, total["received"] - total["doubled"], None)
    dropped = sum(consumers[0].get("dropped", {}).values()) - sum(
        consumers[1].get("dropped", {}).values()
    )
    offered = _less(consumers[1], consumers[0], "accepted")
    waiting = consumers[0].get("waiting", 0)
    line(
        "frames offered: written, dropped, waiting",
        offered,
        written + dropped + waiting,
        written + dropped + waiting,
    )
    stored = _less(before, after, "alerts_stored")
    line("alerts stored", stored, total["alerts.accepted"], total["alerts.sent"])
    delivered = _less(before, after, "alerts_delivered")
    line("alerts delivered", delivered, total["alerts.received"], None)
    return lines


def _torn(book: Book) -> bool:
    return any(figures.errors for figures in book.groups.values())


def _less(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> int:
    return int(after.get(name, 0)) - int(before.get(name, 0))
