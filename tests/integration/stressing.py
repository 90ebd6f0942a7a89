"""Rounds of random clients against a real relay; each checks what it gets, and all the ledger.

In a round some phones send frames of all sizes, and viewers of all manners watch: fast ones, slow
ones, some that stall, that read a byte at a time, that ping without end, that subscribe again on
other terms, in both encodings. In a polite round all of them take leave, so that what they saw is
exactly what the relay counts as written. In a rough one they vanish in many ways, phones too.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import trio
from attrs import define, field, frozen

from relay.transport.wire import BINARY, CLOSE, TEXT
from tests.integration.relay_process import RelayProcess, until
from tests.integration.rough_socket import RoughSocket, open_rough
from tests.integration.sight import Content, Failed, Record, Sight
from tests.unit.hostile import masked_frame

PATIENCE = 60.0
"""Seconds that a client may take from the end of its round to its own end."""
GOODBYE = masked_frame(CLOSE, b"\x03\xe8")
SIZES = (0, 100, 100, 1500, 1500, 8_000, 8_000, 16_384, 16_384, 65_536, 300_000)
"""Bytes of frames, at most."""
MANNERS = ("fast", "fast", "slow", "stalling", "nibbling", "pinging", "fickle")


@frozen
class Plan:
    """What a round is made of."""

    name: str
    """Which no other round against this relay has."""
    clients: int
    seconds: float
    rough: bool

    @property
    def streams(self) -> int:
        return max(2, self.clients // 25)


@frozen
class Outcome:
    """What a round did, as its clients and the relay counted it."""

    seen: int
    written: int
    dropped: int
    too_slow: int
    """Viewers that the relay gave up."""


@define(eq=False)
class Round:
    """What the clients of one round share."""

    relay: RelayProcess
    token: str
    plan: Plan
    record: Record = field(factory=Record)
    over: trio.Event = field(factory=trio.Event)
    """No new frames: it is time to leave."""
    came: int = 0
    """Phones and viewers that have begun."""
    all_came: trio.Event = field(factory=trio.Event)
    too_slow: int = 0
    sent: int = 0

    def stream_id(self, stream: int) -> str:
        return f"{self.plan.name}:{stream}"

    def come(self) -> None:
        self.came += 1
        if self.came == self.plan.clients + self.plan.streams:
            self.all_came.set()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the round."""
        with trio.move_on_after(seconds):
            await self.over.wait()


async def run_round(relay: RelayProcess, token: str, plan: Plan) -> Outcome:
    """Play one round; `Failed` when somebody saw what must not be."""
    before = await relay.stats()
    played = Round(relay, token, plan)
    random = Random(plan.name)
    async with trio.open_nursery() as nursery:
        for stream in range(plan.streams):
            nursery.start_soon(Phone(played, Random(random.random()), stream=stream).run)
        for _ in range(plan.clients):
            nursery.start_soon(Viewer(played, Random(random.random())).run)
        with _patience("all clients to begin"):
            await played.all_came.wait()
        await trio.sleep(plan.seconds)
        played.over.set()
    return await _settle(played, before)


async def _settle(played: Round, before: dict[str, Any]) -> Outcome:
    """Wait until the relay has noticed that all are gone, and look at its books."""

    async def forgotten() -> bool:
        return not (await played.relay.stats())["connections"]

    await until(forgotten)
    after = await played.relay.stats()
    frames, dropped = after["frames_to_consumers"], after["frames_to_consumers"]["dropped"]
    written = frames["written"] - before["frames_to_consumers"]["written"]
    if after["streams"]["consumers"] or frames["waiting"]:
        raise Failed(f"left behind: {after['streams']}, {frames}")
    if frames["accepted"] != frames["written"] + sum(dropped.values()):
        raise Failed(f"the ledger is out: {frames}")
    for ending in ("internal_error", "idle_timeout", "overloaded"):
        if after["endings"].get(ending):
            raise Failed(f"connections ended with {ending}: {after['endings']}")
    seen = played.record.frames
    exact = not played.plan.rough and not played.too_slow
    if seen > written or (exact and seen != written):
        raise Failed(f"{seen} frames were seen, and {written} written")
    accepted = after["frames_accepted"] - before["frames_accepted"]
    if accepted > played.sent or (not played.plan.rough and accepted != played.sent):
        raise Failed(f"{played.sent} frames were sent, and {accepted} accepted")
    drops = sum(dropped.values()) - sum(before["frames_to_consumers"]["dropped"].values())
    return Outcome(seen, written, drops, played.too_slow)


