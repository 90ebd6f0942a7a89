"""A worker process, as its parent sees it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum

import trio
from attrs import define, field

from relay.cluster.setup import NodePlace
from relay.guard.client_address import ClientAddress
from relay.metrics import Limit
from relay.process.working_directory import working_directory
from relay.settings.settings import Settings
from relay.workers.control import ControlChannel
from relay.workers.messages import (
    VERSION,
    Begin,
    ControlReader,
    CrowdOut,
    Drain,
    News,
    Order,
    Receive,
    Stop,
    Take,
    TakeLink,
)
from relay.workers.shares import as_plain

MAX_UNTAKEN = 64
"""Connections that a worker may have been given and not taken. Each of its turns takes all that are
there, so more of them mean that it is stuck."""
LATE_AFTER = 3.0
"""Seconds without a word after which a worker gets no connections; it says something every
second."""
MAX_TAKING_TIME = 1.0
"""Seconds in which a worker takes a connection that it was given; one that takes longer gets no
more."""
FULL_PAUSE = 0.5
"""Seconds without connections for a worker that gave one back, since it has no descriptors or
drains."""
STUCK_AFTER = 30.0
"""Seconds without a word after which a worker is killed."""
KILL_TIMEOUT = 5.0
"""Seconds for a killed process to be gone."""


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    LATE = "late"
    """It has said nothing for a while, and gets no connections."""
    DRAINING = "draining"


@define(eq=False)
class GivenConnection:
    """A connection that was accepted, and is given to a worker."""

    number: int
    accepted: socket.socket
    peer: str
    """`HOST:PORT` of the other side, which may be a proxy."""
    accepted_at: float
    """By `time.monotonic()`."""
    address: ClientAddress
    hint: str | None = None
    """The stream that it names."""
    child: ChildWorker | None = None
    """Who has it."""
    given_at: float = 0.0
    """When it was given to that, by Trio's clock."""
    crowded: bool = False
    """Whether it shall end, to make room."""
    peeking: trio.CancelScope = field(factory=trio.CancelScope)

    def crowded_out(self, _limit: Limit) -> None:
        """Have it ended, by the worker, which counts why."""
        self.crowded = True
        self.peeking.cancel()
        if self.child is not None:
            self.child.tell(CrowdOut(self.number))


@define(eq=False)
class ChildWorker:
    """A running worker process."""

    slot: int
    process: trio.Process
    _channel: ControlChannel
    phase: WorkerState = WorkerState.STARTING
    connections: dict[int, GivenConnection] = field(factory=dict)
    untaken: dict[int, GivenConnection] = field(factory=dict)
    """Those of which the worker has not said that it has them."""
    node_id: str = ""
    """What it is to other nodes, once it is ready."""
    links: dict[int, socket.socket] = field(factory=dict)
    """Connections of other nodes that it was given, and of which it has not said that it has
    them."""
    totals: bytes | None = None
    """What it has counted, as it last said."""
    retiring: bool = False
    """Whether another takes its place, so that it gets no more connections."""
    failure: str | None = None
    """Why it could not serve."""
    settled: trio.Event = field(factory=trio.Event)
    """Set once it is ready, or has ended."""
    ended: trio.Event = field(factory=trio.Event)
    _full_until: float = float("-inf")
    _heard_at: float = field(factory=trio.current_time)

    @property
    def key(self) -> int:
        """What it is told apart by, also from another in its slot."""
        return self.process.pid

    @property
    def silent_for(self) -> float:
        """Seconds since it last said something."""
        return trio.current_time() - self._heard_at

    @property
    def state(self) -> WorkerState:
        if self.phase is WorkerState.READY and self._is_late():
            return WorkerState.LATE
        return self.phase

    def _is_late(self) -> bool:
        if self.silent_for > LATE_AFTER:
            return True
        oldest = next(iter(self.untaken.values()), None)
        return oldest is not None and trio.current_time() - oldest.given_at > MAX_TAKING_TIME

    @property
    def has_room(self) -> bool:
        """Whether it can be given a connection now."""
        return (
            self.state is WorkerState.READY
            and not self.retiring
            and len(self.untaken) < MAX_UNTAKEN
            and not self._channel.lost
            and trio.current_time() >= self._full_until
        )

    def give(self, given: GivenConnection) -> None:
        """Hand over a connection."""
        given.child, given.given_at = self, trio.current_time()
        self.connections[given.number] = self.untaken[given.number] = given
        order = Take(given.number, given.accepted_at, given.peer)
        self._channel.send(order, given.accepted)
        if given.crowded:
            self.tell(CrowdOut(given.number))

    def give_link(self, number: int, accepted: socket.socket, preface: bytes) -> None:
        """Hand over the connection of another node, which calls this one."""
        self.links[number] = accepted
        self._channel.send(TakeLink(number, preface), accepted)

    def offer(self, order: Receive, viewer: socket.socket) -> None:
        """Ask it to be ready for a viewer of another worker."""
        self._channel.send(order, viewer)

    def pick_up(self) -> socket.socket | None:
        """The socket that came with its last message."""
        return self._channel.pick_up()

    def note_taken(self, number: int) -> None:
        """Note that it has a connection, whose copy here is closed."""
        if number in self.links:
            self.links.pop(number).close()
        elif (given := self.untaken.pop(number, None)) is not None:
            given.accepted.close()

    def take_back(self, number: int) -> GivenConnection | None:
        """Remove a connection that the worker has given back, or that it has not taken before it
        ended; None for one that it has taken."""
        given = self.untaken.pop(number, None)
        if given is not None:
            self._full_until = trio.current_time() + FULL_PAUSE
        return given

    def tell(self, order: Order) -> None:
        self._channel.send(order)

    def drain(self, timeout: float) -> None:
        """Have its clients come back elsewhere, and give it no new ones."""
        if self.phase is not WorkerState.DRAINING:
            self.phase = WorkerState.DRAINING
            self.tell(Drain(timeout))

    def stop(self) -> None:
        """End it at once."""
        self.phase = WorkerState.DRAINING
        self.tell(Stop())

    async def receive(self) -> Order | News | None:
        """What it says next; None at its end; `ControlError`."""
        news = await self._channel.receive()
        self._heard_at = trio.current_time()
        return news

    async def keep_sending(self) -> None:
        await self._channel.keep_sending()


@asynccontextmanager
async def open_child(
    slot: int, settings: Settings, place: NodePlace, secret: bytes
) -> AsyncIterator[ChildWorker]:
    """Start a worker with these settings, and the secret of the machine; it is killed at the end of
    the block. `OSError`."""
    ours, theirs = socket.socketpair()
    channel = ControlChannel(ours, ControlReader.of_news())
    try:
        with theirs:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "relay.workers.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd=working_directory(),
            )
        try:
            child = ChildWorker(slot, process, channel)
            folder = str(place.folder)
            child.tell(
                Begin(
                    *(VERSION, slot, as_plain(settings)),
                    *(place.machine, folder),
                    address=place.address,
                    secret=secret,
                )
            )
            yield child
        finally:
            process.kill()
            with trio.move_on_after(KILL_TIMEOUT, shield=True):
                await process.wait()
    finally:
        channel.close()
