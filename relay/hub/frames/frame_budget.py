"""A bound on the bytes of the frames that are kept, for each owner of streams and in all.

A frame is kept by its stream, for who subscribes next and for clips, and by viewers that have not
received it yet. Nearly all frames are written at once to all viewers, replaced by the next one, and
cost nothing here. Above the limit the cheapest is given up first, down to three quarters of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, cast
from weakref import WeakSet, WeakValueDictionary

import trio
from attrs import define, field

if TYPE_CHECKING:  # they have an account, and it knows who has it
    from relay.hub.frames.frame import Frame
    from relay.hub.peer import ConsumingPeer
    from relay.hub.stream import Stream

FRAME_BYTES = 1024
"""What a frame takes beside its content, at most about."""


@define(eq=False)
class FrameAccount:
    """The frames of one owner's streams that are kept."""

    budget: FrameBudget
    bytes: int = 0
    streams: dict[Stream, None] = field(factory=dict, repr=False)
    slow_peers: WeakSet[ConsumingPeer] = field(factory=WeakSet, repr=False)
    """Those who had received a part of a large frame when they were last looked at."""
    encoding: trio.Lock | None = field(default=None, repr=False)
    """Held while a large frame is encoded in steps; None before that."""

    def count(self, size: int) -> None:
        """Count so many bytes more; fewer if it is negative."""
        self.bytes += size
        self.budget.bytes += size

    def keep_within_limits(self) -> bool:
        """Give up frames if there are too many bytes; returns whether there were."""
        budget = self.budget
        too_many = self.bytes > budget.limit_per_owner or budget.bytes > budget.limit
        if too_many:
            budget.keep(self)
        return too_many


@define(eq=False)
class FrameBudget:
    """The accounts of all owners, and their limits."""

    limit: int = 1 << 30
    limit_per_owner: int = 256 << 20
    """Bytes."""
    bytes: int = 0
    """Those of all accounts together."""
    _accounts: WeakValueDictionary[str, FrameAccount] = field(factory=WeakValueDictionary)

    def account(self, owner_id: str) -> FrameAccount:
        """The account of an owner."""
        account = self._accounts.get(owner_id)
        if account is None:
            account = self._accounts[owner_id] = FrameAccount(self)
        return account

    def keep(self, account: FrameAccount) -> None:
        """Give up frames if an account has too many, or all accounts together: then of the owner
        with the most."""
        if account.bytes > self.limit_per_owner:
            _relieve(account, lambda: account.bytes > self.limit_per_owner * 3 // 4)
        if self.bytes > self.limit:
            by_size = sorted(self._accounts.values(), key=lambda each: each.bytes, reverse=True)
            for each in by_size:
                _relieve(each, self._has_too_many)

    def _has_too_many(self) -> bool:
        return self.bytes > self.limit * 3 // 4


def _relieve(account: FrameAccount, too_many: Callable[[], bool]) -> None:
    for give_up in _cheapest_first(account):
        if not too_many():
            return
        give_up()


def _cheapest_first(account: FrameAccount) -> Iterator[Callable[[], object]]:
    """What can be given up, step by step; each kind in the order of the age of its frames.

    Nothing here may hold a frame from one step to the next.
    """
    streams = list(account.streams)
    watchers = [each for stream in streams for each in stream.watchers if each.keeps_frames]
    watchers.sort(key=lambda each: each.waiting_since)
    # Nobody waits for the pictures of a clip.
    for stream in streams:
        if stream.ring is not None:
            yield stream.ring.give_up
    # An encoding can be made again; a frame that waits is replaced by the next one.
    for stream in streams:
        if stream.fanout.keyframe is not None and not _is_being_sent(stream):
            yield stream.fanout.keyframe.forget_encodings
    for consumer in watchers:
        if not consumer.lossless:
            yield consumer.drop_waiting
    # Who subscribes next waits for a frame.
    for stream in streams:
        yield stream.fanout.give_up_keyframe
    # These lose a frame that they have begun to receive, or their connection.
    for consumer in watchers:
        yield consumer.give_up if consumer.lossless else consumer.drop_parts
    slow = [(_age_of_unsent(each, account), each.cut_off) for each in account.slow_peers]
    for _, cut_off in sorted((each for each in slow if each[0] is not None), key=itemgetter(0)):
        yield cut_off


def _is_being_sent(stream: Stream) -> bool:
    """Whether a peer has a part of its keyframe: the encoding lives on in any case."""
    frame = stream.fanout.keyframe
    assert frame is not None
    return any(each.has_parts_of(frame) for each in stream.watchers) or any(
        each.unsent_frame is frame for each in frame.account.slow_peers
    )


def _age_of_unsent(peer: ConsumingPeer, account: FrameAccount) -> tuple[float, int] | None:
    """When the frame was accepted of which a peer has a part, and which of several at that moment
    it is; None if it is not of the account."""
    frame = cast("Frame | None", peer.unsent_frame)
    if frame is None or frame.account is not account:
        return None
    return frame.accepted_at, frame.seq
