"""Alerts: stored by the batch, delivered in their order, each of them once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from relay.alerts.dispatch import (
    DISPATCH_POLL_INTERVAL,
    DISPATCH_RETRY_INTERVAL,
    MAX_LISTEN_BACKOFF,
    MIN_SIGNAL_INTERVAL,
    AlertDispatch,
)
from relay.alerts.intake import AlertIntake
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.alerts.alert import NewAlert, NoRoom, StoredAlert

pytestmark = pytest.mark.mock_clock

PAGE = 3


def new(message: str, stream_id: str = "s", *, key: str | None = None) -> NewAlert:
    return NewAlert(stream_id, "service:sentry", "low", message, 0, alert_key=key)


@define(eq=False)
class AlertTable:
    """A table of alerts whose ids have gaps, and whose pages hold three."""

    alerts: list[StoredAlert] = field(factory=list)
    batches: list[int] = field(factory=list)
    """How many were stored together."""
    queries: int = 0
    unreadable: dict[str, Exception] = field(factory=dict)
    """What the reading of an alert raises, by its message."""
    most_readable: int = 10_000
    """Alerts that can be read in one go."""
    before_query: Callable[[], object] = field(default=lambda: None)
    after_commit: Callable[[], object] = field(default=lambda: None)
    keys: dict[str, StoredAlert] = field(factory=dict)

    def commit(self, alert: NewAlert) -> StoredAlert | None:
        if alert.stream_id == "unknown":
            return None
        if alert.alert_key in self.keys:
            return evolve(self.keys[alert.alert_key], fresh=False)
        number = 10 * (len(self.alerts) + 1)
        stored = StoredAlert(number, alert.stream_id, "ann", alert.sender, "low", alert.message, 0)
        self.alerts.append(stored)
        if alert.alert_key is not None:
            self.keys[alert.alert_key] = stored
        return stored

    async def store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | NoRoom | None]:
        await self._work()
        self.batches.append(len(alerts))
        stored: list[StoredAlert | NoRoom | None] = [self.commit(alert) for alert in alerts]
        self.after_commit()
        return stored

    async def after(self, alert_id: int, *, limit: int) -> list[StoredAlert]:
        await self._work()
        behind = [alert for alert in self.alerts if alert.alert_id > alert_id]
        for place, alert in enumerate(behind[:limit]):
            if alert.message in self.unreadable:
                raise self.unreadable[alert.message]
            if place == self.most_readable:
                raise StoreUnavailable
        return behind[: min(limit, PAGE)]

    async def next_id(self, alert_id: int) -> int | None:
        await self._work()
        return next((each.alert_id for each in self.alerts if each.alert_id > alert_id), None)

    async def latest_id(self) -> int:
        await self._work()
        return max((alert.alert_id for alert in self.alerts), default=0)

    async def _work(self) -> None:
        self.queries += 1
        self.before_query()
        await trio.sleep(0.1)


@define(eq=False)
class AlertSignals:
    """What a database tells of new alerts, while it can be listened to."""

    away: bool = False
    attempts: int = 0
    _listeners: set[trio.MemorySendChannel[str]] = field(factory=set)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Any]:
        self.attempts += 1
        if self.away:
            raise StoreUnavailable
        send, receive = trio.open_memory_channel[str](100)
        self._listeners.add(send)
        try:
            yield AlertSignalListener(receive)
        finally:
            self._listeners.discard(send)

    def tell(self, payload: str) -> None:
        for listener in self._listeners:
            listener.send_nowait(payload)

    def hang_up(self) -> None:
        self.away = True
        for listener in self._listeners:
            listener.close()


@define(eq=False)
class AlertSignalListener:
    _channel: trio.MemoryReceiveChannel[str]

    async def receive(self) -> list[str]:
        try:
            return [await self._channel.receive()]
        except trio.EndOfChannel:
            raise StoreUnavailable from None


@define(eq=False)
class Desk:
    """A table with its intake and its dispatch, and what was delivered."""

    table: AlertTable = field(factory=AlertTable)
    signals: AlertSignals = field(factory=AlertSignals)
    metrics: Metrics = field(factory=Metrics)
    activity: Activity = field(factory=always_active)
    other_signals: int = 0
    delivered: list[str] = field(factory=list)
    dispatch: AlertDispatch = field(init=False)
    intake: AlertIntake = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.dispatch = AlertDispatch(
            self.table, self._deliver, self.signals, self.metrics, self.activity, self._count_signal
        )
        self.intake = AlertIntake(self.table, self.metrics, self.dispatch.wake)

    def _count_signal(self) -> None:
        self.other_signals += 1

    def _deliver(self, alert: StoredAlert) -> None:
        if alert.message == "poisoned":
            raise RuntimeError("a bug")
        self.delivered.append(alert.message)

    def commit(self, *messages: str) -> None:
        for message in messages:
            self.table.commit(new(message))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.dispatch.run)
            await nursery.start(self.intake.service.run)
            yield
            nursery.cancel_scope.cancel()

    async def accept_at_once(self, *alerts: NewAlert) -> list[int | str | None]:
        """The ids under which they were stored, in their order."""
        answers: dict[int, int | str | None] = {}

        async def accept(number: int, alert: NewAlert) -> None:
            try:
                stored = await self.intake.accept(alert)
            except StoreUnavailable:
                answers[number] = "unavailable"
            else:
                answers[number] = None if stored is None else stored.alert_id

        async with trio.open_nursery() as nursery:
            for number, alert in enumerate(alerts):
                nursery.start_soon(accept, number, alert)
        return [answers[number] for number in sorted(answers)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def away(*queries: int) -> Callable[[], None]:
    """The store is away at these queries, counted from one."""
    count = 0

    def before_query() -> None:
        nonlocal count
        count += 1
        if count in queries:
            raise StoreUnavailable

    return before_query


async def test_alerts_are_delivered_in_the_order_of_their_commits(desk: Desk) -> None:
    desk.commit("stored before the start")
    messages = [str(number) for number in range(10)]
    async with desk.running():
        desk.commit(*messages[:7])
        desk.dispatch.wake()
        await trio.sleep(5)
        desk.commit(*messages[7:])
        desk.dispatch.wake()
        await trio.sleep(5)
    assert desk.delivered == messages


async def test_what_is_committed_during_a_look_is_seen_by_the_next(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(0.05)  # in the middle of the first look
        desk.commit("a")
        desk.dispatch.wake()
        await trio.sleep(1)
        assert desk.delivered == ["a"]
        desk.commit("b")
        desk.dispatch.wake()
        await trio.sleep(0.05)
        desk.commit("c")
        desk.dispatch.wake()
        desk.dispatch.wake()
        await trio.sleep(1)
        assert desk.delivered == ["a", "b", "c"]


async def test_while_nothing_happens_the_table_is_asked_once_a_second(desk: Desk) -> None:
    async with desk.running():
        desk.dispatch.wake()
        await trio.sleep(1)
        before = desk.table.queries
        await trio.sleep(1000)
        assert 900 <= desk.table.queries - before <= 1000


async def test_while_nobody_is_connected_the_table_is_asked_every_quarter_of_an_hour() -> None:
    desk = Desk(activity=Activity())
    async with desk.running():
        await trio.sleep(1)
        before = desk.table.queries
        await trio.sleep(10 * REST_INTERVAL)
        assert 9 <= desk.table.queries - before <= 10
        desk.commit("for a webhook")
        desk.signals.tell("10")
        await trio.sleep(0.5)
        assert desk.delivered == ["for a webhook"]
        desk.commit("of nobody who tells")
        await trio.sleep(REST_INTERVAL)
        assert desk.delivered[1:] == ["of nobody who tells"]


async def test_when_the_first_client_connects_the_table_is_asked_at_once() -> None:
    desk = Desk(activity=Activity())
    async with desk.running():
        await trio.sleep(100)
        desk.commit("a")
        desk.activity.note(active=True)
        await trio.sleep(0.5)
        assert desk.delivered == ["a"]
        desk.commit("b")
        await trio.sleep(DISPATCH_POLL_INTERVAL + 0.5)
        assert desk.delivered == ["a", "b"]
        desk.activity.note(active=False)
        await trio.sleep(DISPATCH_POLL_INTERVAL + 0.5)
        before = desk.table.queries
        await trio.sleep(REST_INTERVAL / 2)
        assert desk.table.queries == before


async def test_while_nobody_is_connected_a_database_that_hung_up_is_left_asleep() -> None:
    desk = Desk(activity=Activity())
    async with desk.running():
        await trio.sleep(1)
        desk.signals.hang_up()
        desk.signals.away = False
        await trio.sleep(REST_INTERVAL / 2)
        assert desk.signals.attempts == 1
        desk.activity.note(active=True)
        await trio.sleep(0.1)
        assert desk.signals.attempts == 2
        desk.signals.hang_up()
        await trio.sleep(10)
        assert desk.signals.attempts > 3


async def test_what_is_told_beside_alerts_is_passed_on(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(0.3)
        desk.signals.tell("10")
        desk.signals.tell("webhooks")
        await trio.sleep(0.3)
    assert desk.other_signals == 1


async def test_an_alert_of_another_relay_is_delivered_when_the_database_tells(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(0.3)
        desk.commit("a")
        desk.signals.tell("10")
        await trio.sleep(0.2)
        assert desk.delivered == ["a"]


async def test_what_was_delivered_already_is_not_looked_for_again(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(0.3)
        desk.commit("a")
        desk.dispatch.wake(10)
        await trio.sleep(0.3)
        assert desk.delivered == ["a"]
        before = desk.table.queries
        desk.signals.tell("10")
        desk.dispatch.wake(10)
        await trio.sleep(0.3)
        assert desk.table.queries == before


@pytest.mark.parametrize("payload", ["", "-1", "ten", "9" * 5000])
async def test_nonsense_that_is_told_of_is_a_reason_to_look(desk: Desk, payload: str) -> None:
    async with desk.running():
        await trio.sleep(0.3)
        desk.commit("a")
        desk.signals.tell(payload)
        await trio.sleep(0.2)
        assert desk.delivered == ["a"]


@pytest.mark.parametrize("payload", ["nonsense", "999999999999999"])
async def test_a_flood_of_notifications_is_one_look_now_and_then(desk: Desk, payload: str) -> None:
    """Any role of the database may notify."""
    async with desk.running():
        await trio.sleep(1)
        before = desk.table.queries
        for _ in range(1000):
            desk.signals.tell(payload)
            await trio.sleep(0.001)
        looks = desk.table.queries - before
        assert 1 <= looks <= 1 / MIN_SIGNAL_INTERVAL + 3
        desk.commit("a")
        desk.signals.tell("10")
        await trio.sleep(0.3)
        assert desk.delivered == ["a"]


async def test_where_nobody_tells_alerts_of_others_are_a_second_late(desk: Desk) -> None:
    desk.signals.away = True
    async with desk.running():
        await trio.sleep(0.3)
        desk.commit("a")
        await trio.sleep(DISPATCH_POLL_INTERVAL + 0.2)
        assert desk.delivered == ["a"]


async def test_a_lost_connection_is_made_again_more_and_more_patiently(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(0.3)
        desk.signals.hang_up()
        await trio.sleep(1000)
        assert 1000 / MAX_LISTEN_BACKOFF < desk.signals.attempts < 1000 / MAX_LISTEN_BACKOFF + 10
        desk.signals.away = False
        await trio.sleep(MAX_LISTEN_BACKOFF)
        desk.commit("a")
        desk.signals.tell("10")
        await trio.sleep(0.2)
        assert desk.delivered == ["a"]


@pytest.mark.parametrize("failing", [{2}, {3}, {4}, {2, 3, 4}, {2, 4, 6}, {5, 6, 7, 8}])
async def test_the_store_away_in_the_middle_neither_loses_nor_repeats_an_alert(
    desk: Desk, failing: set[int]
) -> None:
    desk.table.before_query = away(*failing)
    messages = [str(number) for number in range(3 * PAGE)]
    async with desk.running():
        desk.commit(*messages)
        desk.dispatch.wake()
        await trio.sleep(30)
        assert desk.delivered == messages


async def test_a_store_that_is_away_is_asked_again_in_a_while(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(1)
        before = desk.table.queries
        desk.table.before_query = away(*range(1, 4))
        desk.commit("a")
        desk.dispatch.wake()
        await trio.sleep(3 * DISPATCH_RETRY_INTERVAL)
        assert desk.table.queries - before in (3, 4)
        await trio.sleep(1)
        assert desk.delivered == ["a"]


async def test_an_alert_that_cannot_be_delivered_stops_no_other(desk: Desk) -> None:
    async with desk.running():
        desk.commit("a", "poisoned", "b", "poisoned", "poisoned", "poisoned", "c")
        desk.dispatch.wake()
        await trio.sleep(5)
        assert desk.delivered == ["a", "b", "c"]
    assert desk.metrics.alerts_unreadable == 4


async def test_started_again_it_goes_on_where_it_was(desk: Desk) -> None:
    async with desk.running():
        desk.commit("a", "b")
        desk.dispatch.wake()
        await trio.sleep(1)
    desk.commit("c")
    desk.dispatch.wake()  # nobody hears it
    async with desk.running():
        await trio.sleep(1)
        assert desk.delivered == ["a", "b", "c"]


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.25, 0.35])
async def test_cancelled_at_any_moment_it_neither_loses_nor_repeats_an_alert(
    desk: Desk, moment: float
) -> None:
    messages = [str(number) for number in range(3 * PAGE)]
    async with desk.running():
        desk.commit(*messages)
        await trio.sleep(moment)
    async with desk.running():
        await trio.sleep(5)
    assert desk.delivered == messages


async def test_what_is_stored_between_its_beginning_and_its_start_is_delivered(desk: Desk) -> None:
    """Clients are let in as soon as it has begun, and may have read all that was before."""
    desk.commit("before")
    await desk.dispatch.begin()
    desk.commit("a")
    async with desk.running():
        await trio.sleep(1)
        assert desk.delivered == ["a"]


async def test_it_is_not_ready_before_it_knows_where_to_begin(desk: Desk) -> None:
    desk.table.before_query = away(1)
    with pytest.raises(StoreUnavailable):
        await desk.dispatch.run()
    async with desk.running():
        desk.commit("a")
        desk.dispatch.wake()
        await trio.sleep(1)
        assert desk.delivered == ["a"]


# -- the intake


async def test_alerts_that_arrive_together_share_a_commit(desk: Desk) -> None:
    async with desk.running():
        ids = await desk.accept_at_once(*[new(str(number)) for number in range(100)])
        assert set(ids) == {10 * number for number in range(1, 101)}
        assert desk.table.batches == [100]
        assert desk.metrics.alerts_stored == 100


async def test_an_alert_that_is_accepted_is_delivered(desk: Desk) -> None:
    async with desk.running():
        assert await desk.accept_at_once(new("a")) == [10]
        await trio.sleep(1)
        assert desk.delivered == ["a"]


async def test_what_is_refused_or_repeated_is_neither_counted_nor_delivered(desk: Desk) -> None:
    async with desk.running():
        assert await desk.accept_at_once(new("a", key="k")) == [10]
        assert await desk.accept_at_once(new("a", key="k")) == [10]
        assert await desk.accept_at_once(new("b", "unknown")) == [None]
        assert desk.metrics.alerts_stored == 1
        await trio.sleep(1)
        assert desk.delivered == ["a"]


async def test_alerts_that_cannot_be_stored_are_not_accepted(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(1)
        desk.table.before_query = away(1)
        assert await desk.accept_at_once(new("a"), new("b")) == ["unavailable"] * 2
        assert desk.metrics.alerts_stored == 0
        assert await desk.accept_at_once(new("c")) == [10]


async def test_alerts_whose_commit_went_unheard_are_delivered_all_the_same(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(1)
        desk.table.after_commit = away(1)  # the connection breaks with the answer on its way
        assert await desk.accept_at_once(new("a")) == ["unavailable"]
        await trio.sleep(1)
        assert desk.delivered == ["a"]


async def test_others_have_their_turn_between_two_alerts(desk: Desk) -> None:
    desk.table.alerts = [StoredAlert(n, "s", "ann", "x", "low", str(n), 0) for n in (1, 2, 3)]
    desk.dispatch._position = 0
    counts: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.dispatch.run)
        await trio.sleep(0.1)  # the table answers then
        while len(desk.delivered) < 3:
            counts.append(len(desk.delivered))
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert set(counts) & {1, 2}


async def test_a_page_that_cannot_be_read_is_read_in_smaller_ones(desk: Desk) -> None:
    messages = [str(number) for number in range(600)]
    async with desk.running():
        await trio.sleep(0.5)
        desk.table.most_readable = 2
        desk.commit(*messages)
        desk.dispatch.wake()
        await trio.sleep(2000)
    assert desk.delivered == messages
    assert desk.metrics.alerts_unreadable == 0


@pytest.mark.parametrize("why", [StoreRejects("odd"), StoreUnavailable("too slow")])
async def test_an_alert_that_cannot_be_read_stops_none_behind_it(
    desk: Desk, why: Exception
) -> None:
    async with desk.running():
        await trio.sleep(0.5)
        desk.table.unreadable = {"c": why}
        desk.commit(*"abcde")
        desk.dispatch.wake()
        await trio.sleep(30)
    assert desk.delivered == list("abde")
    assert desk.metrics.alerts_unreadable == 1
    assert desk.metrics.dispatch_stalled_for() == 0


async def test_none_is_skipped_because_the_store_is_away_for_long(desk: Desk) -> None:
    async with desk.running():
        await trio.sleep(0.5)
        desk.table.before_query = away(*range(1, 1000))
        desk.commit(*"abc")
        desk.dispatch.wake()
        await trio.sleep(100)
        assert 95 < desk.metrics.dispatch_stalled_for() < 101
        await trio.sleep(1000)
    assert desk.delivered == list("abc")
    assert desk.metrics.alerts_unreadable == 0
    assert desk.metrics.dispatch_stalled_for() == 0
