"""What operators are told of one stream."""

from __future__ import annotations

from typing import cast

from relay.hub.consumer import Consumer
from relay.hub.peer import CarryingProducer, EdgePeer
from relay.hub.stream import EdgeDemand, Stream
from relay.protocol.reports import ConsumerReport, EdgeReport, StreamReport


def report_of(stream: Stream, node: str | None = None) -> StreamReport:
    """The state of a stream and what became of its frames. In a cluster, `node` is this node."""
    producer, carrying = stream.producer, None
    if stream.origin is not None and producer is not None:
        producer, carrying = None, cast("CarryingProducer", producer)
    return StreamReport(
        stream_id=stream.stream_id,
        owner_id=stream.owner_id,
        status=stream.status,
        epoch=stream.epoch,
        frames=stream.seq,
        producer=None if producer is None else producer.number,
        consumers=[_consumer_report(each) for each in stream.watchers if each not in stream.edges],
        node=node,
        carried_from=stream.origin,
        through=[] if carrying is None else list(carrying.path[1:]),
        received=None if carrying is None else carrying.received,
        lost=None if carrying is None else carrying.lost,
        edges=[_edge_report(edge, demand) for edge, demand in stream.edges.items()],
    )


def _consumer_report(consumer: Consumer) -> ConsumerReport:
    return ConsumerReport(
        connection=consumer.peer.number,
        party=consumer.identity.sender,
        frames=consumer.ledger.accepted,
        written=consumer.ledger.written,
        dropped=_dropped_by(consumer),
        waiting=consumer.waiting_frames,
        layer=consumer.layer,
        link=consumer.link(),
    )


def _edge_report(edge: Consumer, demand: EdgeDemand) -> EdgeReport:
    return EdgeReport(
        node=cast("EdgePeer", edge.peer).node_id,
        viewers=demand.viewers,
        frames=edge.ledger.accepted,
        written=edge.ledger.written,
        dropped=_dropped_by(edge),
        waiting=edge.waiting_frames,
        link=edge.link(),
    )


def _dropped_by(consumer: Consumer) -> dict[str, int]:
    return {why.value: n for why, n in consumer.ledger.dropped.items()}
