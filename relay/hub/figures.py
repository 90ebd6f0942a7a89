"""Makes the figures of all streams in steps, since there may be many of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio
from attrs import frozen

from relay.hub.hub import Hub
from relay.hub.stream_report import report_of

FIGURES_SLICE = 200
"""Streams and consumers in the figures before others have a turn."""


@frozen
class EncodedFigures:
    """The streams of one node, each a `StreamReport` as JSON."""

    streams: Sequence[bytes]
    omitted: int
    """Streams that were left out."""


async def encode_figures(
    hub: Hub, node: str | None = None, max_bytes: int | None = None
) -> EncodedFigures:
    """The figures of the streams of a hub, as many as have room in `max_bytes`.

    Others have a turn between streams. In a cluster, `node` is this node.
    """
    reports: list[bytes] = []
    size = total = omitted = 0
    for stream in hub.streams():
        report = report_of(stream, node)
        encoded = msgspec.json.encode(report)
        total += len(encoded) + 1
        if max_bytes is None or total <= max_bytes:
            reports.append(encoded)
        else:
            total -= len(encoded) + 1
            omitted += 1
        size += 1 + len(report.consumers) + len(report.edges)
        if size >= FIGURES_SLICE:
            size = 0
            await trio.lowlevel.checkpoint()
    return EncodedFigures(reports, omitted)
