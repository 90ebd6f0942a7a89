"""Asks the cluster whether a connection may produce a stream, and takes over what others have."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, evolve, field

from relay.cluster.directory import Directory, SharedStreams
from relay.cluster.link_pool import LinkPool
from relay.concurrency.batcher import Batcher
from relay.connection.context import Claimed
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
        await self._directory.wait_for_end(request.stream_id)
        claim = await self.claimer.ask(request)
        if not claim.term:
            return Claimed(claim.owner_id, claim.outcome)
        self._directory.hold(_held(request, claim, self._node_id))
        epoch = await self._epoch_of(claim)
        if epoch is None:  # somebody else has it meanwhile
            return Claimed(claim.owner_id, "superseded")
        if epoch.number != claim.epoch:
            held = _held(request, evolve(claim, epoch=epoch.number), self._node_id)
            self._directory.hold(held)
        return Claimed(claim.owner_id, claim.outcome, epoch, claim.before)

    def settle(self, stream_id: str) -> None:
        """Give a stream up again that was claimed, unless somebody here produces it."""
        self._directory.note(stream_id)

    async def _claim_batch(self, requests: Sequence[ClaimRequest]) -> Sequence[StreamClaim]:
        return await self._table.claim(self._node_id, requests)

    async def _epoch_of(self, claim: StreamClaim) -> Epoch | None:
        """The epoch to go on with; None if the stream is lost again."""
        stream = self._hub.find(claim.stream_id)
        is_here = stream is not None and stream.live
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
        renewed = await self._table.renew_epoch(claim.stream_id, self._node_id, claim.term)
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
