"""Somebody who gets pictures over plain HTTP, as the hub and the session watch know them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import trio
from attrs import define, field

from relay.concurrency.wakeup import Wakeup
from relay.connection.context import Watch
from relay.connection.http_request import HttpRequest
from relay.connection.session.expiry import Due, Expiry
from relay.hub.consumer import Consumer
from relay.hub.hub import Hub
from relay.hub.stream import Stream
from relay.model.access.identity import Identity
from relay.protocol.codec import JSON_CODEC, Codec
from relay.protocol.endings import Ending
from relay.protocol.messages import AlertEvent, ServerMessage, Status


@define(eq=False)
class PictureReader:
    """The peer of an HTTP request that consumes a stream. It can be told nothing but pictures."""

    request: HttpRequest
    _watch: Watch
    identity: Identity
    changed: Wakeup = field(factory=Wakeup)
    """Set when it may not see the stream any more, or when the stream is another."""
    held: object | None = None
    """The frame that it is getting, if that is not written by the outlet alone."""
    _expiry: Expiry = field(factory=Expiry)
    _subscriptions: dict[Consumer, Stream] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._expiry.renew(self.identity, by_peer=True)

    @property
    def codec(self) -> Codec:
        """Of what it is told, which is nothing."""
        return JSON_CODEC

    @property
    def takes_parts(self) -> bool:
        return False

    @property
    def number(self) -> int:
        return self.request.peer.number

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Be told what changes about the identity, within the block. Enter it before anything is
        waited for, so that no change since the authentication is missed."""
        self._watch.enter(self)
        try:
            yield
        finally:
            self._watch.leave(self)

    @contextmanager
    def subscribed(self, hub: Hub, consumer: Consumer) -> Iterator[Stream]:
        """Consume a stream within the block."""
        stream = hub.subscribe(consumer)
        self._subscriptions[consumer] = stream
        try:
            stream.watch(consumer)
            yield stream
        finally:
            del self._subscriptions[consumer]
            hub.unsubscribe(stream, consumer)

    async def keep_session(self) -> None:
        """End the connection when the session ends; it may be prolonged meanwhile."""
        while True:
            await trio.sleep_until(self._expiry.next_at)
            match self._expiry.next():
                case Due.READ:
                    await self._watch.reread(self)
                    self._expiry.has_read()
                case Due.END:
                    cut_short = self._expiry.cut_short
                    self.end(Ending.SESSION_REVOKED if cut_short else Ending.SESSION_EXPIRED)
                    return
                case Due.NOTICE:
                    pass  # there is no way to tell it

    async def has_expired(self) -> bool:
        """Whether the session has ended; for those who do not `keep_session`. It may have been
        prolonged meanwhile, so it is read again first."""
        if trio.current_time() >= self._expiry.deadline:
            await self._watch.reread(self)
        return trio.current_time() >= self._expiry.deadline

    def end(self, ending: Ending) -> None:
        """End the connection."""
        self.request.peer.end(ending)

    # -- for the session watch

    def become(self, identity: Identity) -> None:
        """Go on with what the store says now of the same session or service."""
        self.identity = identity
        if self.request.peer.identity is not None:
            self.request.peer.identity = identity
        self._expiry.renew(identity, by_peer=False)
        for consumer, stream in self._subscriptions.items():
            if not stream.may_see(consumer):
                stream.conceal(consumer)
        self.changed.set()

    def revoked(self) -> None:
        """End, since the session or the token is no more. Nothing goes out from now on."""
        self.end(Ending.SESSION_REVOKED)

    # -- for the hub

    def tell(self, message: ServerMessage) -> None:
        """There is no way to tell it."""

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> None:
        """There is no way to tell it."""

    def tell_status(self, status: Status) -> None:  # noqa: ARG002 (it looks for itself)
        self.changed.set()

    def too_slow(self) -> None:
        self.end(Ending.TOO_SLOW)

    @property
    def unsent_frame(self) -> object | None:
        return self.held or self.request.peer.stream.outlet.held

    def cut_off(self) -> None:
        stream = self.request.peer.stream
        self.end(Ending.TOO_SLOW)
        stream.abort()
        self.held = stream.outlet.held = None


def reader_of(connection: object, watch: Watch, identity: Identity) -> PictureReader:
    """The reader behind a request, by what its state holds as `connection`."""
    return PictureReader(cast("HttpRequest", connection), watch, identity)
