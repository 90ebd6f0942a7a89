"""A worker: a relay that serves what its parent has accepted.

The parent starts it as `python -m relay.workers.worker DESCRIPTOR`; the descriptor is the worker's
end of the control channel, over which its settings come, too, so that no other process sees the
password of the database. Signals are for the parent. When the parent is gone, the worker drains and
ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import NoReturn

import structlog
import trio
from attrs import define, field

from relay import app
from relay.cluster.links.proof import Preface
from relay.cluster.setup import ClusterParts, NodePlace
from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.guard.failed_auths import AuthKeys, AuthVerdicts
from relay.guard.machine_auths import MachineAuths
from relay.logs.setup import configure_logging
from relay.logs.throttle import ThrottledWarning
from relay.process.garbage import collect_garbage_less_often, keep_what_there_is
from relay.server import Server
from relay.settings.settings import Settings
from relay.transport.acceptance import Acceptance
from relay.transport.certificate import Certificate
from relay.transport.handed import HandedListener, trio_time
from relay.web.machine import Machine, MachineAnswers, MachineSilent, WorkerAnswer
from relay.workers.control import ControlChannel
from relay.workers.messages import (
    MAX_CONTENT_BYTES,
    VERSION,
    Ask,
    Attempted,
    Bans,
    Beat,
    Begin,
    ControlError,
    ControlReader,
    CrowdOut,
    Drain,
    EndConnection,
    Failed,
    Gathered,
    Known,
    KnownTokens,
    Left,
    LogBan,
    News,
    Order,
    Question,
    Ready,
    Receive,
    Received,
    Rotate,
    Settled,
    Stop,
    Take,
    TakeLink,
    Told,
    Took,
)
from relay.workers.moving_viewers import MovingViewers
from relay.workers.shares import from_plain

BEAT_INTERVAL = 1.0
"""Seconds between two messages that say that the worker lives, and what it has counted."""
GOODBYE_BYTES_TIMEOUT = 2.0
"""Seconds to tell the parent the last counts."""
ASK_TIMEOUT = 3.0
"""Seconds for the parent to answer; it waits for one second for the other workers."""
EXIT_FAILED = 2
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

log = structlog.get_logger()


@define(eq=False)
class _SharedQuestion:
    """What workers are asked; those who ask before it begins share the answer."""

    lock: trio.Lock = field(factory=trio.Lock)
    began: float = float("-inf")
    answers: MachineAnswers = field(factory=lambda: MachineAnswers((), {}))


@define(eq=False)
class WorkerSeat:
    """The place of this process on its machine: what the parent tells it, and is told."""

    _channel: ControlChannel
    _settings: Settings
    _nursery: trio.Nursery
    """For answers to the parent, and links."""
    place: NodePlace
    """As a node of the cluster that the workers are."""
    auths: MachineAuths = field(init=False)
    """The attempts to authenticate, which the parent counts for the machine."""
    _secret: bytes = field(repr=False)
    """Of the machine: for the digests of addresses and tokens."""
    _listener: HandedListener | None = None
    _server: Server | None = None
    _machine: Machine | None = None
    _cluster: ClusterParts | None = None
    _rotate: Callable[[], object] | None = None
    _viewers: MovingViewers | None = None
    stopping: trio.CancelScope = field(factory=trio.CancelScope)
    """Cancelled when the worker shall end at once."""
    _numbers: count[int] = field(factory=count)
    _questions: dict[str, _SharedQuestion] = field(factory=dict)
    _answers: dict[int, tuple[trio.Event, list[Gathered]]] = field(factory=dict)
    _no_room: ThrottledWarning = field(
        factory=lambda: ThrottledWarning("no descriptor is free for a connection")
    )

    def __attrs_post_init__(self) -> None:
        verdicts = AuthVerdicts(self._settings.ban_time, self._secret)
        self.auths = MachineAuths(verdicts, self._attempted)

    # -- what app.serve is given

    def listen(self, stall_timeout: float, certificate: Certificate | None) -> HandedListener:
        self._listener = HandedListener(stall_timeout, certificate, self._taken)
        return self._listener

    def begin(
        self,
        server: Server,
        machine: Machine,
        cluster: ClusterParts | None,
        rotate: Callable[[], object] | None,
    ) -> None:
        self._server, self._machine = server, machine
        self._cluster, self._rotate = cluster, rotate
        if cluster is not None and server.context.neighbours is not None:
            self._viewers = server.relocations = MovingViewers(self._channel, server, cluster)

    async def ask(self, what: str, content: bytes = b"") -> MachineAnswers:
        """The answers of all workers; who asks the same without a content shares them.
        `MachineSilent`."""
        if content:
            return await self._ask(what, content)
        asked = trio.current_time()
        question = self._questions.setdefault(what, _SharedQuestion())
        async with question.lock:
            if question.began < asked:
                question.began = trio.current_time()
                question.answers = await self._ask(what)
            return question.answers

    async def _ask(self, what: str, content: bytes = b"") -> MachineAnswers:
        number = next(self._numbers)
        event, found = self._answers[number] = (trio.Event(), [])
        try:
            self._channel.send(Ask(number, what, content))
            with trio.move_on_after(ASK_TIMEOUT):
                await event.wait()
        finally:
            del self._answers[number]
        if not found:
            raise MachineSilent
        (reports,) = found
        return MachineAnswers(
            [
                WorkerAnswer(each.slot, each.content, each.late)
                for each in reports.answers
                if each.content is not None
            ],
            reports.states,
            reports.ended,
        )

    # -- what the parent says

    async def follow(self) -> None:
        """Do what the parent says until it is gone, and drain then."""
        try:
            while (order := await self._channel.receive()) is not None:
                self._obey(order)
        except ControlError:
            log.exception("the parent cannot be understood")
        if self._server is not None:
            self._server.abandon_relocations()
        if self._server is None:
            self.stopping.cancel()
        elif not self._server.draining:
            log.error("the parent is gone")
            self._server.drain(self._settings.drain_timeout)

    def _obey(self, order: Order | News) -> None:
        match order:
            case Take():
                self._take(order)
            case TakeLink():
                self._take_link(order)
            case Drain(timeout):
                self._drain(timeout)
            case Stop():
                self.stopping.cancel()
            case Rotate() if self._rotate is not None:
                self._rotate()
            case Question():
                self._nursery.start_soon(self._report, order)
            case Gathered() if order.question in self._answers:
                event, found = self._answers[order.question]
                found.append(order)
                event.set()
            case Bans() | KnownTokens() | LogBan():
                self._note_auths(order)
            case CrowdOut() | Receive() | Settled() | EndConnection():
                self._obey_about_connection(order)

    def _note_auths(self, order: Bans | KnownTokens | LogBan) -> None:
        match order:
            case Bans(keys):
                self.auths.note_banned(keys)
            case KnownTokens(keys):
                self.auths.note_known(keys)
            case LogBan(key):
                self.auths.log_ban(key)

    def _obey_about_connection(self, order: CrowdOut | Receive | Settled | EndConnection) -> None:
        if isinstance(order, CrowdOut):
            if self._server is not None:
                self._server.crowd_out(order.number)
        elif self._viewers is not None:
            self._viewers.obey(order)
        elif isinstance(order, Receive):
            refused = self._channel.pick_up()
            if refused is not None:
                refused.close()
            self._channel.send(Received(order.number, is_ready=False))

    def _drain(self, timeout: float) -> None:
        if self._server is None:
            self.stopping.cancel()
        elif not self._server.draining:
            self._server.drain(timeout)

    def _take(self, order: Take) -> None:
        accepted = self._channel.pick_up()
        if accepted is None or self._listener is None:
            self._no_room.warn("too many open files")
            self._left(order.number)
            return
        acceptance = Acceptance(order.number, trio_time(order.accepted_at), self._known, self._left)
        self._listener.put(accepted, order.peer, acceptance)

    def _take_link(self, order: TakeLink) -> None:
        handed = self._channel.pick_up()
        self._taken(order.number)
        if handed is None:
            log.warning("no descriptor is free for a link")
            return
        if self._cluster is None:
            handed.close()
        else:
            handed.setblocking(False)  # noqa: FBT003 (positional only)
            preface = Preface.parse(order.preface)
            self._nursery.start_soon(self._cluster.receive, handed, preface)

    async def _report(self, order: Question) -> None:
        machine = self._machine
        content = None if machine is None else await machine.answer(order.what, order.content)
        if content is not None and len(content) > MAX_CONTENT_BYTES:
            log.warning("an answer is too large", what=order.what, bytes=len(content))
            content = None
        self._channel.send(Told(order.question, content))

    # -- what the parent is told

    def _taken(self, number: int) -> None:
        self._channel.send(Took(number))

    def _known(self, number: int) -> None:
        self._channel.send(Known(number))

    def _left(self, number: int) -> None:
        self._channel.send(Left(number))

    def _attempted(self, keys: AuthKeys, good: bool) -> None:  # noqa: FBT001 (called by position)
        self._channel.send(Attempted(keys.address, keys.token, good))

    async def beat(self) -> NoReturn:
        """Tell the parent again and again what was counted."""
        while True:
            self.say_totals()
            await trio.sleep(BEAT_INTERVAL)

    def say_ready(self) -> None:
        assert self._cluster is not None
        self._channel.send(Ready(self._cluster.directory.node.node_id))

    def say_totals(self) -> None:
        if self._machine is not None:
            self._channel.send(Beat(self._machine.totals()))


async def run(channel: ControlChannel, settings: Settings, place: NodePlace, secret: bytes) -> int:
    """Serve until the parent says otherwise; returns the exit status."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.keep_sending)
        seat = WorkerSeat(channel, settings, nursery, place, secret)
        nursery.start_soon(seat.follow)
        status = 0
        try:
            with seat.stopping:
                await _serve(seat, settings)
        except* RelayError as problems:
            status = EXIT_FAILED
            channel.send(Failed(" ".join(map(str, leaves(problems)))))
        seat.say_totals()
        with trio.move_on_after(GOODBYE_BYTES_TIMEOUT):
            await channel.flush()
        nursery.cancel_scope.cancel()
    channel.close()
    return status


async def _serve(seat: WorkerSeat, settings: Settings) -> None:
    async with trio.open_nursery() as beating:
        async with trio.open_nursery() as serving:
            await serving.start(partial(app.serve, settings, seat=seat))
            seat.say_totals()
            seat.say_ready()
            collect_garbage_less_often()
            keep_what_there_is()
            beating.start_soon(seat.beat)
        beating.cancel_scope.cancel()


async def main(descriptor: int) -> int:
    """Run a worker at its end of a control channel; returns the exit status."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)  # noqa: FBT003 (positional only)
    channel = ControlChannel(socket.socket(fileno=descriptor), ControlReader.of_orders())
    begin = await channel.receive()
    if not isinstance(begin, Begin) or begin.version != VERSION:
        return EXIT_FAILED
    settings = from_plain(begin.settings)
    configure_logging(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=begin.slot)
    place = NodePlace(begin.machine, Path(begin.sockets), begin.address)
    return await run(channel, settings, place, begin.secret)


if __name__ == "__main__":
    sys.exit(trio.run(main, int(sys.argv[1])))
