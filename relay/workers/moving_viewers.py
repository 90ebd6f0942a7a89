"""Viewers that go from this worker to another, or come here, as the parent decides."""

from __future__ import annotations

import socket

import msgspec
import structlog
from attrs import define, field

from relay.cluster.setup import ClusterParts
from relay.connection.relocation import RelocatedViewer, Relocation, identity_of
from relay.server import Server
from relay.transport.acceptance import Acceptance
from relay.transport.handed import trio_time
from relay.workers.control import ControlChannel
from relay.workers.messages import (
    EndConnection,
    EndElsewhere,
    Left,
    Receive,
    Received,
    Relocate,
    Settled,
)

log = structlog.get_logger()


@define(eq=False)
class MovingViewers:
    """Says to the parent, and is told by it, what concerns viewers that move."""

    _channel: ControlChannel
    _server: Server
    _cluster: ClusterParts
    _sent: set[int] = field(factory=set)
    """Numbers of viewers that the parent has to decide on."""

    # -- for the server

    def send(self, relocation: Relocation) -> None:
        """Have the parent decide whether another worker serves a viewer."""
        if self._channel.lost:  # as long as nothing is said, it is ours
            relocation.settle(ours=True)
            return
        number = relocation.number
        self._sent.add(number)
        self._channel.send(
            Relocate(number, relocation.target, relocation.stream_id, relocation.viewer.encode()),
            relocation.connected,
        )

    def note_left(self, relocation: Relocation) -> None:
        """Note that this worker does not serve a viewer."""
        number = relocation.number
        if relocation.is_revoked or relocation.is_ended:
            self._channel.send(EndElsewhere(number, relocation.is_revoked))
        self._sent.discard(number)
        self._channel.send(Left(number))

    # -- for the parent

    def obey(self, order: Receive | Settled | EndConnection) -> None:
        match order:
            case Receive():
                self._receive(order)
            case Settled(number, yours):
                self._settle(number, yours)
            case EndConnection(number, revoked):
                if revoked:
                    self._server.revoke(number)
                else:
                    self._server.end(number)

    def _settle(self, number: int, yours: bool) -> None:  # noqa: FBT001 (as it came)
        hop = self._server.context.metrics.hop
        if number in self._sent and hop is not None:
            hop.moves["stayed" if yours else "moved"] += 1
        self._sent.discard(number)
        self._server.settle(number, ours=yours)

    def _receive(self, order: Receive) -> None:
        connected = self._channel.pick_up()
        is_ready = connected is not None and self._has_received(order, connected)
        if connected is not None and not is_ready:
            connected.close()
        self._channel.send(Received(order.number, is_ready))

    def _has_received(self, order: Receive, connected: socket.socket) -> bool:
        try:
            viewer = RelocatedViewer.decode(order.viewer)
            identity = identity_of(viewer.identity)
        except (msgspec.DecodeError, TypeError):
            log.warning("a viewer of another worker cannot be read")
            return False
        relocation = Relocation(
            *(order.number, viewer, identity),
            *(self._cluster.node_id, order.stream_id, connected),
        )
        acceptance = Acceptance(order.number, trio_time(viewer.accepted_at), on_left=self._left)
        return self._server.receive(relocation, acceptance)

    def _left(self, number: int) -> None:
        self._channel.send(Left(number))
