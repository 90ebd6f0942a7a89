"""What a request has to satisfy before its peer is let in."""

from __future__ import annotations

import structlog
from attrs import define

from relay.connection.peer import Peer
from relay.guard.client_address import ClientAddress
from relay.guard.guard import Guard
from relay.metrics import Metrics
from relay.model.base_path import path_below
from relay.protocol.codec import CODECS, JSON_CODEC, Codec
from relay.protocol.endings import Ending
from relay.protocol.messages import ErrorCode
from relay.transport.handshake.head import asks_for_upgrade, refusal, too_much_in
from relay.transport.handshake.websocket import Handshake
from relay.transport.stream import MAX_HEAD_BYTES, HeadTooBig

PATHS = ("/streams/register", "/streams/subscribe")
ELSEWHERE = f"There is nothing here. WebSockets are at {' and '.join(PATHS)}."
TOKEN_PARAMETERS = ("token", "jwt", "bearer", "authorization")
"""How the name of a query parameter for a token ends, without regard to case and punctuation."""
NOT_IN_URL = (
    "A token in the URL ends up in logs and histories. Connect without one and send"
    ' {"type": "auth", "token": ...} as the first message.'
)

log = structlog.get_logger()


def is_for_token(parameter: str) -> bool:
    """Whether a query parameter with this name is for a token, which has no place in a URL."""
    letters = "".join(filter(str.isalpha, parameter)).lower()
    return letters.endswith(TOKEN_PARAMETERS)


class Refused(Exception):
    """The peer was told in HTTP that it does not come in."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.label)
        self.ending = ending


@define(eq=False, repr=False)
class Admission:
    """Lets one peer in, or refuses it; the methods are called in their order."""

    _peer: Peer
    _guard: Guard
    _metrics: Metrics

    async def read_proxy_header(self) -> None:
        """Ask a proxy that speaks PROXY protocol whose connection this is."""
        if self._guard.proxies.owe_header(self._peer.address):
            client = await self._peer.stream.read_proxy_header()
            if client is not None:
                self._come_from(ClientAddress.parse(client))

    async def read_head(self) -> bytes:
        """Read the request head; raises `Refused` when it is too large."""
        stream = self._peer.stream
        try:
            head = await stream.read_head()
        except HeadTooBig:
            text = f"The request head has more than {MAX_HEAD_BYTES} bytes"
        else:
            too_much = too_much_in(head)
            if too_much is None:
                return head
            text = too_much
        await stream.send_all(refusal(431, ErrorCode.MESSAGE_TOO_BIG, text))
        raise Refused(Ending.HANDSHAKE_REFUSED)

    async def enter(self, head: bytes) -> bool:
        """Let in a request, by its head; returns whether it is for a WebSocket.

        Raises `Refused` when the guard objects.
        """
        if not self._peer.stream.is_fresh:  # of those, listeners accept few in one round
            await self._guard.round_limiter.wait()
        proxies, nearest = self._guard.proxies, self._peer.address
        self._peer.base_path = proxies.base_path
        behind_proxy = nearest.is_in(proxies.trusted)
        if behind_proxy:
            self._peer.base_path = proxies.base_path_for(nearest, head)
            self._come_from(proxies.client_behind(nearest, head))
        upgrade = asks_for_upgrade(head)
        objection = self._guard.admit(
            self._peer, self._peer.address, head, upgrade=upgrade, behind_proxy=behind_proxy
        )
        if objection is not None:
            self._metrics.limits_hit[objection.limit] += 1
            await self._peer.stream.send_all(objection.response)
            raise Refused(objection.ending)
        return upgrade

    async def accept(self, handshake: Handshake) -> Codec:
        """Accept a WebSocket; returns what its messages are written in.

        Raises `Refused` when it is for something that relay does not have.
        """
        offered = handshake.subprotocols
        known = [name for name in offered if name in CODECS]
        if path_below(self._peer.base_path, handshake.path) not in PATHS:
            ending, status, why = Ending.NOT_FOUND, 404, ELSEWHERE
        elif any(map(is_for_token, handshake.query_names)):
            ending, status, why = Ending.HANDSHAKE_REFUSED, 400, NOT_IN_URL
        elif offered and not known:
            why = f"No offered subprotocol is supported; supported are {', '.join(CODECS)}"
            ending, status = Ending.HANDSHAKE_REFUSED, 400
            if self._guard.may_log(self._peer.address):
                log.info("subprotocols refused", offered=len(offered))
        else:
            await handshake.accept(known[0] if known else None)
            return CODECS[known[0]] if known else JSON_CODEC
        await handshake.refuse(status, why)
        raise Refused(ending)

    def _come_from(self, address: ClientAddress) -> None:
        if address != self._peer.address:
            self._peer.address = address
            self._guard.connections.move(self._peer, address.key)
