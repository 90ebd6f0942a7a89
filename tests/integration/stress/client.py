"""What all clients of a round have in common: the round itself, and a connection that is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import trio
from attrs import define, field, frozen

from relay.transport.wire import CLOSE
from tests.integration.relay_process import RelayProcess
from tests.integration.stress.frame_checks import Failed, Record
from tests.integration.stress.rough_socket import RoughSocket
from tests.unit.hostile import masked_frame

PATIENCE = 60.0
"""Seconds that anything may take on a machine that is busy with all these clients."""
GOODBYE = masked_frame(CLOSE, b"\x03\xe8")


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


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Wait for something in the block; `Failed` when that takes too long."""
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
    may_be_too_slow: bool = False
    """Whether the relay may give it up."""
    replies: list[dict[str, Any]] = field(factory=list)
    replied: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def log_in(self, socket: RoughSocket, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.listen, socket)
        await socket.say(type="auth", token=self.round.token)
        await self.reply(code="AUTHENTICATED")

    async def reply(self, **fields: Any) -> dict[str, Any] | None:
        """The reply with these fields; None when the connection ends before it comes."""
        with patience(f"{fields}"):
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
        with patience("the end of a connection that was closed"):
            await self.ended.wait()
        if socket.closed_with is None and not (self.may_be_too_slow and socket.lost):
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
