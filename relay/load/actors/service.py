"""Services: they raise alerts when they are due, and again until they are acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import trio
from attrs import define, field, frozen

from relay.client import ServerError
from relay.client.errors import Closed
from relay.load.actors.actor import Actor
from relay.load.actors.network.client import LoadClient
from relay.load.measures.reconciliation.observations import AcknowledgedAlert
from relay.load.scenario.groups import ServiceGroup

MAX_UNACKNOWLEDGED_ALERTS = 1000
"""Unacknowledged alerts of one service."""


@frozen
class UnacknowledgedAlert:
    """An alert that is not acknowledged yet."""

    stream: str
    number: int
    due: float


@define(eq=False)
class AlertService(Actor):
    """Raises alerts for the streams of a group of phones, in turn."""

    is_service: ClassVar[bool] = True
    _numbers: dict[str, int] = field(factory=dict)
    """The last number, by stream."""
    _pending: dict[str, UnacknowledgedAlert] = field(factory=dict)
    """By `alertKey`."""
    _due: Iterator[float] = field(init=False)
    _turn: int = 0

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._due = self.context.timeline.alerts_due(self.name, self.number, self.presence)

    @property
    def sender(self) -> str:
        return f"{self.name}-{self.number}"

    async def play(self, client: LoadClient) -> None:
        async with client.listening(), trio.open_nursery() as nursery:
            for key in tuple(self._pending):
                nursery.start_soon(self._raise, client, key)
            group = self.group
            assert isinstance(group, ServiceGroup)
            phones = self.context.timeline.most(group.watch)
            for due in self._due if phones else ():
                await self.context.until(due)
                if len(self._pending) >= MAX_UNACKNOWLEDGED_ALERTS:
                    self.stats.counts["alerts.failed"] += 1
                    continue
                phone = (self.number + self._turn) % phones
                self._turn += 1
                stream = self.context.stream_id(group.watch, phone)
                number = self._numbers[stream] = self._numbers.get(stream, 0) + 1
                key = f"{self.context.run}-{self.sender}-{phone}-{number}"
                self._pending[key] = UnacknowledgedAlert(stream, number, due)
                self.stats.counts["alerts.sent"] += 1
                nursery.start_soon(self._raise, client, key)
            await trio.sleep_forever()

    async def _raise(self, client: LoadClient, key: str) -> None:
        alert = self._pending[key]
        group = self.group
        assert isinstance(group, ServiceGroup)
        microseconds = round(alert.due * 1_000_000)
        words = f"load {self.context.run} {self.sender} {alert.number} {microseconds}"
        self.context.spend()
        try:
            await client.request(
                "alert", streamId=alert.stream, severity=group.severity, message=words, alertKey=key
            )
        except Closed:
            return  # it stays pending for the next connection
        except ServerError as error:
            self.stats.counts["alerts.failed"] += 1
            self.stats.error(str(error))
            del self._pending[key]
            return
        del self._pending[key]
        now = self.context.now()
        self.stats.counts["alerts.accepted"] += 1
        self.stats.time("ack_time").record(now - alert.due)
        self.context.observations.alerts.append(
            AcknowledgedAlert(self.sender, alert.stream, alert.number, alert.due, now)
        )
