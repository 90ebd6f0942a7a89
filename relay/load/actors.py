"""Phones, viewers and services: each plays its part, connection after connection. Floor 6."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, ClassVar

import trio
from attrs import define, evolve, field

from relay.client import DialFailed, ServerError
from relay.closing import Ending
from relay.load.content import AlertJudge, FrameJudge, Mark, seal
from relay.load.figures import Figures
from relay.load.network import ShapedLink
from relay.load.payloads import Payloads
from relay.load.peer import Heard, Peer
from relay.load.scenario import Group, Phones, Services, Viewers
from relay.load.schedule import Presence
from relay.load.stage import Raised, Sent, Stage, Window
from relay.protocol.messages import now_ms
from relay.transport.dial import ABNORMAL_CLOSURE, Closed

PATIENCE = 15.0
"""Seconds that connecting and authenticating may take; then it has failed."""
NO_RETURN = 4500
PROMISED = {1000, 1001, 1002, 1007, 1009, ABNORMAL_CLOSURE} | {
    ending.value.code for ending in Ending
}
OWN_CODES = range(4000, 5000)
MOST_UNDER_WAY = 1000
"""Alerts of one service that may be unacknowledged at a time."""


@define(eq=False)
class Actor:
    """One client of a group, over all its connections."""

    stage: Stage
    name: str
    """Of its group."""
    number: int
    presence: Presence
    is_phone: ClassVar[bool] = False
    is_service: ClassVar[bool] = False
    figures: Figures = field(init=False)
    random: Random = field(init=False)
    _retry_after: float = 0.0
    _refused: bool = False

    def __attrs_post_init__(self) -> None:
        self.figures = self.stage.book.group(self.name)
        seed = self.stage.timeline.scenario.seed
        self.random = Random(f"{seed} {self.name} {self.number} actor")  # noqa: S311

    @property
    def group(self) -> Group:
        return self.stage.group(self.name)

    async def live(self) -> None:
        """From joining to leaving. Cancelled, it still says goodbye and hands in what it saw."""
        leave = self.presence.leave
        if leave == self.stage.timeline.end and not self.is_phone:
            leave += self.stage.timeline.scenario.grace
        with trio.CancelScope(deadline=self.stage.epoch + leave):
            due, attempt = self.presence.join, 0
            while True:
                await self.stage.until(due)
                worked = await self._connect_once(due)
                attempt = 0 if worked else attempt + 1
                policy = self.group.reconnect
                if policy is None or self._refused:
                    return
                wait = min(policy.most, policy.after * policy.factor**attempt)
                wait *= 1 - policy.jitter * self.random.random()
                due = self.stage.now() + max(wait, self._retry_after)
                self.figures.counts["reconnects"] += 1

    async def _connect_once(self, due: float) -> bool:
        """One connection, to its end; whether it was one that worked."""
        counts, stage = self.figures.counts, self.stage
        self._retry_after = 0.0
        peer: Peer | None = None
        authenticated = False
        waiting = trio.CancelScope(deadline=trio.current_time() + PATIENCE)
        try:
            with waiting:
                async with stage.connect(
                    self.name,
                    random=self.random,
                    hears=self.hear,
                    msgpack=getattr(self.group, "encoding", "json") == "msgpack",
                    phone=self.is_phone,
                ) as peer:
                    counts["connect.done"] += 1
                    token = stage.address.token(self.number, service=self.is_service)
                    await peer.ask("auth", token=token)
                    authenticated = True
                    counts["auth.done"] += 1
                    self.figures.time("connect_time").record(stage.now() - due)
                    waiting.deadline = float("inf")
                    try:
                        await self.play(peer)
                    finally:
                        self.hand_in()
                    if peer.socket.closed is not None:
                        raise peer.socket.closed
        except DialFailed as failure:
            counts["connect.failed"] += 1
            self.figures.error(str(failure))
        except ServerError as error:
            if error.code == "AUTH_FAILED":
                self._refused = True
            if not authenticated:
                counts["auth.failed"] += 1
            else:
                counts["errors"] += 1
            self._retry_after = (error.retry_after or 0) / 1000
            self.figures.error(str(error))
        except Closed as closed:
            assert peer is not None
            if _was_cut(peer):
                self.figures.error("torn off by the scenario")
            else:
                counts["auth.failed"] += not authenticated
                self._count_close(closed, peer)
        if waiting.cancelled_caught:
            counts["auth.failed" if peer else "connect.failed"] += 1
            self.figures.error(f"no answer in {PATIENCE:g} s")
        return authenticated

    def _count_close(self, closed: Closed, peer: Peer) -> None:
        counts = self.figures.counts
        counts["closes"] += 1
        self._retry_after = ((peer.goodbye and peer.goodbye.retry_after) or 0) / 1000
        if closed.code >= NO_RETURN:
            self._refused = True
        if closed.code in self.group.expect_closes:
            return
        counts["closes.unexpected"] += 1
        if closed.code == ABNORMAL_CLOSURE:
            self.figures.error("connection lost")
            return
        self.figures.error(str(closed))
        if closed.code in OWN_CODES and peer.goodbye is None:
            counts["closes.unannounced"] += 1
        if closed.code not in PROMISED and closed.code not in OWN_CODES:
            self.figures.error(f"close code {closed.code} is in no table")

    async def play(self, peer: Peer) -> None:
        """What it does once it is authenticated; ends by itself when it has done it all."""
        raise NotImplementedError

    def hear(self, heard: Heard, size: int) -> None:  # noqa: ARG002 (for viewers)
        """Take what comes unasked."""
        if heard.type == "error":
            self.figures.counts["errors"] += 1
            self.figures.error(f"{heard.code}: {heard.message}")

    def hand_in(self) -> None:
        """Keep what was seen on the connection that ends now."""


def _was_cut(peer: Peer) -> bool:
    stream = peer.socket.stream
    return peer.was_cut or (isinstance(stream, ShapedLink) and stream.was_cut)


@define(eq=False)
class Seat:
    """One subscription on one connection."""

    stream: str
    since: float
    judge: FrameJudge | None
    counts: dict[str, AlertJudge] = field(factory=dict)
    """By sender."""


@define(eq=False)
class Listener(Actor):
    """An actor that hears alerts, and perhaps frames."""

    seats: dict[str, Seat] = field(factory=dict)

    def hear(self, heard: Heard, size: int) -> None:
        if heard.type == "alert":
            self._hear_alert(heard)
        else:
            super().hear(heard, size)

    def _hear_alert(self, heard: Heard) -> None:
        words = (heard.message or "").split(" ")
        seat = self.seats.get(heard.stream_id or "")
        if seat is None or len(words) != 5 or words[:2] != ["load", self.stage.run]:
            if seat is None:
                self.figures.error("an alert of another stream")
            return
        sender, number, due = words[2], int(words[3]), int(words[4]) / 1_000_000
        judge = seat.counts.get(sender)
        if judge is None:
            judge = seat.counts[sender] = AlertJudge(self.figures.counts)
        if judge.take(number):
            self.figures.time("alert_age").record(self.stage.now() - due)

    def hand_in(self) -> None:
        for seat in self.seats.values():
            judge = seat.judge
            first = judge.first if judge else None
            last = judge.last.number if judge and judge.last else None
            alerts = {sender: each.got for sender, each in seat.counts.items()}
            self.stage.add_window(
                Window(
                    self.name,
                    seat.stream,
                    seat.since,
                    self.stage.now(),
                    judge is not None,
                    first,
                    last,
                    alerts,
                )
            )
        self.seats.clear()


@define(eq=False)
class Phone(Listener):
    """Films: sends each frame when it is due, over however many connections."""

    payloads: Payloads = field(kw_only=True)
    is_phone: ClassVar[bool] = True
    _due: Iterator[float] = field(init=False)
    _next: float | None = None
    _last: int = 0
    _life: int = 0
    _sent: Sent | None = None
    """On this connection."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._due = self.payloads.due(self.stage.timeline, self.name, self.number, self.presence)
        self._next = next(self._due, None)

    async def play(self, peer: Peer) -> None:
        stream = self.stage.stream_id(self.name, self.number)
        self._life += 1
        self.seats[stream] = Seat(stream, self.stage.now(), None)
        await peer.ask("register", streamId=stream, produces=["video-frame"], consumes=["alert"])
        # Its camera starts when it may send; what was due while it was away later is left out.
        while self._next is not None and self._next < self.stage.now():
            self.figures.counts["withheld"] += self._life > 1
            self._next = next(self._due, None)
        self._sent = None
        async with peer.listening():
            await self._film(peer, stream)
            await trio.sleep_forever()

    async def _film(self, peer: Peer, stream: str) -> None:
        counts, stage = self.figures.counts, self.stage
        group = self.group
        assert isinstance(group, Phones)
        while (due := self._next) is not None:
            await stage.until(due)
            self._next = next(self._due, None)
            if stage.now() - due > group.backlog:
                counts["withheld"] += 1
                continue
            mark = Mark(stage.run_id, self.number, self._life, self._last + 1, due)
            data = seal(self.payloads.body(self._last), mark)
            self._last += 1
            counts["unsure"] += 1
            await peer.say("video-frame", data=data, timestamp=now_ms())
            counts["unsure"] -= 1
            counts["sent"] += 1
            begun = self._sent or Sent(stream, due, due, self._last, self._last)
            self._sent = evolve(begun, end=due, last=self._last)

    def hand_in(self) -> None:
        super().hand_in()
        if self._sent is not None:
            self.stage.sent.append(self._sent)
            self._sent = None


