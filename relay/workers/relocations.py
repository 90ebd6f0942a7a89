"""Decides, in the parent, which worker serves a viewer that may go from one to another.

The parent alone decides, and each viewer has one owner at any moment. The first worker has stopped
to read and write when it offers the viewer, and keeps its copy of the socket. The second one says
whether it could serve the viewer, and does nothing more. Then the parent settles it with both: the
one that it names goes on. What it says is in order for each of them, so a worker that ends, hangs
or drains meanwhile changes nothing of that: the viewer stays where it was.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import trio
from attrs import define, field

from relay.workers.child import ChildWorker, GivenConnection
from relay.workers.messages import EndConnection, EndElsewhere, Receive, Received, Relocate, Settled
from relay.workers.placement import Placement

MAX_OFFERED = 256
"""Viewers on their way at once: each takes a descriptor of the parent, which needs them to accept
connections. More of them stay where they are."""
RELOCATION_TIMEOUT = 0.5
"""Seconds for the other worker to say that it is ready; then the viewer stays where it is."""


@define(eq=False)
class _Offer:
    """A viewer that a worker was offered."""

    given: GivenConnection
    stream_id: str
    copy: socket.socket
    """Kept until the other worker has its own."""
    origin: ChildWorker | None
    """The worker that has the viewer; None when that has ended."""
    target: ChildWorker
    at: float
    """When it was offered, by Trio's clock."""
    is_settled: bool = False
    end: EndElsewhere | None = None
    """What the viewer has to be told of where it is served."""


@define(eq=False)
class OfferedViewers:
    """The viewers that may go to another worker."""

    _children: list[ChildWorker]
    """Kept up to date by the parent."""
    _placement: Placement
    _lose: Callable[[GivenConnection], object]
    """Called with a connection that no worker has any more."""
    _offers: dict[int, _Offer] = field(factory=dict)
    """By the number of the connection."""

    def note(self, child: ChildWorker, news: Relocate | Received | EndElsewhere) -> None:
        """Do what a worker says of a viewer."""
        match news:
            case Relocate():
                self._offer(child, news)
            case Received():
                self._note_received(child, news)
            case EndElsewhere():
                self._note_end(child, news)

    def _offer(self, origin: ChildWorker, relocate: Relocate) -> None:
        """Offer a viewer to the worker that has its stream, if that may have one more."""
        copy, number = origin.pick_up(), relocate.number
        given = origin.connections.get(number)
        target = self._target_of(relocate)
        if copy is None:
            origin.tell(Settled(number, yours=True))
        elif given is None or target is None or target is origin or not self._has_room_for(number):
            copy.close()
            origin.tell(Settled(number, yours=True))
        else:
            self._offers[number] = _Offer(
                *(given, relocate.stream_id, copy, origin, target, trio.current_time())
            )
            target.offer(Receive(number, relocate.stream_id, relocate.viewer), copy)

    def _has_room_for(self, number: int) -> bool:
        """Whether a connection may be offered, too; nobody is offered twice at once."""
        return number not in self._offers and len(self._offers) < MAX_OFFERED

    def _target_of(self, relocate: Relocate) -> ChildWorker | None:
        """The worker that a viewer may go to; None if that may have no more."""
        with_room = {each.key: each for each in self._children if each.has_room}
        targets = (each for each in with_room.values() if each.node_id == relocate.node_id)
        target = next(targets, None)
        if target is None or self._is_late(target):
            return None
        return target if self._placement.may_get(target.key, with_room) else None

    def _note_received(self, child: ChildWorker, received: Received) -> None:
        """Settle a viewer whose other worker has answered."""
        offer = self._offers.get(received.number)
        if offer is None or offer.target is not child:
            return
        if offer.is_settled:  # it was too late
            if received.is_ready:
                child.tell(Settled(received.number, yours=False))
        else:
            self._settle(offer, moves=received.is_ready)
        self._close(offer)

    def _note_end(self, child: ChildWorker, end: EndElsewhere) -> None:
        """Pass on to the worker that serves a viewer what has happened to it elsewhere."""
        offer = self._offers.get(end.number)
        if offer is not None and not offer.is_settled:
            offer.end = end
            return
        for each in self._children:
            if each is not child and end.number in each.connections:
                each.tell(EndConnection(end.number, end.revoked))

    def keeps(self, child: ChildWorker, number: int) -> bool:
        """Note that a worker has given a connection up; whether another may yet have it."""
        offer = self._offers.get(number)
        if offer is None or offer.is_settled or offer.origin is not child:
            return False
        offer.origin = None
        return True

    def note_ended(self, child: ChildWorker) -> None:
        """Leave the viewers where they were that a worker was offered which has ended."""
        for offer in list(self._offers.values()):
            if offer.target is child:
                if not offer.is_settled:
                    self._settle(offer, moves=False)
                self._close(offer)

    def expire(self) -> None:
        """Leave the viewers where they were whose other worker is late."""
        for offer in self._offers.values():
            if not offer.is_settled and trio.current_time() - offer.at > RELOCATION_TIMEOUT:
                self._settle(offer, moves=False)

    def _is_late(self, target: ChildWorker) -> bool:
        """Whether a worker still owes an answer."""
        return any(each.target is target and each.is_settled for each in self._offers.values())

    def _settle(self, offer: _Offer, *, moves: bool) -> None:
        offer.is_settled = True
        given, origin, target = offer.given, offer.origin, offer.target
        if moves:
            if origin is not None:
                del origin.connections[given.number]
                self._placement.remove(given.hint, origin.key)
            given.hint, given.child = offer.stream_id, target
            target.connections[given.number] = given
            self._placement.add(given.hint, target.key)
            target.tell(Settled(given.number, yours=True))
        owner = target if moves else origin
        if owner is not None and offer.end is not None:
            owner.tell(EndConnection(given.number, offer.end.revoked))
        if origin is not None:
            origin.tell(Settled(given.number, yours=not moves))
        elif not moves:
            # The other worker may have a copy, and stand still: the peer must not wait for that.
            with suppress(OSError):
                offer.copy.shutdown(socket.SHUT_RDWR)
            self._lose(given)

    def _close(self, offer: _Offer) -> None:
        """Forget an offer that was answered, or will not be."""
        del self._offers[offer.given.number]
        offer.copy.close()
