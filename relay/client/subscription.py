"""A stream that a `RelayClient` watches, over all of its connections. Floor 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from attrs import define, evolve, field, frozen

from relay.client.errors import ServerError
from relay.client.events import Frame, Problem, Status, Subscribed
from relay.client.link import Answer, Link
from relay.client.manners import PASSING, Manners
from relay.client.messages import read
from relay.client.unread import Unread

Policy = Literal["latest", "lossless"]
WINDOW, LOSSLESS_WINDOW = 4, 32
"""Frames under way, by default. One counts until the application asks for the event after it."""


@frozen
class Terms:
    """What of a stream is wanted, and how."""

    frames: bool = True
    alerts: bool = True
    policy: Policy = "latest"
    max_fps: float | None = None
    window: int | None = None
    """None: `WINDOW`, or `LOSSLESS_WINDOW`."""

    @property
    def room(self) -> int:
        return self.window or (WINDOW if self.policy == "latest" else LOSSLESS_WINDOW)

    def request(self, stream_id: str) -> dict[str, object]:
        wanted = (("video-frame", self.frames), ("alert", self.alerts))
        return {
            "stream_id": stream_id,
            "consumes": [kind for kind, wants in wanted if wants],
            "policy": self.policy,
            "max_fps": self.max_fps,
            "window": self.room,
        }


class Holder(Protocol):
    """What a subscription needs of its client."""

    def resubscribe(self, subscription: Subscription) -> None: ...
    def subscribe_again(self, subscription: Subscription, link: Link) -> None: ...
    def drop_subscription(self, subscription: Subscription) -> None: ...


@define(eq=False)
class Subscription:
    """Made by `RelayClient.subscribe`; lasts until `unsubscribe`, or until the relay refuses it,
    which is a `Problem` with the stream's id."""

    stream_id: str
    terms: Terms
    _holder: Holder
    _unread: Unread
    _manners: Manners
    status: str = "offline"
    epoch: int = 0
    """0 while there is nothing to see."""
    metadata: Mapping[str, Any] | None = None
    active: bool = True
    _link: Link | None = field(default=None, init=False)
    _subscribed: bool = field(default=False, init=False)
    """On this connection."""
    _broken: bool = field(default=False, init=False)
    """Whether what builds on the frame before is of no use, since that was skipped."""
    _seq: int = field(default=0, init=False)

    def update(self, **terms: Any) -> None:
        """Change some of the `Terms`."""
        self.terms = evolve(self.terms, **terms)
        if self.active:
            self._holder.resubscribe(self)

    def unsubscribe(self) -> None:
        if self.active:
            self.end()
            if self._link is not None:
                self._link.ask("unsubscribe", lambda _answer: None, stream_id=self.stream_id)

    def end(self) -> None:
        self.active = False
        self._unread.drop_frames(self.stream_id)
        self._holder.drop_subscription(self)

    # -- From here on: for the client

    def begin(self, link: Link) -> None:
        """Subscribe on another connection. What waits of the one before is behind what comes."""
        self._unread.drop_frames(self.stream_id)
        self._subscribed = False
        self.ask(link)

    def ask(self, link: Link) -> None:
        """Subscribe, or change the terms."""
        self._link = link

        def turn(answer: Answer) -> None:
            if not self.active:
                return
            if not isinstance(answer, ServerError):
                self._subscribed = True
                subscribed = read(Subscribed, answer)
                self._learn(subscribed.epoch, subscribed.metadata)
            elif answer.code in PASSING:
                again = self._manners.until_retry(answer)
                link.later(again, lambda: self._holder.subscribe_again(self, link))
            else:
                if self._subscribed:  # with the terms of before
                    self.unsubscribe()
                else:
                    self.end()
                self._unread.put(
                    Problem(answer.code, answer.message, self.stream_id, answer.retry_after)
                )

        link.ask("subscribe", turn, **self.terms.request(self.stream_id))

    def take_status(self, status: Status) -> None:
        self._learn(status.epoch, status.metadata)
        self.status = status.status
        self._unread.put(evolve(status, metadata=self.metadata))

    def take_frame(self, frame: Frame) -> None:
        if not self.epoch:
            return  # of a subscription before this one, which has not begun
        newest = self._unread.newest_frame(self.stream_id)
        # After a reconnect the latest frame comes again. Decoders want a keyframe again, too.
        seen = newest.seq if newest else self._seq
        if frame.seq == seen or (frame.seq < seen and frame.keyframe is not True):
            self.acknowledge(frame, self._link)
            return
        latest = self.terms.policy == "latest"  # else the relay gives no more than the window
        full = latest and self._unread.waiting_frames(self.stream_id) >= self.terms.room
        if frame.keyframe is False and (full or self._broken):
            self._broken = True
            self.acknowledge(frame, self._link)
            return
        self._broken = False
        if full and frame.keyframe:
            self._unread.drop_frames(self.stream_id)
        evolved = evolve(frame, epoch=self.epoch)
        self._unread.put_frame(evolved, most=self.terms.room if latest else None)

    def give(self, frame: Frame) -> tuple[Frame, Link | None]:
        """The frame as the application gets it now, and the connection that it came by."""
        missed = frame.seq - self._seq - 1 if 0 < self._seq < frame.seq else 0
        self._seq = max(self._seq, frame.seq)
        return evolve(frame, missed=missed), self._link

    def acknowledge(self, frame: Frame, link: Link | None) -> None:
        """The application is done with it."""
        if link is not None and self.active:
            link.acknowledge(self.stream_id, frame.seq, frame.epoch or self.epoch)

    def _learn(self, epoch: int, metadata: Mapping[str, Any] | None) -> None:
        if epoch != self.epoch:
            self.epoch, self._seq = epoch, 0
            self._unread.drop_frames(self.stream_id)
        if metadata is not None:
            self.metadata = metadata