@define(eq=False)
class Viewer(Listener):
    """Watches streams and looks at every frame."""

    _acks: list[dict[str, Any]] | None = None

    async def play(self, peer: Peer) -> None:
        group = self.group
        assert isinstance(group, Viewers)
        terms = {"policy": group.policy, "maxFps": group.max_fps, "window": group.window}
        given = {key: value for key, value in terms.items() if value is not None}
        if group.policy == "latest":
            given.pop("policy")
        self._acks = peer.acks if group.window else None
        phones = self.stage.timeline.most(group.watch)
        for offset in range(min(group.each, phones)):
            number = (self.number * group.each + offset) % phones
            stream = self.stage.stream_id(group.watch, number)
            judge = FrameJudge(self.stage.run_id, number, self.figures.counts)
            self.seats[stream] = Seat(stream, self.stage.now(), judge)
            await peer.ask("subscribe", streamId=stream, consumes=["video-frame", "alert"], **given)
        while True:
            await peer.read()

    def hear(self, heard: Heard, size: int) -> None:
        if heard.type != "video-frame":
            super().hear(heard, size)
            return
        figures = self.figures
        figures.counts["frames.bytes"] += size
        seat = self.seats.get(heard.stream_id or "")
        if seat is None or seat.judge is None:
            figures.counts["received"] += 1
            figures.counts["foreign"] += 1
            return
        judge = seat.judge
        is_first = judge.last is None
        mark = judge.take(heard.data or b"", heard.seq)
        if self._acks is not None:
            self._acks.append({"streamId": seat.stream, "seq": heard.seq})
        if mark is None:
            return
        now = self.stage.now()
        if is_first:
            figures.time("first_frame").record(now - seat.since)
        if mark.due >= seat.since:  # the picture that was there before it came is old by right
            figures.time("frame_age").record(now - mark.due)


