"""A plain HTTP request, as the web application knows the connection that it came over."""

from __future__ import annotations

from attrs import define

from relay.connection.peer import Peer
from relay.guard.guard import Guard
from relay.metrics import Limit, Metrics
from relay.model.access.identity import Identity


@define(eq=False, repr=False)
class HttpRequest:
    """The connection of one request. An answer that lasts makes it one that counts."""

    peer: Peer
    _guard: Guard
    _metrics: Metrics
    _counted: bool = False

    def stay(self, identity: Identity, user_id: str | None, *, gives_way: bool) -> Limit | None:
        """Count the connection as an authenticated WebSocket is counted, from now on; or return the
        limit that it would exceed.

        `gives_way`: it makes no other connection of the user end, however many there are.
        """
        peer, connections = self.peer, self._guard.connections
        limit = connections.admit(peer, peer.address.key)
        if limit is not None:
            return limit
        if not connections.authenticated(peer, user_id, gives_way=gives_way):
            connections.leave(peer)
            return Limit.CONNECTIONS_OF_USER
        if peer.stream.acceptance is not None:
            peer.stream.acceptance.authenticated()
        peer.identity = identity
        self._counted = True
        self._metrics.connections += 1
        self._metrics.connections_accepted += 1
        self._metrics.authenticated += 1
        return None

    def leave(self) -> None:
        """Count it no more."""
        if self._counted:
            self._counted = False
            self._metrics.connections -= 1
            self._metrics.authenticated -= 1
