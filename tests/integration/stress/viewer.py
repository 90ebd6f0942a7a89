"""Viewers of all manners, which leave in all ways."""

from __future__ import annotations

import base64
from typing import Any

import trio
from attrs import define, field

from tests.integration.stress.client import Client, patience
from tests.integration.stress.frame_checks import Failed, Sight
from tests.integration.stress.rough_socket import RoughSocket, open_rough

MANNERS = ("fast", "fast", "slow", "stalling", "nibbling", "pinging", "fickle")


@define(eq=False)
class Viewer(Client):
    """Watches some streams, until the round is over or it has had enough."""

    sights: dict[str, Sight] = field(factory=dict)
    asked: dict[str, list[Sight]] = field(factory=dict)
    """Subscriptions that are not answered yet."""
    may_be_lossless: bool = False
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
            with patience("the end of a connection that was broken off"):
                await self.ended.wait()

    def check_end(self, socket: RoughSocket) -> None:
        if socket.closed_with == 4002 or (self.may_be_too_slow and socket.lost):
            self.round.too_slow += 1
        elif socket.closed_with != 1000:
            raise Failed(f"ended with {socket.closed_with}; lost: {socket.lost}")
