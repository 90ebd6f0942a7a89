"""Phones and viewers: they hear alerts, send frames or look at every one. Floor 6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import trio
from attrs import define, evolve, field

from relay.load.actor import Actor
from relay.load.content import AlertJudge, FrameJudge, Mark, seal
from relay.load.groups import Phones, Viewers
from relay.load.payloads import Payloads
from relay.load.peer import Heard, Peer
from relay.load.stage import Sent, Window
from relay.protocol.messages import now_ms


@define(eq=False)
class Seat:
    """One subscription on one connection."""

    stream: str
    since: float
    judge: FrameJudge | None
    heard: float | None = None
    """When the last frame came."""
    gap: float = 0.0
    """The longest between two."""
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
        # What does not come any more counts as long as somebody still sends.
        end = min(self.stage.now(), self.stage.timeline.end)
        for seat in self.seats.values():
            judge = seat.judge
            if seat.heard is not None:
                self.figures.time("gap").record(max(seat.gap, end - seat.heard))
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
        if seat.heard is not None and now - seat.heard > seat.gap:
            seat.gap = now - seat.heard
        seat.heard = now
        if is_first:
            figures.time("first_frame").record(now - seat.since)
        if mark.due >= seat.since:  # the picture that was there before it came is old by right
            figures.time("frame_age").record(now - mark.due)