@contextmanager
def _patience(what: str) -> Iterator[None]:
    with trio.move_on_after(PATIENCE) as scope:
        yield
    if scope.cancelled_caught:
        raise Failed(f"waited {PATIENCE:g} s for {what}")


@define(eq=False)
class Client:
    """A connection with its manners of reading."""

    round: Round
    random: Random
    manner: str = "fast"
    hurry: trio.Event = field(factory=trio.Event)
    """Read on as fast as can be: it is going to leave."""
    ended: trio.Event = field(factory=trio.Event)
    """Nothing more will come."""
    replies: list[dict[str, Any]] = field(factory=list)
    replied: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def log_in(self, socket: RoughSocket, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.listen, socket)
        await socket.say(type="auth", token=self.round.token)
        await self.reply(code="AUTHENTICATED")

    async def reply(self, **fields: Any) -> dict[str, Any] | None:
        """The reply with these fields; None when the connection ends before it comes."""
        with _patience(f"{fields}"):
            while True:
                for reply in self.replies:
                    if fields.items() <= reply.items():
                        self.replies.remove(reply)
                        return reply
                if self.ended.is_set():
                    return None
                await self.replied.park()
        raise AssertionError

    async def listen(self, socket: RoughSocket) -> None:
        while (messages := await socket.receive(await self._next_read())) is not None:
            for message in messages:
                await self.take(socket, message)
        self.ended.set()
        self.replied.unpark_all()

    async def take(self, socket: RoughSocket, message: dict[str, Any]) -> None:
        if message["type"] in ("success", "error"):
            self.replies.append(message)
            self.replied.unpark_all()

    async def leave(self, socket: RoughSocket) -> None:
        """Close, and hear the server's Close."""
        self.hurry.set()
        await socket.send(GOODBYE, last=True)
        with _patience("the end of a connection that was closed"):
            await self.ended.wait()
        if socket.closed_with is None:
            raise Failed(f"a {self.manner} client got no answer to its Close")

    async def _next_read(self) -> int:
        """How many bytes to read next, after how long."""
        random = self.random
        if self.hurry.is_set():
            return 1 << 16
        match self.manner:
            case "slow":
                await self._dawdle(random.choice([0.001, 0.01, 0.05]))
                return random.choice([100, 1000, 4000])
            case "stalling" if random.random() < 0.02:
                await self._dawdle(random.uniform(0.2, 2))
            case "nibbling" if random.random() < 0.95:
                return random.choice([1, 1, 1, 2, 7])
            case "abandoned":
                await self._dawdle(float("inf"))
        return 1 << 16

    async def _dawdle(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.hurry.wait()


@define(eq=False)
class Viewer(Client):
    """Watches some streams, until the round is over or it has had enough."""

    sights: dict[str, Sight] = field(factory=dict)
    asked: dict[str, list[Sight]] = field(factory=dict)
    """Subscriptions that are not answered yet."""
    may_be_lossless: bool = False
    may_be_too_slow: bool = False
    broke_the_protocol: bool = False

    async def run(self) -> None:
        random, plan = self.random, self.round.plan
        self.manner = random.choice(MANNERS)
        buffer = None if random.random() < 0.3 else random.choice([2304, 8192, 65_536])
        quick = buffer is None and self.manner in ("fast", "pinging", "fickle")
        self.may_be_lossless = quick or plan.rough
        await trio.sleep(random.uniform(0, min(1, plan.seconds / 4)))
        binary = random.random() < 0.5
        connecting = open_rough(self.round.relay, random, binary=binary, receive_buffer=buffer)
        async with connecting as socket, trio.open_nursery() as nursery:
            await self.log_in(socket, nursery)
            socket.rough = True
            number = 1 if random.random() < 0.7 else 3
            for stream in random.sample(range(plan.streams), min(number, plan.streams)):
                await self.subscribe(socket, stream)
            self.round.come()
            way = random.choice(["close", "vanish", "fin", "breach", "abandon", "polite"])
            await self.act(socket, enough=0.03 if plan.rough else 0)
            await self.take_leave(socket, way if plan.rough else "polite")
            nursery.cancel_scope.cancel()

    async def act(self, socket: RoughSocket, *, enough: float) -> None:
        """Do this and that until the round is over; `enough`: the chance to leave each time."""
        random = self.random
        while not (self.round.over.is_set() or self.ended.is_set() or random.random() < enough):
            await self.round.pause(random.uniform(0, 0.3))
            if self.manner == "pinging":
                pings = [socket.ping() for _ in range(random.choice([1, 1, 3]))]
                await socket.send(b"".join(pings))
            elif self.manner == "fickle":
                stream = random.randrange(self.round.plan.streams)
                name = self.round.stream_id(stream)
                if name in self.sights and random.random() < 0.5:
                    await self.unsubscribe(socket, name)
                else:
                    await self.subscribe(socket, stream)

    async def subscribe(self, socket: RoughSocket, stream: int) -> None:
        random, name = self.random, self.round.stream_id(stream)
        sight = Sight(stream, self.round.record)
        terms: dict[str, Any] = {}
        if random.random() < 0.3:
            sight.window = terms["window"] = random.choice([1, 2, 8])
        if self.may_be_lossless and random.random() < 0.4:
            sight.lossless, terms["policy"] = True, "lossless"
            self.may_be_too_slow = True
        elif random.random() < 0.1:
            terms["maxFps"] = random.choice([2, 15])
        self.asked.setdefault(name, []).append(sight)
        await socket.say(type="subscribe", streamId=name, consumes=["video-frame"], **terms)
        await self.reply(code="SUBSCRIBED", streamId=name)

    async def unsubscribe(self, socket: RoughSocket, name: str) -> None:
        await socket.say(type="unsubscribe", streamId=name)
        await self.reply(code="UNSUBSCRIBED", streamId=name)

    async def take(self, socket: RoughSocket, message: dict[str, Any]) -> None:
        if message["type"] == "video-frame":
            await self.see(socket, message)
        elif message.get("code") == "SUBSCRIBED":
            self.sights[message["streamId"]] = self.asked[message["streamId"]].pop(0)
        elif message.get("code") == "UNSUBSCRIBED":
            del self.sights[message["streamId"]]
        elif message["type"] == "error" and message["code"] not in self.errors:
            raise Failed(f"a viewer was told {message}")
        await Client.take(self, socket, message)

    @property
    def errors(self) -> set[str]:
        """What it deserves to hear."""
        deserved = set()
        if self.may_be_too_slow:
            deserved.add("TOO_SLOW")
        if self.broke_the_protocol:
            deserved.add("INVALID_MESSAGE")
        return deserved

    async def see(self, socket: RoughSocket, frame: dict[str, Any]) -> None:
        name, data = frame["streamId"], frame["data"]
        sight = self.sights.get(name)
        if sight is None:
            raise Failed(f"a frame of {name}, which is not watched")
        sight.see(frame, data if isinstance(data, bytes) else base64.b64decode(data, validate=True))
        # While it subscribes again, nobody could tell for which subscription an ack counts.
        settled = not self.asked[name]
        if sight.window is not None and settled and self.random.random() < 0.9:
            sight.unacknowledged.clear()
            await socket.say(type="ack", streamId=name, seq=frame["seq"])

    async def take_leave(self, socket: RoughSocket, way: str) -> None:
        if self.ended.is_set() or (socket.closed_with not in (None, 1000)):
            self.check_end(socket)
        elif way == "polite":
            self.hurry.set()
            # After the answer no frame may come, so what came is all that was written.
            for name in list(self.sights):
                await self.unsubscribe(socket, name)
            if not self.ended.is_set():
                await self.leave(socket)
            self.check_end(socket)
        elif way == "abandon":
            self.manner = "abandoned"
            await self.round.over.wait()
        else:
            await self.await_half_a_frame(socket)
            await self.break_off(socket, way)

    async def await_half_a_frame(self, socket: RoughSocket) -> None:
        with trio.move_on_after(1):
            while not (socket.in_a_frame or self.ended.is_set()):  # noqa: ASYNC110
                await trio.sleep(0.001)

    async def break_off(self, socket: RoughSocket, way: str) -> None:
        if way == "vanish" or self.ended.is_set():
            socket.vanish()
        elif way == "close":
            await self.leave(socket)
        else:
            self.hurry.set()
            if way == "fin":
                socket.end_sending()
            else:
                self.broke_the_protocol = True
                await socket.send(b"\x83\x00", last=True)
            with _patience("the end of a connection that was broken off"):
                await self.ended.wait()

    def check_end(self, socket: RoughSocket) -> None:
        if socket.closed_with == 4002 or (self.may_be_too_slow and socket.lost):
            self.round.too_slow += 1
        elif socket.closed_with != 1000:
            raise Failed(f"ended with {socket.closed_with}; lost: {socket.lost}")


@define(eq=False)
class Phone(Client):
    """Produces a stream; in a rough round it dies now and then, and another one takes over."""

    stream: int = field(kw_only=True)
    number: int = 1
    frames: int = 0
    """That it made so far."""

    async def run(self) -> None:
        random = self.random
        async with (
            open_rough(self.round.relay, random, binary=random.random() < 0.5) as socket,
            trio.open_nursery() as nursery,
        ):
            await self.log_in(socket, nursery)
            await socket.say(type="register", streamId=self.round.stream_id(self.stream))
            await self.reply(code="REGISTERED")
            if self.number == 1:
                self.round.come()
            socket.rough = random.random() < 0.5
            await self.produce(socket, mortal=self.round.plan.rough)
            if self.round.over.is_set():
                await self.take_leave(socket)
            else:
                await self.die(socket, random.choice(["vanish", "cut", "fragment", "takeover"]))
            nursery.cancel_scope.cancel()

    async def produce(self, socket: RoughSocket, *, mortal: bool) -> None:
        random = self.random
        while not self.round.over.is_set() and not (mortal and random.random() < 0.01):
            await self.round.pause(random.choice([0, 0.01, 0.05, 0.1, 0.3, 0.5]))
            burst = b""
            for _ in range(random.choice([1, 1, 1, 1, 2, 10])):
                burst += self.frame(socket)
            await socket.send(burst)

    def frame(self, socket: RoughSocket) -> bytes:
        self.frames += 1
        size = self.random.randrange(self.random.choice(SIZES) + 1)
        content = Content(self.stream, self.number, self.frames).pack(size)
        data = content if socket.binary else base64.b64encode(content).decode()
        fields: dict[str, Any] = {"timestamp": self.frames}
        if self.stream % 3 == 0:  # of a codec with deltas
            fields["keyframe"] = self.random.random() < 0.15
        self.round.sent += 1
        return socket.pack(type="video-frame", data=data, **fields)

    async def take_leave(self, socket: RoughSocket) -> None:
        """Wait until all its frames have been offered, and close."""
        await socket.say(type="unsubscribe", streamId="none", id=1)
        await self.reply(type="error", id=1)
        await self.leave(socket)
        if socket.closed_with != 1000:
            raise Failed(f"a phone was closed with {socket.closed_with}")

    async def die(self, socket: RoughSocket, way: str) -> None:
        """End without a goodbye, and let the next phone take over."""
        following = Phone(self.round, self.random, stream=self.stream, number=self.number + 1)
        async with trio.open_nursery() as nursery:
            if way == "takeover":
                nursery.start_soon(following.run)
                await self.linger(socket)
            else:
                await self.break_off(socket, way)
                nursery.start_soon(following.run)

    async def break_off(self, socket: RoughSocket, way: str) -> None:
        if way == "cut":
            frame = self.frame(socket)
            await socket.send(frame[: self.random.randrange(len(frame))])
        elif way == "fragment":
            kind = BINARY if socket.binary else TEXT
            await socket.send(masked_frame(kind, b'{"type":', final=False))
        await trio.sleep(self.random.choice([0, 0.02]))
        socket.vanish()

    async def linger(self, socket: RoughSocket) -> None:
        """Send on until the relay has noticed the one that took over."""
        with _patience("the end of a phone whose stream was taken over"):
            while not self.ended.is_set():
                await socket.send(self.frame(socket))
                await trio.sleep(0.01)
        if not (socket.closed_with == 4502 or socket.lost):
            raise Failed(f"a phone that was taken over was closed with {socket.closed_with}")
