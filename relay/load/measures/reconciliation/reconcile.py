"""Compares what was sent with what clients saw, once all have left. No I/O.

Gaps between two frames are counted as they are seen. This counts what is missing before the first
frame, after the last one, and all alerts that never arrived.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from relay.load.measures.reconciliation.integrity import count_missing
from relay.load.measures.reconciliation.observations import (
    AcknowledgedAlert,
    Observations,
    SentFrames,
    StreamObservation,
)
from relay.load.measures.stats import RunStats

UNSERVED_TIMEOUT = 2.0
"""Seconds within which a viewer must receive the first frame of a stream that is being sent."""


def reconcile(run_stats: RunStats, observations: Observations, *, end: float, grace: float) -> None:
    """Add the missing frames and alerts to the statistics. `end` and `grace` are in seconds."""
    by_stream: dict[str, list[SentFrames]] = defaultdict(list)
    for sent in observations.sent:
        by_stream[sent.stream].append(sent)
    alerts: dict[str, dict[str, list[AcknowledgedAlert]]] = defaultdict(lambda: defaultdict(list))
    for alert in observations.alerts:
        alerts[alert.stream][alert.sender].append(alert)
    for seen in observations.streams:
        counts: Counter[str] = Counter()
        if seen.watched:
            _count_missed_frames(counts, seen, by_stream[seen.stream], end)
            counts["watches"] += 1
            counts["watches.missed"] += seen.missed + counts["missed"] > 0
        for sender, of_sender in alerts[seen.stream].items():
            counts["alerts.lost"] += _lost_alerts(seen, sender, of_sender, grace)
        run_stats.group(seen.group).counts.update(counts)
        if seen.target:
            run_stats.target(seen.target).counts.update(counts)


def _count_missed_frames(
    counts: Counter[str], seen: StreamObservation, sent: Sequence[SentFrames], end: float
) -> None:
    if seen.first is None:
        overlapping = [each for each in sent if _overlap(each, seen) > UNSERVED_TIMEOUT]
        counts["unserved"] += bool(overlapping)
        for each in overlapping:
            counts["missed"] += _frames_during(each, seen)
    elif seen.end >= end and seen.last is not None and sent:
        counts["missed"] += max(0, max(each.last for each in sent) - seen.last)


def _overlap(sent: SentFrames, seen: StreamObservation) -> float:
    """Seconds in which frames were sent while the client watched."""
    return min(sent.end, seen.end) - max(sent.start, seen.start)


def _frames_during(sent: SentFrames, seen: StreamObservation) -> int:
    """Estimate how many of these frames were due while the client watched."""
    frames = sent.last - sent.first + 1
    if sent.end <= sent.start:
        return frames
    return round(_overlap(sent, seen) / (sent.end - sent.start) * frames)


def _lost_alerts(
    seen: StreamObservation, sender: str, alerts: Sequence[AcknowledgedAlert], grace: float
) -> int:
    expected = [
        alert.number
        for alert in alerts
        if alert.due > seen.start and alert.accepted + grace / 2 < seen.end
    ]
    if not expected:
        return 0
    received = seen.alerts.get(sender, [])
    if len(expected) == expected[-1] - expected[0] + 1:
        return count_missing(received, expected[0], expected[-1])
    return sum(count_missing(received, number, number) for number in expected)