@define(eq=False)
class Service(Actor):
    """Raises alerts when they are due, and again until they are acknowledged."""

    is_service: ClassVar[bool] = True
    _numbers: dict[str, int] = field(factory=dict)
    _pending: dict[str, tuple[str, int, float]] = field(factory=dict)
    """By its key, what was raised and not acknowledged."""
    _due: Iterator[float] = field(init=False)
    _turn: int = 0

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._due = self.stage.timeline.alerts_due(self.name, self.number, self.presence)

    @property
    def sender(self) -> str:
        return f"{self.name}-{self.number}"

    async def play(self, peer: Peer) -> None:
        async with peer.listening(), trio.open_nursery() as nursery:
            for key in tuple(self._pending):
                nursery.start_soon(self._raise, peer, key)
            group = self.group
            assert isinstance(group, Services)
            phones = self.stage.timeline.most(group.watch)
            for due in self._due:
                await self.stage.until(due)
                if len(self._pending) >= MOST_UNDER_WAY:
                    self.figures.counts["alerts.failed"] += 1
                    continue
                number = (self.number + self._turn) % phones
                self._turn += 1
                stream = self.stage.stream_id(group.watch, number)
                self._numbers[stream] = self._numbers.get(stream, 0) + 1
                key = f"{self.stage.run}-{self.sender}-{number}-{self._numbers[stream]}"
                self._pending[key] = (stream, self._numbers[stream], due)
                self.figures.counts["alerts.sent"] += 1
                nursery.start_soon(self._raise, peer, key)
            await trio.sleep_forever()

    async def _raise(self, peer: Peer, key: str) -> None:
        stream, number, due = self._pending[key]
        group = self.group
        assert isinstance(group, Services)
        words = f"load {self.stage.run} {self.sender} {number} {round(due * 1_000_000)}"
        try:
            await peer.ask(
                "alert", streamId=stream, severity=group.severity, message=words, alertKey=key
            )
        except Closed:
            return  # it stays pending, for the next connection
        except ServerError as error:
            self.figures.counts["alerts.failed"] += 1
            self.figures.error(str(error))
            del self._pending[key]
            return
        del self._pending[key]
        now = self.stage.now()
        self.figures.counts["alerts.accepted"] += 1
        self.figures.time("ack_time").record(now - due)
        self.stage.raised.append(Raised(self.sender, stream, number, due, now))
