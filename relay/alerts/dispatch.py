"""Hands stored alerts to the consumers that are connected. Floor 2.

It reads them from the table in the order of their commits, from where it last was: what was
committed is dispatched, also when this service failed in between. It looks when the intake has
stored something, when the database tells that another relay or SQL has, and once a second, since
what the database tells may get lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

import msgspec
import structlog
import trio
from attrs import define, field

from relay.errors import StoreUnavailable
from relay.model import StoredAlert
from relay.postgres.alerts import AlertTable
from relay.turns import Turn

RETRY = 1.0
"""Seconds between questions while the store is away."""
POLL = 1.0
"""Seconds without a sign after which it looks all the same."""
LONGEST_PAUSE = 15.0
"""Seconds between attempts to listen."""
AT_ONCE, RATE = 64 * 1024, 32 << 20
"""Bytes of alerts between two pauses, and how many a second are delivered at most to each."""

log = structlog.get_logger()


class Ear(Protocol):
    async def receive(self) -> list[str]:
        """Wait for the next ids of alerts, as text; `StoreUnavailable` when none will be heard."""


class News(Protocol):
    def listen(self) -> AbstractAsyncContextManager[Ear]:
        """Hear of alerts from now on; `StoreUnavailable` when that is not possible."""


@define(eq=False)
class AlertDispatch:
    """The supervised service that delivers alerts."""

    _table: AlertTable
    _deliver: Callable[[StoredAlert], object]
    """Gives one alert to all who are connected and consume it; never waits."""
    _news: News
    _position: int | None = None
    """The last alert that was delivered; None before the first look."""
    turn: Turn = field(init=False, factory=Turn)
    """A page of alerts, from reading it to its last one."""
    _wake: trio.Event = field(factory=trio.Event)
    _owed: int = 0
    """Bytes delivered since the last pause."""

    def wake(self, alert_id: int | None = None) -> None:
        """Say that there may be something new, up to this id if it is known."""
        if alert_id is None or self._position is None or alert_id > self._position:
            self._wake.set()

    async def begin(self) -> None:
        """Note where to begin; done before anybody can connect. Whoever has asked for the alerts
        so far waits for all that are stored from then on. `StoreUnavailable` when that fails."""
        self._position = await self._table.latest_id()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        if self._position is None:
            await self.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_listening)
            task_status.started()
            await self._keep_looking()

    async def _keep_looking(self) -> NoReturn:
        while True:
            self._wake = trio.Event()
            try:
                while await self._deliver_page():
                    pass
            except StoreUnavailable:
                await trio.sleep(RETRY)
            else:
                with trio.move_on_after(POLL):
                    await self._wake.wait()

    async def _keep_listening(self) -> NoReturn:
        pause = RETRY
        while True:
            try:
                async with self._news.listen() as ear:
                    while True:
                        for each in await ear.receive():
                            self.wake(_alert_id(each))
                            pause = RETRY
            except StoreUnavailable:
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _deliver_page(self) -> bool:
        """Deliver what comes next; False when there is nothing."""
        assert self._position is not None
        with self.turn:
            alerts = await self._table.after(self._position)
            for alert in alerts:
                self._position = alert.alert_id
                self._deliver_one(alert)
                await self._let_it_be_written(alert)
        return bool(alerts)

    async def _let_it_be_written(self, alert: StoredAlert) -> None:
        """Give the writers of those who got it their turn: who reads must not be found too slow
        because many come at once."""
        self._owed += len(alert.message) + len(msgspec.json.encode(alert.metadata))
        if self._owed < AT_ONCE:
            await trio.lowlevel.checkpoint()
        else:
            owed, self._owed = self._owed, 0
            await trio.sleep(owed / RATE)

    def _deliver_one(self, alert: StoredAlert) -> None:
        if alert.odd:
            log.warning(
                "an alert was written by hand, and not all of it is sent as it stands",
                alert_id=alert.alert_id,
                odd=list(alert.odd),
            )
        try:
            self._deliver(alert)
        except Exception:  # a poisoned alert must not stop those behind it
            log.exception("alert not delivered", alert_id=alert.alert_id)


def _alert_id(told: str) -> int | None:
    """None for what is no id: anybody who is in the database may tell anything."""
    return int(told) if told.isdecimal() and len(told) < 20 else None
