"""Services: they raise alerts when they are due, and again until they are acknowledged. Floor 6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import trio
from attrs import define, field

from relay.client import ServerError
from relay.load.actor import Actor
from relay.load.groups import Services
from relay.load.peer import Peer
from relay.load.stage import Raised
from relay.transport.dial import Closed

MOST_UNDER_WAY = 1000
"""Alerts of one service that may be unacknowledged at a time."""


@define(eq=False)
class Service(Actor):
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
            for due in self._due if phones else ():
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
