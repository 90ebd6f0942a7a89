"""How large a cluster can get, reckoned from what one relay was measured to cost.

    python scripts/cluster_model.py [--viewer US] [--crossing US] [--claim US] [--notify US] ...

A viewer (2 streams with 60 each), a crossing (64 KiB, the dearest without TLS) and a claim are as
`scripts/figures.py hop` and `directory` measured them on two cores; what a phone's frame and a
notification take is estimated. Give your own. What is printed is arithmetic: nobody ran a cluster
of this size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from attrs import frozen
from rich.console import Console
from rich.table import Table

US = 1e-6
GBIT = 1e9 / 8
MAX_DIRECT_EDGES = 32
"""As in relay/cluster/streams/origin.py."""


@frozen
class Costs:
    """What was measured."""

    viewer: float
    """Seconds of a core for each frame to one viewer, with a large audience."""
    ingest: float
    """The same for a frame from a phone."""
    crossing: float
    """The same for a frame from node to node, both sides."""
    claim: float
    """Seconds of the database for a claim, in batches."""
    notify: float
    """Seconds of the database for a notification to one listener."""
    link: float
    """Bytes a second that a node's network carries."""


@frozen
class Use:
    """What a cluster is asked to do."""

    name: str
    streams: int
    viewers: int
    """Of each stream."""
    size: int
    """Bytes of a frame."""
    rate: float
    """Frames a second of a stream."""
    placed: float
    """The part of the viewers who are on the node of their phone."""
    lasts: float = 600.0
    """Seconds that a stream lives."""


USES = (
    Use("one viral stream, spread", 1, 10_000_000, 64 << 10, 20.0, 0.0, 3600.0),
    Use("the same, small pictures", 1, 10_000_000, 16 << 10, 10.0, 0.0, 3600.0),
    Use("a million phones, at random", 1_000_000, 3, 16 << 10, 10.0, 0.0),
    Use("a million phones, 99% placed", 1_000_000, 3, 16 << 10, 10.0, 0.99),
    Use("meetings: 100,000 x 20, placed", 100_000, 20, 32 << 10, 15.0, 0.95),
)


def rows(use: Use, nodes: int, costs: Costs) -> Iterator[tuple[str, ...]]:
    """The figures of one use, with this many nodes."""
    frames = use.streams * use.rate
    shown = frames * use.viewers
    away = use.viewers * (1 - use.placed)
    # Each other node with viewers of a stream gets it once.
    edges = use.streams * (nodes - 1) * (1 - (1 - 1 / nodes) ** away) if nodes > 1 else 0.0
    crossings = edges * use.rate
    cores = shown * costs.viewer + frames * costs.ingest
    hop = crossings * costs.crossing
    out = (shown + crossings) * use.size / nodes
    busiest = min(edges / use.streams, MAX_DIRECT_EDGES) * use.rate * use.size
    claims = use.streams / use.lasts
    yield (
        use.name,
        f"{nodes:,}",
        f"{cores:,.0f}",
        f"{hop:,.1f}",
        f"{out / GBIT:,.1f}",
        f"{nodes * out / costs.link:,.0f}",
        f"{busiest / GBIT:.2f}",
        f"{claims * costs.claim:.2f}",
        f"{2 * claims * nodes * costs.notify:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--viewer", type=float, default=31.0, help="us for each frame and viewer")
    parser.add_argument("--ingest", type=float, default=90.0, help="us for each frame of a phone")
    parser.add_argument("--crossing", type=float, default=316.0, help="us for each frame and edge")
    parser.add_argument("--claim", type=float, default=125.0, help="us of the database for a claim")
    parser.add_argument("--notify", type=float, default=12.0, help="us for each listener")
    parser.add_argument("--gbit", type=float, default=25.0, help="of a node's network")
    options = parser.parse_args()
    costs = Costs(
        *(options.viewer * US, options.ingest * US, options.crossing * US),
        *(options.claim * US, options.notify * US, options.gbit * GBIT),
    )
    table = Table(title=f"{options.nodes:,} nodes, from what one was measured to cost")
    heads = (
        *("use", "nodes", "cores for viewers and phones", "cores for crossings"),
        *("Gbit/s out of a node", f"nodes that {options.gbit:g} Gbit/s each would need"),
        *("Gbit/s of crossings out of the busiest", "database cores for claims", "for news"),
    )
    for at, head in enumerate(heads):
        table.add_column(head, justify="left" if at == 0 else "right")
    for use in USES:
        for row in rows(use, options.nodes, costs):
            table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
