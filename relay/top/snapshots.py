"""Two snapshots of a relay, and the rates between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from attrs import define, evolve, field, frozen

from relay.protocol.reports import FiguresReport, LinkReport, ReadyReport, StatsReport, StreamReport

SUPERSEDED = "superseded"
"""The one drop that is no loss: the viewer got a newer frame instead."""
SHORT_NODE_LENGTH = 8


@frozen
class Snapshot:
    """The reports of a relay at one moment."""

    at: float
    """Seconds, by any clock that all snapshots share."""
    stats: StatsReport
    ready: ReadyReport
    figures: FiguresReport


@frozen
class StreamLine:
    """One stream, as it is shown."""

    stream_id: str
    status: str
    viewers: int
    waiting: int
    place: str | None = None
    """The node that has it, where it comes from and goes to; None where there is one relay."""
    fps: float | None = None
    """Frames per second from the producer; None before the second snapshot."""
    written: float | None = None
    dropped: float | None = None
    """Frames per second, of all viewers together."""


@frozen
class ViewerLine:
    """One connection that consumes streams and whose link is measured, as it is shown."""

    name: str
    """The number of the connection, and the node that it counts for, if several were asked."""
    stream_id: str
    """One of the streams."""
    streams: int
    """How many there are."""
    waiting: int
    """Frames of all of them."""
    layer: str | None
    """The layer that it gets, of one of them."""
    link: LinkReport


@define(eq=False)
class SnapshotDelta:
    """A snapshot with the one before it, if there is one."""

    now: Snapshot
    before: Snapshot | None = None
    _known: Mapping[tuple[str | None, str], StreamReport] = field(init=False)
    """By node and stream."""

    def __attrs_post_init__(self) -> None:
        earlier = [] if self.before is None else self.before.figures.streams
        self._known = {(stream.node, stream.stream_id): stream for stream in earlier}

    @property
    def seconds(self) -> float:
        return 0.0 if self.before is None else self.now.at - self.before.at

    def rate(self, now: int, before: int) -> float | None:
        """The increase per second; None if it is unknown, as after a restart of the relay."""
        if self.seconds <= 0 or now < before:
            return None
        return (now - before) / self.seconds

    @property
    def frames_in(self) -> float | None:
        return self._rate_of(lambda stats: stats.frames_accepted)

    @property
    def frames_out(self) -> float | None:
        return self._rate_of(lambda stats: stats.frames_to_consumers.written)

    @property
    def arrivals(self) -> float | None:
        return self._rate_of(lambda stats: stats.connections_accepted)

    @property
    def alerts(self) -> float | None:
        return self._rate_of(lambda stats: stats.alerts_stored)

    @property
    def in_cluster(self) -> bool:
        """Whether there are several nodes."""
        return bool(self.now.figures.nodes)

    @property
    def of_several(self) -> bool:
        """Whether the figures are those of several nodes."""
        return len(self.now.figures.nodes) > 1

    def nodes(self) -> list[str]:
        """What is known of the nodes, in words; nothing where there is one relay."""
        figures = self.now.figures
        told = [f"{len(figures.nodes)} answer"] if self.of_several or figures.silent else []
        told += [f"{short(each)} is silent" for each in figures.silent]
        told += [
            f"{short(node.node)} cannot reach {short(other.node)}: {other.why}"
            for node in figures.nodes
            for other in node.cannot_reach
        ]
        return told

    def _rate_of(self, counter: Callable[[StatsReport], int]) -> float | None:
        if self.before is None:
            return None
        return self.rate(counter(self.now.stats), counter(self.before.stats))

    def drops(self) -> dict[str, float | None]:
        """Dropped frames per second, by reason."""
        now = self.now.stats.frames_to_consumers.dropped
        before = self.before.stats.frames_to_consumers.dropped if self.before else None
        return {
            reason: None if before is None else self.rate(count, before.get(reason, 0))
            for reason, count in {SUPERSEDED: 0, **now}.items()
        }

    def ages(self) -> tuple[float, float] | None:
        """The median and the 99th percentile of the ages, in seconds, at which frames were written
        between the snapshots; None if there were no frames."""
        now = self.now.stats.frame_age
        before = self.before.stats.frame_age if self.before else {}
        counts = sorted(
            (_bound(name), max(0, count - before.get(name, 0))) for name, count in now.items()
        )
        total = sum(count for _, count in counts)
        if self.before is None or not total:
            return None
        return _percentile(counts, 0.5 * total), _percentile(counts, 0.99 * total)

    def streams(self) -> list[StreamLine]:
        """All streams, the busiest first."""
        lines = [self._line(stream) for stream in self.now.figures.streams]
        return sorted(
            lines, key=lambda line: (-(line.fps or 0), -line.viewers, line.status, line.stream_id)
        )

    def viewers(self) -> list[ViewerLine]:
        """All connections whose links are measured, the slowest links first."""
        lines: dict[tuple[str | None, int], ViewerLine] = {}
        for stream in self.now.figures.streams:
            for each in stream.consumers:
                if each.link is not None:
                    key = (stream.node, each.connection)
                    known = lines.get(key)
                    streams, waiting = (0, 0) if known is None else (known.streams, known.waiting)
                    lines[key] = ViewerLine(
                        self._name_of(stream, each.connection),
                        stream.stream_id,
                        streams + 1,
                        waiting + each.waiting,
                        each.layer,
                        each.link,
                    )
        return [lines[key] for key in sorted(lines, key=lambda key: (*_slowness(lines[key]), key))]

    def _name_of(self, stream: StreamReport, connection: int) -> str:
        if self.of_several and stream.node is not None:
            return f"{short(stream.node)}/{connection}"
        return f"#{connection}"

    def _place_of(self, stream: StreamReport) -> str | None:
        if not self.in_cluster:
            return None
        words = [short(stream.node)] if self.of_several and stream.node is not None else []
        if stream.carried_from is not None:
            words.append(f"from {short(stream.carried_from)}")
        if stream.edges:
            words.append(f"to {len(stream.edges)}")
        return " ".join(words) or "here"

    def _line(self, stream: StreamReport) -> StreamLine:
        viewers = stream.consumers
        waiting = sum(each.waiting for each in viewers)
        line = StreamLine(
            stream.stream_id, stream.status, len(viewers), waiting, self._place_of(stream)
        )
        before = self._known.get((stream.node, stream.stream_id))
        if before is None or before.epoch != stream.epoch:
            return line
        return evolve(
            line,
            fps=self.rate(stream.frames, before.frames),
            written=self.rate(_written(stream), _written(before)),
            dropped=self.rate(_dropped(stream), _dropped(before)),
        )


def short(node: str) -> str:
    """The first characters of a node's id, which tell it from the others."""
    return node[:SHORT_NODE_LENGTH]


def _slowness(viewer: ViewerLine) -> tuple[bool, float, float]:
    """Sorts viewers: by bandwidth, then those of unknown bandwidth, then those on calm links."""
    link = viewer.link
    bandwidth = inf if link.bytes_per_second is None else link.bytes_per_second
    return (link.calm, bandwidth, -(link.round_trip_seconds or 0.0))


def _written(stream: StreamReport) -> int:
    return sum(each.written for each in stream.consumers)


def _dropped(stream: StreamReport) -> int:
    return sum(sum(each.dropped.values()) for each in stream.consumers)


def _bound(name: str) -> float:
    try:
        bound = float(name)
    except ValueError:
        return inf
    return bound if bound >= 0 else inf  # also for NaN


def _percentile(counts: list[tuple[float, int]], wanted: float) -> float:
    """The age below which `wanted` frames are, if ages lie evenly within each bucket."""
    seen, below = 0, 0.0
    for bound, count in counts:
        if count and seen + count >= wanted:
            upper = 2 * below if bound == inf else bound
            return below + (upper - below) * (wanted - seen) / count
        seen += count
        below = below if bound == inf else bound
    return below
