"""Hands stored alerts to the consumers that are connected.

It reads them from the table in the order of their commits, and remembers its position: a committed
alert is delivered also when this task failed in between. It reads when the intake has stored
something, when the database notifies of alerts that another relay or SQL has stored, and while
anybody is connected once a second, since notifications may get lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, field

from relay.alerts.event import alert_event
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.backoff import Backoff
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.alerts.alert import StoredAlert
from relay.protocol.codec import JSON_CODEC

DISPATCH_RETRY_INTERVAL = 1.0
"""Seconds between attempts to read while the store is away."""
DISPATCH_POLL_INTERVAL = 1.0
"""Seconds without a signal after which it reads all the same."""
MIN_SIGNAL_INTERVAL = 0.05
"""Seconds between two reads because of notifications: any role of the database may send them."""
MAX_LISTEN_BACKOFF = 15.0
"""Seconds between attempts to listen."""
DELIVERY_BURST_BYTES, DELIVERY_BYTES_PER_SECOND = 64 * 1024, 32 << 20
"""Bytes of alerts between two pauses, and the highest rate."""

MAX_DISPATCH_PAGE = 500
"""Alerts that are read at once."""
MAX_READS_OF_ONE = 3
"""Attempts to read one alert alone, while the store answers; then it is skipped."""

log = structlog.get_logger()


class CommittedAlerts(Protocol):
    """The stored alerts in the order of their commits; `StoreUnavailable` while they cannot be
    read."""

    async def after(self, alert_id: int, *, limit: int) -> Sequence[StoredAlert]:
        """A page of the alerts with a greater id, in order; `StoreRejects` when one of them can be
        read by no means."""

    async def next_id(self, alert_id: int) -> int | None:
        """The next id after this one; None when there is none."""

    async def latest_id(self) -> int:
        """The greatest id that is stored; 0 when there is none."""


class AlertSignalListener(Protocol):
    """A connection that receives them."""

    async def receive(self) -> list[str]:
        """Wait for the ids of the next alerts, as text; `StoreUnavailable` when the connection is
        lost."""


class AlertSignals(Protocol):
    """Notifications of the database about new alerts."""

    def listen(self) -> AbstractAsyncContextManager[AlertSignalListener]:
        """Listen from now on; `StoreUnavailable` when that is not possible."""


@define(eq=False, repr=False)
class AlertDispatch:
    """The supervised task that delivers alerts."""

    _table: CommittedAlerts
    _deliver: Callable[[StoredAlert], object]
    """Gives an alert to its consumers; never waits."""
    _signals: AlertSignals
    _metrics: Metrics = field(factory=Metrics)
    _activity: Activity = field(factory=always_active)
    _on_other_signal: Callable[[], object] = field(default=lambda: None)
    """Called when the database notifies of something else than an alert that was stored."""
    _position: int | None = None
    """The last alert that was delivered; None before the first look."""
    progress: Progress = field(init=False, factory=Progress)
    """Reading a page of alerts and delivering it."""
    _wake: Wakeup = field(factory=Wakeup)
    _signalled: Wakeup = field(factory=Wakeup)
    """Set by notifications."""
    _page_limit: int = MAX_DISPATCH_PAGE
    """Halved each time that a page cannot be read, and doubled when one is."""
    _failed_reads: int = 0
    """How often the next alert alone could not be read, while the store answered."""
    _unpaused_bytes: int = 0
    """Bytes delivered since the last pause."""

    def wake(self, alert_id: int | None = None) -> None:
        """Tell that there may be new alerts, up to this id if it is known."""
        if alert_id is None or self._position is None or alert_id > self._position:
            self._wake.set()

    async def begin(self) -> None:
        """Note the position to begin at, before clients can connect: consumers that have read the
        alerts so far wait for all later ones. `StoreUnavailable`."""
        self._position = await self._table.latest_id()

    def __attrs_post_init__(self) -> None:
        self._activity.on_begin(self._wake.set)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        if self._position is None:
            await self.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_listening)
            nursery.start_soon(self._pass_signals_on)
            task_status.started()
            await self._keep_delivering()

    async def _keep_delivering(self) -> NoReturn:
        while True:
            try:
                while await self._deliver_page():
                    pass
            except StoreUnavailable:
                await trio.sleep(DISPATCH_RETRY_INTERVAL)
            else:
                interval = DISPATCH_POLL_INTERVAL if self._activity.active else REST_INTERVAL
                with trio.move_on_after(interval):
                    await self._wake.wait()

    async def _keep_listening(self) -> NoReturn:
        backoff = Backoff(DISPATCH_RETRY_INTERVAL, MAX_LISTEN_BACKOFF)
        while True:
            try:
                async with self._signals.listen() as listener:
                    self._wake.set()  # nobody told of alerts before
                    while True:
                        for each in await listener.receive():
                            self._note_signal(_alert_id(each))
                            backoff.reset()
            except StoreUnavailable:
                pass
            await trio.sleep(backoff.next())
            # A database that fell asleep closes it, and would be woken.
            await self._activity.rest()

    def _note_signal(self, alert_id: int | None) -> None:
        if alert_id is None:
            self._on_other_signal()
        if alert_id is None or self._position is None or alert_id > self._position:
            self._signalled.set()

    async def _pass_signals_on(self) -> NoReturn:
        """Wake the delivery: at once, or a moment later if it was woken a moment ago."""
        while True:
            await self._signalled.wait()
            self._wake.set()
            await trio.sleep(MIN_SIGNAL_INTERVAL)

    async def _deliver_page(self) -> bool:
        """Deliver the next page; False when there is none."""
        assert self._position is not None
        with self.progress:
            alerts = await self._read_page(self._position)
            if alerts is None:
                return True
            for alert in alerts:
                self._position = alert.alert_id
                self._deliver_one(alert)
                await self._let_connections_write(alert)
        return bool(alerts)

    async def _read_page(self, position: int) -> Sequence[StoredAlert] | None:
        """The next page; None when an attempt failed and the next one may be made at once."""
        failure: StoreRejects | StoreUnavailable | None = None
        try:
            alerts = await self._table.after(position, limit=self._page_limit)
        except (StoreRejects, StoreUnavailable) as why:
            failure = why
        if failure is not None:
            if self._metrics.dispatch_failing_since is None:
                self._metrics.dispatch_failing_since = trio.current_time()
            if self._page_limit > 1:
                self._page_limit //= 2
            else:
                await self._give_one_up(position, failure)
            if isinstance(failure, StoreUnavailable):
                raise failure
            return None
        self._page_limit = min(self._page_limit * 2, MAX_DISPATCH_PAGE)
        self._failed_reads = 0
        self._metrics.dispatch_failing_since = None
        return alerts

    async def _give_one_up(self, position: int, why: Exception) -> None:
        """Skip the next alert when it alone cannot be read, though the store answers."""
        alert_id = await self._table.next_id(position)
        self._failed_reads += 1
        if alert_id is None:
            return
        if isinstance(why, StoreUnavailable) and self._failed_reads < MAX_READS_OF_ONE:
            return
        self._position, self._failed_reads = alert_id, 0
        self._metrics.alerts_unreadable += 1
        log.error("alert cannot be read: it is skipped", alert_id=alert_id, why=str(why))

    async def _let_connections_write(self, alert: StoredAlert) -> None:
        """Let the connections write before the next alert, so that a consumer that reads is not
        closed as too slow when many alerts come at once."""
        self._unpaused_bytes += len(JSON_CODEC.encode(alert_event(alert)))
        if self._unpaused_bytes < DELIVERY_BURST_BYTES:
            await trio.lowlevel.checkpoint()
        else:
            delivered, self._unpaused_bytes = self._unpaused_bytes, 0
            await trio.sleep(delivered / DELIVERY_BYTES_PER_SECOND)

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
            self._metrics.alerts_unreadable += 1
            log.exception("alert not delivered", alert_id=alert.alert_id)


def _alert_id(payload: str) -> int | None:
    """The id in a notification; None if it is not one, since any client may notify."""
    return int(payload) if payload.isdecimal() and len(payload) < 20 else None
