"""A stream that is watched while something fails, and what everybody else sees meanwhile. Also what
`scripts/figures.py faults` measures with.

A phone sends numbered frames. A service watches them all, acknowledges each, sends alerts on the
same connection and consumes them. Beside them a viewer renews its session, and new phones come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio
from attrs import define, field, frozen
from websockets.exceptions import ConnectionClosed

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id, open_peer
from tests.integration.relay_process import PATIENCE, TICK, RelayProcess, until

FPS = 20
WINDOW = 8
"""Frames that may be unacknowledged: an `ack` that is held up soon holds up the frames."""
PAUSE = 0.1
"""Seconds between two attempts of the same."""
MAX_TICK = 2 * TICK
"""Seconds that may go by between two ticks; what goes beyond that, others had the processor."""


@define(eq=False)
class Answers:
    """What one kind of request got."""

    counts: Counter[str] = field(factory=Counter)
    longest: float = 0.0
    """Seconds that an answer took."""

    def note(self, answer: str, seconds: float) -> None:
        self.counts[answer] += 1
        self.longest = max(self.longest, seconds)


@frozen
class Seen:
    """What was seen while something was wrong, and until all was well. Times are seconds."""

    lasted: float
    frames: int
    """That came during all this, each that was sent, in order."""
    longest_gap: float
    """Between two frames, but for what the phone was late with the second, and for the time that
    this machine was too busy for us."""
    answers: dict[str, Answers]
    """To `phone`, `alert`, `renewal` and `ready`, while it was wrong."""
    recovery: dict[str, float]
    """Until each of these was again as it should be, from the moment that nothing was wrong."""

    def describe(self) -> str:
        said = ", ".join(
            f"{name}: {' '.join(f'{answer} ({count})' for answer, count in each.counts.items())}"
            f" within {each.longest:.1f} s"
            for name, each in self.answers.items()
        )
        again = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.recovery.items())
        return (
            f"lasted {self.lasted:.1f} s; {self.frames} frames, none missing,"
            f" {self.longest_gap * 1000:.0f} ms between two at most; {said}; again: {again}"
        )


@define(eq=False)
class Scene:
    """One stream and those around it."""

    relay: RelayProcess
    accounts: Accounts
    token: str
    stream_id: str
    phone: Peer
    watcher: Peer
    viewer: Peer
    sent: int = 0
    received: int = 0
    """The number of the last frame that was watched: each came, in order, or the watcher failed."""
    longest_gap: float = 0.0
    delivered: Counter[str] = field(factory=Counter)
    """The texts of the alerts that came."""
    acknowledged: set[str] = field(factory=set)
    """The texts of those that were accepted."""
    refused: list[str] = field(factory=list)
    """The texts of those that were not."""
    padding: str = ""
    """That comes with each alert."""
    _now: float = 0.0
    """Seconds since the beginning, without those for which this machine was too busy."""
    _last: float = 0.0
    _sent_at: dict[int, float] = field(factory=lambda: {0: 0.0})
    """By the number of the frame; those that have not come, and the one before."""
    _requests: int = 0
    _alerts: int = 0
    _replies: dict[int, Message] = field(factory=dict)
    _asked: dict[int, trio.Event] = field(factory=dict)

    async def stream(self) -> None:
        """Send frames at their rate."""
        while True:
            self.sent += 1
            self._sent_at[self.sent] = self._now
            await self.phone.send_frame(f"frame {self.sent}".encode())
            await trio.sleep(1 / FPS)

    async def keep_time(self) -> None:
        """Let time go by, but for what others have of the processor."""
        last = trio.current_time()
        while True:
            await trio.sleep(TICK)
            last, before = trio.current_time(), last
            self._now += min(last - before, MAX_TICK)

    async def listen(self, peer: Peer) -> None:
        """Read what comes for a peer that nothing is expected of."""
        while True:
            await peer.socket.recv()

    async def watch(self) -> None:
        """Read all that comes for the watcher; fail when a frame is missing."""
        while True:
            message = await self.watcher.receive()
            if message["type"] == "video-frame":
                assert message["seq"] == self.received + 1, (message["seq"], self.received)
                self.received += 1
                late = self._sent_at[self.received] - self._sent_at.pop(self.received - 1) - 1 / FPS
                self.longest_gap = max(self.longest_gap, self._now - self._last - late)
                self._last = self._now
                ack = {"type": "ack", "streamId": self.stream_id, "seq": self.received}
                await self.watcher.send(ack)
            elif message["type"] == "alert":
                self.delivered[message["message"]] += 1
            elif message.get("id") in self._asked:
                self._replies[message["id"]] = message
                self._asked.pop(message["id"]).set()

    # -- what others see

    async def send_alert(self, text: str | None = None) -> str:
        """Send an alert, a new one if no text is given; returns the code of the answer."""
        if text is None:
            self._alerts += 1
            text = f"alert {self._alerts}"
        self._requests += 1
        number, answered = self._requests, trio.Event()
        self._asked[number] = answered
        alert: Message = {"type": "alert", "streamId": self.stream_id, "severity": "high"}
        if self.padding:
            alert["metadata"] = {"padding": self.padding}
        await self.watcher.send({**alert, "message": text, "alertKey": text, "id": number})
        with trio.fail_after(PATIENCE):
            await answered.wait()
        code = str(self._replies.pop(number)["code"])
        if code == "ALERT_ACCEPTED":
            self.acknowledged.add(text)
        else:
            self.refused.append(text)
        return code

    async def come(self) -> str:
        """A new phone comes; returns how it was answered."""
        async with open_peer(self.relay) as peer:
            await peer.send({"type": "auth", "token": self.token})
            reply = await peer.receive()
            if reply["type"] == "success":
                return str(reply["code"])
            with suppress(ConnectionClosed):
                await peer.receive()
            assert reply["retryAfter"] > 0
            return f"{reply['code']}, close {peer.socket.close_code}"

    async def renew(self) -> str:
        """The viewer proves its session again; returns the code of the answer."""
        return str((await self.viewer.authenticate(self.token))["code"])

    async def ask_ready(self) -> str:
        answer = await self.relay.get("/ready")
        report = answer.json()
        trouble = [name for name, state in report["services"].items() if state != "running"]
        said = "" if report["database"] == "ok" else ", database unavailable"
        return f"{answer.status}{said}{''.join(f', {name} not running' for name in trouble)}"

    # -- the whole

    async def through(
        self, fault: AbstractAsyncContextManager[object], *, seconds: float = 0.0
    ) -> Seen:
        """Ask again and again while something is wrong, for so long or once; and then until all is
        well, where every alert that was refused is sent again."""
        probes = {
            "phone": self.come,
            "alert": self.send_alert,
            "renewal": self.renew,
            "ready": self.ask_ready,
        }
        answers = {name: Answers() for name in probes}
        before, self.longest_gap = self.received, 0.0
        began = trio.current_time()
        async with fault, trio.open_nursery() as nursery:
            for name, probe in probes.items():
                # Some of what /ready tells lasts less than a second.
                pause = PAUSE if name == "ready" else 10 * PAUSE
                nursery.start_soon(self._ask, answers[name], probe, seconds, pause)
        over = trio.current_time()
        recovery: dict[str, float] = {}
        async with trio.open_nursery() as nursery:
            for name, wanted in (("ready", "200"), ("phone", "AUTHENTICATED")):
                nursery.start_soon(self._until, recovery, name, probes[name], wanted)
            nursery.start_soon(self._until_all_alerts, recovery)
        await self.frames_go_on()
        return Seen(over - began, self.received - before, self.longest_gap, answers, dict(recovery))

    async def _ask(
        self, answers: Answers, probe: Callable[[], Awaitable[str]], seconds: float, pause: float
    ) -> None:
        """Ask once, and again after each pause until the seconds are over."""
        end = trio.current_time() + seconds
        while True:
            began = trio.current_time()
            answers.note(await probe(), trio.current_time() - began)
            if trio.current_time() >= end:
                return
            await trio.sleep(pause)

    async def _until(
        self,
        recovery: dict[str, float],
        name: str,
        probe: Callable[[], Awaitable[str]],
        wanted: str,
    ) -> None:
        began = trio.current_time()
        await _come_to(wanted, probe)
        recovery[name] = trio.current_time() - began

    async def _until_all_alerts(self, recovery: dict[str, float]) -> None:
        """Send again what was refused, and one more, until all are accepted; and see them come."""
        began = trio.current_time()
        self._alerts += 1
        due, self.refused = [*self.refused, f"alert {self._alerts}"], []
        for text in due:
            await _come_to("ALERT_ACCEPTED", partial(self.send_alert, text))
            recovery.setdefault("alert accepted", trio.current_time() - began)
        await until(lambda: self.acknowledged <= self.delivered.keys())
        recovery["alerts delivered"] = trio.current_time() - began
        self.refused = []
        stored = {text for (text,) in self.accounts.execute("select message from relay.alerts")}
        assert self.acknowledged <= stored
        assert set(self.delivered.values()) <= {1}, self.delivered

    async def frames_go_on(self) -> None:
        """Wait for a frame that is sent from now on."""
        last = self.sent
        await until(lambda: self.received > last)


async def _come_to(wanted: str, probe: Callable[[], Awaitable[str]]) -> None:
    """Try until the answer is what is wanted."""
    with trio.fail_after(PATIENCE):
        while True:
            if await probe() == wanted:
                return
            await trio.sleep(PAUSE)


@asynccontextmanager
async def open_scene(relay: RelayProcess, accounts: Accounts) -> AsyncIterator[Scene]:
    """A stream that is watched, with frames under way, to the end of the block."""
    token, stream_id = accounts.session("ann"), new_stream_id()
    terms: dict[str, Any] = {"policy": "lossless", "window": WINDOW}
    async with (
        login(relay, token) as phone,
        login(relay, accounts.service("*")) as watcher,
        login(relay, token) as viewer,
        trio.open_nursery() as nursery,
    ):
        await phone.register(stream_id)
        await watcher.subscribe(stream_id, **terms)
        scene = Scene(relay, accounts, token, stream_id, phone, watcher, viewer)
        nursery.start_soon(scene.keep_time)
        nursery.start_soon(scene.stream)
        nursery.start_soon(scene.watch)
        nursery.start_soon(scene.listen, phone)
        await until(lambda: scene.received >= FPS // 4)
        yield scene
        nursery.cancel_scope.cancel()
