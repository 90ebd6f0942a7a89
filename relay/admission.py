"""What a request has to satisfy before its peer is let in. Floor 3."""

from __future__ import annotations

from typing import Protocol

import structlog
from attrs import define

from relay.closing import Ending
from relay.guard.address import ClientAddress
from relay.guard.crowd import Member
from relay.guard.guard import Guard
from relay.metrics import Metrics
from relay.protocol.codec import CODECS, JSON, Codec
from relay.transport.head import asks_for_upgrade
from relay.transport.stream import FrameStream
from relay.transport.websocket import Handshake

PATHS = ("/streams/register", "/streams/subscribe")
ELSEWHERE = f"There is nothing here. WebSockets are at {' and '.join(PATHS)}."
TOKEN_PARAMETERS = {"token", "access_token", "session_token"}
NOT_IN_URL = (
    "A token in the URL ends up in logs and histories. Connect without one and send"
    ' {"type": "auth", "token": ...} as the first message.'
)

log = structlog.get_logger()


class Refused(Exception):
    """The peer was told in HTTP that it does not come in."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.label)
        self.ending = ending


class Visitor(Member, Protocol):
    """A connection that comes from somewhere."""

    address: ClientAddress
    """The client's, as far as it is known."""


@define(eq=False)
class Admission:
    """The way in of one peer, in the order of the methods."""

    _stream: FrameStream
    _guard: Guard
    _metrics: Metrics
    _visitor: Visitor
    """The peer's connection, which the guard counts."""

    async def hear_proxy(self) -> None:
        """Ask a proxy that speaks PROXY protocol whose connection this is."""
        if self._guard.proxies.owe_header(self._visitor.address):
            client = await self._stream.read_proxy_header()
            if client is not None:
                self._come_from(ClientAddress.parse(client))

    async def enter(self, head: bytes) -> bool:
        """Let in a request, by its head; returns whether it is for a WebSocket.

        Raises `Refused` when the guard objects.
        """
        await self._guard.turnstile.turn()
        self._come_from(self._guard.proxies.client_behind(self._visitor.address, head))
        upgrade = asks_for_upgrade(head)
        refusal = self._guard.judge(self._visitor, self._visitor.address, head, upgrade=upgrade)
        if refusal is not None:
            self._metrics.limits_hit[refusal.limit] += 1
            await self._stream.send_all(refusal.response)
            raise Refused(refusal.ending)
        return upgrade

    async def accept(self, handshake: Handshake) -> Codec:
        """Accept a WebSocket; returns what its messages are written in.

        Raises `Refused` when it is for something that relay does not have.
        """
        offered = handshake.subprotocols
        known = [name for name in offered if name in CODECS]
        if handshake.path not in PATHS:
            ending, status, why = Ending.NOT_FOUND, 404, ELSEWHERE
        elif handshake.query_names & TOKEN_PARAMETERS:
            ending, status, why = Ending.HANDSHAKE_REFUSED, 400, NOT_IN_URL
        elif offered and not known:
            why = f"None of the subprotocols offered is known: {', '.join(CODECS)}"
            ending, status = Ending.HANDSHAKE_REFUSED, 400
            log.info("subprotocols refused", offered=len(offered))
        else:
            await handshake.accept(known[0] if known else None)
            return CODECS[known[0]] if known else JSON
        await handshake.refuse(status, why)
        raise Refused(ending)

    def _come_from(self, address: ClientAddress) -> None:
        if address != self._visitor.address:
            self._visitor.address = address
            self._guard.crowd.move(self._visitor, address.key)
