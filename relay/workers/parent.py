"""The parent of several workers: it accepts connections and gives them away.

It serves nobody itself. It opens what the workers share (the addresses, the embedded PostgreSQL),
starts them, starts them again, and stops them. It reads nothing from a client; see `peek.py` for
what it looks at.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Sequence
from itertools import count
from typing import NoReturn

import structlog
import trio
from attrs import define, field

from relay.app import listen_as_set, load_certificate, open_place, open_shared_database
from relay.cluster.links.doors import Gate, accept_sockets
from relay.cluster.links.handshake import read_preface
from relay.cluster.setup import NodePlace
from relay.concurrency.backoff import Backoff
from relay.errors import ConfigError, StoppedAtOnce
from relay.guard.client_address import ClientAddress
from relay.guard.connection_limits import ConnectionLimits
from relay.guard.guard import Guard
from relay.process.rlimit import raise_open_file_limit
from relay.process.signals import handle_hangup
from relay.settings.settings import Settings
from relay.transport.listener import TcpListener
from relay.workers.attempts import AttemptsOfMachine
from relay.workers.child import (
    MAX_UNTAKEN,
    STUCK_AFTER,
    ChildWorker,
    GivenConnection,
    WorkerState,
    open_child,
)
from relay.workers.gathering import Gathering
from relay.workers.messages import (
    Ask,
    Attempted,
    Beat,
    ControlError,
    EndElsewhere,
    Failed,
    Known,
    Left,
    News,
    Order,
    Ready,
    Received,
    Relocate,
    Rotate,
    Told,
    Took,
)
from relay.workers.peek import Glimpse, peek
from relay.workers.placement import Placement
from relay.workers.relocations import MAX_OFFERED, OfferedViewers
from relay.workers.shares import settings_of_worker

MAX_PEEKING = 512
"""Connections whose first bytes are waited for; the next ones are given away without a look."""
WATCH_INTERVAL = 0.5
START_TIMEOUT_OF_WORKER = 60.0
"""Seconds for a worker to be ready."""
FIRST_RESTART_PAUSE, MAX_RESTART_PAUSE = 0.1, 5.0
"""Seconds before a worker is started again: doubled each time."""
STABLE_WORKER_AFTER = 60.0
"""Seconds of running after which the next end of a worker counts as the first."""
EXIT_TIMEOUT = 5.0
"""Seconds that a worker may take to end behind the end of its clients, to write the audit."""
STOP_NOW_TIMEOUT = 2.0
"""Seconds for workers to end at once."""
MAX_UNTAKEN_WAIT = 1.0
"""Seconds for a worker that is replaced to take the last connections that it was given."""

log = structlog.get_logger()


async def serve_with_workers(
    settings: Settings, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a relay of `settings.workers` processes; as `relay.app.serve`.

    SIGUSR2 starts all workers anew, one after the other.
    """
    # One that comes before they run, or is still to be obeyed when they end, ends nothing: a signal
    # that nobody has taken goes back to what was set here.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    certificate = load_certificate(settings)  # an error comes before anything is started
    raise_open_file_limit(MAX_PEEKING + MAX_OFFERED + MAX_UNTAKEN * settings.workers)
    listeners = await listen_as_set(settings, certificate)
    try:
        async with (
            open_shared_database(settings, settings.workers) as shared,
            open_place(shared) as (place, doors),
        ):
            parent = Parent(shared, Guard.build(shared), place)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept_sockets, doors, parent.pass_link)
                await nursery.start(parent.restart_on_signal)
                await nursery.start(parent.run)
                await nursery.start(parent.obey_signals)
                await nursery.start(handle_hangup, None if certificate is None else parent.rotate)
                task_status.started([listener.url for listener in listeners])
                await parent.accept(listeners)
                await parent.wait_for_end()
                if parent.stopped_at_once:
                    raise StoppedAtOnce
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()


@define(eq=False)
class WorkerSlot:
    """One of the N places for a worker."""

    number: int
    current: ChildWorker | None = None
    backoff: Backoff = field(factory=lambda: Backoff(FIRST_RESTART_PAUSE, MAX_RESTART_PAUSE))


