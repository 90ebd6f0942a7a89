"""The stream that a `RelayClient` produces, over all of its connections. Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio
from attrs import define, field

from relay.client.errors import ServerError
from relay.client.events import Problem, Registered, Status
from relay.client.link import Answer, Link
from relay.client.manners import PASSING, Manners
from relay.client.messages import read
from relay.client.unread import Demand, Unread
from relay.errors import RelayError
from relay.protocol.messages import now_ms


class Publisher(Protocol):
    """What a publication needs of its client."""

    def registered(self, publication: Publication, stream_id: str) -> None: ...
    def register_again(self, publication: Publication, link: Link) -> None: ...
    def drop_publication(self, publication: Publication, error: RelayError | None) -> None: ...


@define(eq=False)
class Publication:
    """Made by `RelayClient.publish`; lasts until `stop`, or until the relay refuses it, which is a
    `Problem`."""

    stream_id: str | None
    """Known once registered."""
    metadata: Mapping[str, Any] | None
    alerts: bool
    _publisher: Publisher
    _unread: Unread
    _manners: Manners
    registered: bool = False
    """Whether frames can be sent now."""
    consumers: int = 0
    sent: int = 0
    """Frames, so far."""
    skipped: int = 0
    active: bool = True
    _link: Link | None = field(default=None, init=False)
    _broken: bool = field(default=True, init=False)
    """Whether what builds on the frame before is of no use, since that was not sent."""
    _confirmed: int = field(default=0, init=False)
    """Bytes of this connection that the relay has answered for."""
    _asking: bool = field(default=False, init=False)
    _counted: bool = field(default=False, init=False)
    """Whether `consumers` is of this connection."""
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _error: RelayError | None = field(default=None, init=False)

    def send_frame(
        self,
        data: bytes,
        *,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Hand a frame to the network, or skip it where those before are still under way: a frame
        that waits is an old picture. Returns whether it was sent."""
        link = self._link
        if (
            link is None
            or not self.registered
            or self._is_full(link)
            or (self._broken and keyframe is False)
        ):
            self.skipped += 1
            self._broken = True
            return False
        stamp = now_ms() if timestamp is None else timestamp
        link.say("video-frame", data=data, timestamp=stamp, keyframe=keyframe, metadata=metadata)
        self._broken = False
        self.sent += 1
        self._confirm(link)
        return True

    async def ready(self) -> None:
        """Wait until frames can be sent; raises what ended the stream."""
        await self._until(lambda: self.registered)

    async def wanted(self) -> None:
        """Wait until somebody watches, too."""
        await self._until(lambda: self.registered and self._counted and self.consumers > 0)

    def stop(self) -> None:
        """End the stream. The connection is made anew: a stream lasts as long as its own."""
        if self.active:
            self._publisher.drop_publication(self, None)

    # -- From here on: for the client

    def begin(self, link: Link) -> None:
        """Prepare for another connection."""
        self._link = link
        self._asking, self._confirmed, self._broken = False, 0, True
        self._counted = False

    def ask(self, link: Link) -> None:
        """Register."""

        def turn(answer: Answer) -> None:
            if not self.active:
                return
            if not isinstance(answer, ServerError):
                self.stream_id = stream_id = read(Registered, answer).stream_id
                self.registered = True
                self._tell()
                self._publisher.registered(self, stream_id)
            elif answer.code in PASSING:
                again = self._manners.until_retry(answer)
                link.later(again, lambda: self._publisher.register_again(self, link))
            else:
                self._unread.put(
                    Problem(answer.code, answer.message, self.stream_id, answer.retry_after)
                )
                self._publisher.drop_publication(self, answer)

        link.ask(
            "register",
            turn,
            stream_id=self.stream_id,
            produces=["video-frame"],
            consumes=["alert"] if self.alerts else [],
            metadata=self.metadata,
        )

    def take_status(self, status: Status) -> None:
        consumers = status.consumers or 0
        self._counted = True
        if consumers != self.consumers:
            self.consumers = consumers
            self._unread.put(Demand(status.stream_id, consumers))
        self._tell()

    def lose(self) -> None:
        """The connection is gone."""
        self._link, self.registered = None, False

    def end(self, error: RelayError) -> None:
        self.active = self.registered = False
        self._error = error
        self._tell()

    async def _until(self, so: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not so():
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    def _is_full(self, link: Link) -> bool:
        """What the kernel has not taken lies here; buffers beyond show in what is not answered."""
        most = self._manners.max_buffered
        return link.buffered > most or (self._asking and link.bytes_taken - self._confirmed > most)

    def _confirm(self, link: Link) -> None:
        if self._asking:
            return
        taken, self._asking = link.bytes_taken, True

        def turn(_answer: Answer) -> None:
            if link is self._link:
                self._asking, self._confirmed = False, taken

        link.ping(turn)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
