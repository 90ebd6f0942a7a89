"""What can only be said when all have left: what never came. Floor 6, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

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