@define(eq=False)
class Parent:
    """Accepts connections for its workers, and keeps these running."""

    _settings: Settings
    _guard: Guard
    _place_of_nodes: NodePlace
    """Of the workers, as nodes of a cluster."""
    draining: bool = False
    stopped_at_once: bool = False
    slots: list[WorkerSlot] = field(init=False)
    children: list[ChildWorker] = field(init=False, factory=list)
    """All worker processes, also those that drain."""
    _share: Settings = field(init=False)
    _placement: Placement = field(init=False)
    _gathering: Gathering = field(init=False)
    _offered: OfferedViewers = field(init=False)
    _attempts: AttemptsOfMachine | None = field(init=False, default=None)
    """None where nothing is limited."""
    _limits: ConnectionLimits = field(init=False)
    """Counts the connections that are not authenticated."""
    _serving: bool = field(init=False, default=False)
    """Whether all workers have been ready."""
    _numbers: count[int] = field(init=False, factory=lambda: count(1))
    _peeking: int = field(init=False, default=0)
    _gate: Gate = field(init=False, factory=Gate)
    _waiting: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    """Tasks that wait for news of a worker."""
    _accepting: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _ending: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    """Its deadline is that of the workers that drain."""
    _nursery: trio.Nursery = field(init=False)

    def __attrs_post_init__(self) -> None:
        workers = self._settings.workers
        self.slots = [WorkerSlot(number) for number in range(1, workers + 1)]
        self._share = settings_of_worker(self._settings, workers)
        capped = self._settings.profile != "load"
        self._placement = Placement(self._share.max_connections if capped else None)
        self._limits = self._guard.connections
        self._gathering = Gathering(self.children)
        self._offered = OfferedViewers(self.children, self._placement, self._limits.leave)
        if self._guard.failed_auths is not None:
            self._attempts = AttemptsOfMachine(self._guard.failed_auths, self.children)

    # -- the workers

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep all workers running; started when they are ready. `ConfigError` when one cannot
        serve at all."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            attempts = self._attempts
            if attempts is not None:
                nursery.start_soon(attempts.keep_telling)
            try:
                started = [await self._start(slot) for slot in self.slots]
            except OSError as problem:
                raise ConfigError(f"no worker can be started: {problem}") from None
            for slot, child in zip(self.slots, started, strict=True):
                with trio.move_on_after(START_TIMEOUT_OF_WORKER):
                    await child.settled.wait()
                if child.failure is not None:
                    raise ConfigError(child.failure)
                if child.phase is not WorkerState.READY:
                    raise ConfigError(f"worker {slot.number} did not start; the log says why")
            self._serving = True
            nursery.start_soon(self._watch)
            task_status.started()

    async def _start(self, slot: WorkerSlot) -> ChildWorker:
        """Start a worker as the current one of a slot."""
        child: ChildWorker = await self._nursery.start(self._live, slot)
        slot.current = child
        return child

    async def _live(self, slot: WorkerSlot, *, task_status: trio.TaskStatus[ChildWorker]) -> None:
        """Run a worker to its end; if it is the current one of its slot, start another."""
        began = trio.current_time()
        attempts = self._attempts
        secret = b"" if attempts is None else attempts.secret
        async with open_child(slot.number, self._share, self._place_of_nodes, secret) as child:
            self.children.append(child)
            if attempts is not None:
                attempts.welcome(child)
            task_status.started(child)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.keep_sending)
                await self._listen_to(child)
                with trio.move_on_after(EXIT_TIMEOUT):
                    await child.process.wait()
                nursery.cancel_scope.cancel()
        self._bury(child)
        if slot.current is not child:
            return
        slot.current = None
        if self.draining or not (self._serving or child.phase is WorkerState.READY):
            return  # before all have been ready, `run` says what is wrong
        log.error("worker ended", worker=slot.number, status=child.process.returncode)
        if trio.current_time() - began >= STABLE_WORKER_AFTER:
            slot.backoff.reset()
        self._nursery.start_soon(self._start_again, slot)

    async def _start_again(self, slot: WorkerSlot) -> None:
        await trio.sleep(slot.backoff.next())
        if not self.draining and slot.current is None:
            try:
                await self._start(slot)
            except OSError as problem:
                log.error(  # noqa: TRY400 (the reason says it all)
                    "worker cannot be started", worker=slot.number, reason=str(problem)
                )
                self._nursery.start_soon(self._start_again, slot)

    async def _listen_to(self, child: ChildWorker) -> None:
        """Note what a worker says, to its end."""
        try:
            while (news := await child.receive()) is not None:
                self._note(child, news)
                if self._waiting:
                    self._waiting.unpark_all()
        except ControlError:
            log.exception("a worker cannot be understood", worker=child.slot)
            child.process.kill()

    def _note(self, child: ChildWorker, news: Order | News) -> None:
        match news:
            case Took() | Known() | Left():
                self._note_about_connection(child, news)
            case Beat(totals):
                child.totals = totals
            case Ready(node_id):
                child.node_id = node_id
                child.phase = WorkerState.READY
                child.settled.set()
            case Failed(reason):
                child.failure = reason
                log.error("worker failed", worker=child.slot, reason=reason)
            case Ask():
                self._nursery.start_soon(self._gathering.answer, child, news)
            case Attempted() if self._attempts is not None:
                self._attempts.note(child, news)
            case Told():
                self._gathering.note(child, news)
            case Relocate() | Received() | EndElsewhere():
                self._offered.note(child, news)

    def _note_about_connection(self, child: ChildWorker, news: Took | Known | Left) -> None:
        match news:
            case Took(number):
                child.note_taken(number)
            case Known(number) if number in child.connections:
                self._limits.authenticated(child.connections[number], None)
            case Left(number):
                self._leave(child, number)

    def _bury(self, child: ChildWorker) -> None:
        """Note that a worker has ended."""
        self.children.remove(child)
        self._gathering.retire(child)
        for number in list(child.connections):
            self._leave(child, number)
        self._offered.note_ended(child)
        while child.links:
            child.links.popitem()[1].close()
        child.settled.set()
        child.ended.set()

    def _leave(self, child: ChildWorker, number: int) -> None:
        """A connection of a worker is over; one that it did not take gets another."""
        given = child.connections.pop(number, None)
        if given is None:
            return
        self._placement.remove(given.hint, child.key)
        given.child = None
        if self._offered.keeps(child, number):
            pass
        elif child.take_back(number) is None:
            self._limits.leave(given)
        elif self.draining:
            self._drop(given)
        else:
            self._nursery.start_soon(self._give, given)

    def _drop(self, given: GivenConnection) -> None:
        self._limits.leave(given)
        given.accepted.close()

    async def _watch(self) -> NoReturn:
        """Kill workers that say nothing any more, and leave viewers to the others."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            self._offered.expire()
            for child in self.children:
                starting = child.phase is WorkerState.STARTING
                if child.silent_for > (START_TIMEOUT_OF_WORKER if starting else STUCK_AFTER):
                    log.error("worker is stuck: it is killed", worker=child.slot)
                    child.process.kill()

    # -- connections

    async def accept(self, listeners: Sequence[TcpListener]) -> None:
        """Accept connections until told to drain."""
        with self._accepting:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._accept_at, listener)
        for listener in listeners:
            listener.close()

    async def _accept_at(self, listener: TcpListener) -> NoReturn:
        while True:
            await self._wait_for_room()
            accepted, peer = await listener.accept_client()
            accepted.setblocking(False)  # noqa: FBT003 (positional only)
            given = GivenConnection(
                *(next(self._numbers), accepted, peer),
                *(time.monotonic(), ClientAddress.of_peer(peer)),
            )
            self._limits.enter(given, given.address.key)
            self._nursery.start_soon(self._place, given)

    async def _wait_for_room(self) -> None:
        while not (self.draining or any(child.has_room for child in self.children)):
            await self._waiting.park()

    async def _place(self, given: GivenConnection) -> None:
        """Give a connection to a worker, after a look at its first bytes."""
        behind_header = self._guard.proxies.owe_header(given.address)
        encrypted = self._settings.tls_certificate is not None or self._settings.dev_tls
        if (behind_header or not encrypted) and self._peeking < MAX_PEEKING:
            self._peeking += 1
            glimpse = Glimpse()
            try:
                with given.peeking:
                    glimpse = await peek(given.accepted, behind_header=behind_header)
            finally:
                self._peeking -= 1
            given.hint = glimpse.hint
            if glimpse.client is not None:
                given.address = ClientAddress.parse(glimpse.client)
                self._limits.move(given, given.address.key)
        await self._give(given)

    async def _give(self, given: GivenConnection) -> None:
        await self._wait_for_room()
        if self.draining:
            self._drop(given)
            return
        with_room = {child.key: child for child in self.children if child.has_room}
        key = self._placement.choose(given.hint, with_room)
        self._placement.add(given.hint, key)
        with_room[key].give(given)

    async def pass_link(self, accepted: socket.socket) -> None:
        """Give the connection of another node to the worker that it calls."""
        preface = await self._gate.admit(accepted, read_preface)
        if preface is None:
            return
        for child in self.children:
            if child.node_id == preface.target:
                child.give_link(next(self._numbers), accepted, preface.encode())
                return
        accepted.close()

    # -- the end, and a new beginning

    async def obey_signals(self, *, task_status: trio.TaskStatus[None]) -> NoReturn:
        """Drain on SIGTERM or SIGINT; end at once on the second."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            await anext(signals)
            self.drain()
            await anext(signals)
            self.stopped_at_once = True
            for child in self.children:
                child.stop()
            self._ending.deadline = trio.current_time() + STOP_NOW_TIMEOUT
            await trio.sleep_forever()
        raise AssertionError("nothing ends this task but its nursery")

    def drain(self) -> None:
        """Accept nothing more, and have all clients told to come back later."""
        log.info("draining", workers=len(self.children))
        self.draining = True
        for child in self.children:
            child.drain(self._settings.drain_timeout)
        timeout = self._settings.drain_timeout + self._settings.offline_grace + EXIT_TIMEOUT
        self._ending.deadline = trio.current_time() + timeout
        self._accepting.cancel()
        self._waiting.unpark_all()

    async def wait_for_end(self) -> None:
        """Wait until all workers have drained, or have taken too long."""
        with self._ending:
            for child in list(self.children):
                await child.ended.wait()

    def rotate(self) -> None:
        """Have all workers read the certificate again."""
        for child in self.children:
            child.tell(Rotate())

    async def restart_on_signal(self, *, task_status: trio.TaskStatus[None]) -> NoReturn:
        """Start all workers anew on SIGUSR2."""
        with trio.open_signal_receiver(signal.SIGUSR2) as signals:
            task_status.started()
            async for _ in signals:
                if self._serving and not self.draining:
                    await self.restart_workers()
        raise AssertionError("signals do not end")

    async def restart_workers(self) -> None:
        """Replace one worker after the other; the old one drains when the new one is ready."""
        log.info("starting all workers anew")
        for slot in self.slots:
            if not await self._replace(slot):
                log.error("the old workers stay: a new one is not ready", worker=slot.number)
                return
        log.info("all workers were started anew")

    async def _replace(self, slot: WorkerSlot) -> bool:
        old = slot.current
        if old is None:  # it ended a moment ago, and is started again
            return True
        try:
            new: ChildWorker = await self._nursery.start(self._live, slot)
        except OSError as problem:
            log.error(  # noqa: TRY400 (the reason says it all)
                "worker cannot be started", worker=slot.number, reason=str(problem)
            )
            return False
        with trio.move_on_after(START_TIMEOUT_OF_WORKER):
            await new.settled.wait()
        if self.draining:
            new.drain(0.0)
            return False
        if new.phase is not WorkerState.READY:
            new.process.kill()
            return False
        slot.current = new
        await self._retire(old)
        return True

    async def _retire(self, old: ChildWorker) -> None:
        """Drain a worker when it has taken what it was given, and wait for its end."""
        old.retiring = True
        with trio.move_on_after(MAX_UNTAKEN_WAIT):
            while old.untaken:
                await self._waiting.park()
        old.drain(self._settings.drain_timeout)
        settings = self._settings
        with trio.move_on_after(settings.drain_timeout + settings.offline_grace + EXIT_TIMEOUT):
            await old.ended.wait()
        old.process.kill()
        await old.ended.wait()
