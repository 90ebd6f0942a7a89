"""Phones, which send frames of all sizes, and may die in the middle of one."""

from __future__ import annotations

import base64
from typing import Any

import trio
from attrs import define, field

from relay.transport.wire import BINARY, TEXT
from tests.integration.stress.client import Client, patience
from tests.integration.stress.frame_checks import Content, Failed
from tests.integration.stress.rough_socket import RoughSocket, open_rough
from tests.unit.hostile import masked_frame

SIZES = (0, 100, 100, 1500, 1500, 8_000, 8_000, 16_384, 16_384, 65_536, 300_000)
"""Bytes of frames, at most."""


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
        with patience("the end of a phone whose stream was taken over"):
            while not self.ended.is_set():
                await socket.send(self.frame(socket))
                await trio.sleep(0.01)
        if not (socket.closed_with == 4502 or socket.lost):
            raise Failed(f"a phone that was taken over was closed with {socket.closed_with}")
