"""Asks the cluster whether a connection may produce a stream, and takes over what others have."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, evolve, field

from relay.cluster.directory.directory import Directory
from relay.cluster.directory.held_streams import HeldStreams
from relay.cluster.directory.shared_tables import SharedStreams
from relay.cluster.links.link_pool import LinkPool
from relay.concurrency.batcher import Batcher
from relay.connection.context import Claimed
from relay.errors import StoreUnavailable
from relay.hub.hub import Hub
from relay.hub.remote import Epoch
from relay.metrics import HopMetrics
from relay.model.cluster import ClaimRequest, HeldStream, LiveStream, StreamClaim
from relay.protocol.messages import StreamStatus


@define(eq=False)
class ClusterClaims:
    """Claims streams for connections of this node. `StreamClaims` of the connections."""

    _node_id: str
    _hub: Hub
    _table: SharedStreams
    _held: HeldStreams
    _directory: Directory
    _links: LinkPool
    _metrics: HopMetrics
    claimer: Batcher[ClaimRequest, StreamClaim] = field(init=False)
    """A task to be supervised."""

    def __attrs_post_init__(self) -> None:
        self.claimer = Batcher(self._claim_batch)

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Whether a connection may produce a stream, and in which epoch; `StoreUnavailable`,
        `StoreRejects`.

        Call `settle` when that has been made use of, or not.
        """
        stream_id = request.stream_id
        await self._held.begin_claim(stream_id)
        claim = await self.claimer.ask(request)
        if not claim.term:
            return Claimed(claim.owner_id, claim.outcome)
        epoch = await self._epoch_of(claim)
        held = self._held.rows.get(stream_id)
        if held is None:
            raise StoreUnavailable  # this node is about to end
        stream = self._hub.find(stream_id)
        lost = stream is not None and stream.term > claim.term  # as the directory said meanwhile
        if lost or epoch is None or held.connection != request.connection:
            return Claimed(claim.owner_id, "superseded")  # somebody else has it meanwhile
        if epoch.number != claim.epoch:
            self._held.hold(evolve(held, stream=evolve(held.stream, epoch=epoch.number)))
        return Claimed(claim.owner_id, claim.outcome, epoch, claim.before)

    def settle(self, stream_id: str) -> None:
        """Give a stream up again that was claimed, unless somebody here produces it."""
        if self._held.end_claim(stream_id):
            self._directory.settle(stream_id)

    async def _claim_batch(self, requests: Sequence[ClaimRequest]) -> Sequence[StreamClaim]:
        try:
            claims = await self._table.claim(self._node_id, requests)
        except StoreUnavailable:
            for request in requests:  # perhaps it was done, and only the answer is lost
                self._directory.look_soon(request.stream_id)
            raise
        answered = zip(requests, claims, strict=True)
        # Also for those who wait for the answer no more. The connection that came last has it.
        for request, claim in sorted(answered, key=lambda each: each[0].connection):
            if claim.term:
                self._held.hold(_held(request, claim, self._node_id))
        return claims

    async def _epoch_of(self, claim: StreamClaim) -> Epoch | None:
        """The epoch to go on with; None if the stream is lost again."""
        stream = self._hub.find(claim.stream_id)
        is_here = stream is not None and stream.live and not stream.is_remote
        if claim.outcome == "new":
            return Epoch(claim.epoch, claim.term)
        if claim.outcome == "kept":
            if is_here and stream is not None and stream.epoch == claim.epoch:
                return Epoch(claim.epoch, claim.term)
        elif claim.before is not None:
            account = self._hub.frame_budget.account(claim.owner_id)
            taken = await self._links.take(claim.before, claim.stream_id, claim.term, account)
            self._metrics.takes["renewed" if taken is None else "continued"] += 1
            if taken is not None and taken.number == claim.epoch:
                return taken
        # Nobody can say how far it came, and no `seq` may come twice in an epoch.
        try:
            renewed = await self._table.renew_epoch(claim.stream_id, self._node_id, claim.term)
        except StoreUnavailable:
            self._directory.look_soon(claim.stream_id)  # perhaps it was done
            raise
        return None if renewed is None else Epoch(renewed, claim.term)


def _held(request: ClaimRequest, claim: StreamClaim, node_id: str) -> HeldStream:
    row = LiveStream(
        stream_id=claim.stream_id,
        owner_id=claim.owner_id,
        node_id=node_id,
        term=claim.term,
        epoch=claim.epoch,
        status=StreamStatus.ONLINE,
        metadata=request.metadata,
    )
    return HeldStream(row, request.connection, request.accepted_at)
