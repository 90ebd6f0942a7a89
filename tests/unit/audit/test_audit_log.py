"""What is recorded about peers, and what becomes of it: nothing waits for it, nothing is lost
without a word."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from relay.audit.log import (
    AUDIT_BATCH,
    AUDIT_FLUSH_TIMEOUT,
    AUDIT_LINGER,
    MAX_WAITING_ANONYMOUS,
    MAX_WAITING_EVENTS,
    REPETITION_INTERVAL,
    AuditLog,
)
from relay.audit.repetitions import MAX_REPETITIONS
from relay.concurrency.supervisor import Supervisor
from relay.guard.guard import Guard
from relay.guard.rates import RateLimiter
from relay.logs.setup import configure_logging
from relay.model.access.identity import Service
from relay.model.audit_event import MAX_VALUE_LENGTH, AuditEvent
from tests.unit.memory import ANN, BOB, SENTRY, MemoryAuditStore, MemoryRelay

Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines() -> Lines:
    """What was logged."""
    out = io.StringIO()
    configure_logging("info", "json", out)
    return lambda: [json.loads(line) for line in out.getvalue().splitlines()]


@asynccontextmanager
async def writing(log: AuditLog) -> AsyncIterator[trio.CancelScope]:
    """The service under its supervisor; it is stopped with the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(Supervisor({"audit": log}).run)
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


def record(log: AuditLog, *reasons: object) -> None:
    for reason in reasons:
        log.record("auth", outcome="failed", reason=str(reason), user_id="ann")


def reasons(rows: MemoryAuditStore) -> list[str]:
    return [row.reason for row in rows.rows]


async def recorded(relay: MemoryRelay) -> list[AuditEvent]:
    """All that the relay recorded, once it was written."""
    async with writing(relay.audit):
        pass
    return relay.audit_store.rows


def brief(event: AuditEvent) -> tuple[str, str, str]:
    return event.what, event.outcome, event.reason


# -- what is recorded


@pytest.mark.mock_clock
async def test_an_attempt_is_recorded_with_who_it_was_and_from_where(relay: MemoryRelay) -> None:
    await relay.login(ANN)
    await relay.login(SENTRY)
    ann, sentry = await recorded(relay)
    assert brief(ann) == brief(sentry) == ("auth", "succeeded", "")
    assert (ann.user_id, ann.session_id, ann.service) == ("ann", "session-of-ann", None)
    assert (sentry.user_id, sentry.session_id, sentry.service) == (None, None, "sentry")
    assert (ann.address, ann.connection, sentry.connection) == ("192.0.2.1", 1, 2)


@pytest.mark.mock_clock
async def test_a_wrong_token_is_an_attempt_and_a_forced_close_of_nobody(relay: MemoryRelay) -> None:
    client = await relay.open()
    await client.send({"type": "auth", "token": "wrong"})
    await client.has_ended()
    failed, closed = await recorded(relay)
    assert (brief(failed), failed.user_id) == (("auth", "failed", ""), None)
    assert (brief(closed), closed.user_id) == (("close", "forced", "auth_failed"), None)


@pytest.mark.mock_clock
async def test_an_attempt_that_cannot_be_decided_is_unavailable(relay: MemoryRelay) -> None:
    relay.verifier.away = True
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    await client.has_ended()
    relay.verifier.away, relay.verifier.delay = False, 60
    late = await relay.open()
    await late.send({"type": "auth", "token": ANN})
    await late.has_ended()
    assert [brief(event) for event in await recorded(relay)] == [
        ("auth", "unavailable", ""),
        ("close", "forced", "auth_unavailable"),
    ] * 2


@pytest.mark.mock_clock
async def test_who_never_tries_is_a_timeout_and_who_never_speaks_only_a_close(
    relay: MemoryRelay,
) -> None:
    silent = await relay.open()
    await silent.has_ended()
    await relay.connect().has_ended()
    assert [brief(event) for event in await recorded(relay)] == [
        ("auth", "timeout", ""),
        ("close", "forced", "auth_timeout"),
        ("close", "forced", "handshake_timeout"),
    ]


@pytest.mark.mock_clock
async def test_a_renewal_is_an_attempt_also_in_vain(relay: MemoryRelay) -> None:
    client = await relay.login(ANN)
    await client.ask({"type": "auth", "token": ANN})
    await client.ask({"type": "auth", "token": BOB})
    renewals = (await recorded(relay))[1:]
    assert [(brief(event), event.user_id) for event in renewals] == [
        (("auth", "succeeded", "renewal"), "ann"),
        (("auth", "refused", "the connection is another's"), "bob"),
    ]


@pytest.mark.mock_clock
async def test_a_registration_names_the_stream_and_so_does_a_refused_one(
    relay: MemoryRelay,
) -> None:
    await relay.phone("front-door", ANN)
    bob = await relay.login(BOB)
    await bob.ask({"type": "register", "streamId": "front-door"})
    sentry = await relay.login(SENTRY)
    await sentry.ask({"type": "register", "streamId": "front-door"})
    relay.owners.away = True
    await bob.ask({"type": "register", "streamId": "porch"})
    events = [event for event in await recorded(relay) if event.what == "register"]
    assert [(event.outcome, event.reason, event.stream_id) for event in events] == [
        ("succeeded", "", "front-door"),
        ("refused", "This stream id is taken", "front-door"),
        ("refused", "This service may not register this stream", "front-door"),
        ("unavailable", "", "porch"),
    ]
    assert [event.user_id or event.service for event in events] == ["ann", "bob", "sentry", "bob"]


@pytest.mark.mock_clock
async def test_a_takeover_says_from_whom_and_the_other_is_closed(relay: MemoryRelay) -> None:
    first = await relay.phone()
    await relay.phone()
    await first.has_ended()
    events = [event for event in await recorded(relay) if event.what != "auth"]
    assert [(event.connection, *brief(event)) for event in events] == [
        (1, "register", "succeeded", ""),
        (2, "takeover", "succeeded", "from connection 1"),
        (1, "close", "forced", "superseded"),
    ]


@pytest.mark.mock_clock
async def test_a_registration_that_comes_too_late_is_refused(relay: MemoryRelay) -> None:
    early = await relay.login(ANN)
    await relay.phone()
    await early.send({"type": "register", "streamId": "front-door"})
    await early.has_ended()
    events = [event for event in await recorded(relay) if event.connection == 1]
    assert [brief(event) for event in events[1:]] == [
        ("register", "refused", "a newer connection produces it"),
        ("close", "forced", "superseded"),
    ]


@pytest.mark.mock_clock
async def test_registering_again_and_coming_back_are_no_takeovers(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await phone.ask({"type": "register", "streamId": "front-door"})
    phone.link.close()
    await trio.testing.wait_all_tasks_blocked()
    await relay.phone()
    events = [event.what for event in await recorded(relay)]
    assert events == ["auth", "register", "register", "auth", "register"]


@pytest.mark.mock_clock
async def test_an_alert_or_a_frame_for_a_foreign_stream_is_a_refusal(relay: MemoryRelay) -> None:
    await relay.phone("front-door", ANN)
    bob = await relay.phone("porch", BOB)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    await bob.ask(alert)
    for _ in range(50):
        await bob.send({"type": "video-frame", "streamId": "front-door", "data": "AAAA"})
    await bob.receive_type("error")
    relay.verifier.identities["mute"] = Service(
        "mute", frozenset({"front-door"}), alerts=False, operate=False
    )
    mute = await relay.login("mute")
    await mute.ask(alert)
    events = [event for event in await recorded(relay) if event.outcome == "refused"]
    assert [(event.what, event.user_id or event.service, event.stream_id) for event in events] == [
        ("alert", "bob", "front-door"),
        ("video-frame", "bob", "front-door"),
        ("alert", "mute", "front-door"),
    ]


@pytest.mark.mock_clock
async def test_a_token_in_the_place_of_a_stream_id_is_not_recorded(
    relay: MemoryRelay, lines: Lines
) -> None:
    relay.verifier.identities["new-token-of-ann"] = relay.verifier.identities[ANN]
    ann = await relay.login(ANN)
    await ann.ask({"type": "register", "streamId": ANN})
    await ann.ask({"type": "auth", "token": "new-token-of-ann"})
    alert = {"type": "alert", "streamId": "new-token-of-ann", "severity": "low", "message": "m"}
    await ann.ask(alert)
    events = [event for event in await recorded(relay) if event.what != "auth"]
    assert [(event.what, event.stream_id) for event in events] == [
        ("register", "(hidden)"),
        ("alert", "(hidden)"),
    ]
    assert "token-of-ann" not in repr(lines())


@pytest.mark.mock_clock
async def test_who_leaves_is_logged_and_no_row(relay: MemoryRelay, lines: Lines) -> None:
    client = await relay.login(ANN)
    client.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert [event.what for event in await recorded(relay)] == ["auth"]
    assert [(line["outcome"], line["reason"]) for line in lines() if line["event"] == "close"] == [
        ("left", "client_gone")
    ]


@pytest.mark.mock_clock
async def test_a_row_and_its_line_say_the_same(relay: MemoryRelay, lines: Lines) -> None:
    first = await relay.phone()
    await relay.phone()
    await first.has_ended()
    stranger = await relay.open()
    await stranger.send({"type": "auth", "token": "wrong"})
    await stranger.has_ended()
    rows = await recorded(relay)
    assert len(rows) == 7
    ours = [line for line in lines() if line["logger"] == "relay.audit"]
    for row, line in zip(rows, ours, strict=True):
        for name in ("timestamp", "level", "logger"):
            line.pop(name, None)
        assert line == {"event": row.what, **row.details()}


# -- how it is written


@pytest.fixture
def rows() -> MemoryAuditStore:
    return MemoryAuditStore()


@pytest.fixture
def log(rows: MemoryAuditStore) -> AuditLog:
    return AuditLog(rows)


@pytest.mark.mock_clock
async def test_events_become_rows_in_order_and_a_storm_of_them_few_batches(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    sizes: list[int] = []
    rows.on_write = lambda events: sizes.append(len(events))
    async with writing(log):
        record(log, *range(1200))
        await trio.sleep(3 * AUDIT_LINGER)
        assert reasons(rows) == [str(number) for number in range(1200)]
        assert sizes == [AUDIT_BATCH] * 6
        for number in range(10):
            record(log, number)
            await trio.sleep(AUDIT_LINGER / 20)
        await trio.sleep(2 * AUDIT_LINGER)
    assert sizes[6:] == [10]
    assert (log.written, log.dropped, log.waiting) == (1210, 0, 0)


@pytest.mark.mock_clock
async def test_nothing_is_lost_while_the_store_is_away_for_a_while(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    async with writing(log):
        rows.away = True
        for number in range(60):
            record(log, number)
            await trio.sleep(1)
        assert rows.rows == []
        rows.away = False
        await trio.sleep(3)
        assert reasons(rows) == [str(number) for number in range(60)]
    assert log.dropped == 0


@pytest.mark.mock_clock
async def test_what_has_no_room_is_dropped_counted_and_said_once_and_at_the_end_how_many(
    log: AuditLog, rows: MemoryAuditStore, lines: Lines
) -> None:
    async with writing(log):
        rows.away = True
        record(log, *range(MAX_WAITING_EVENTS + 123))
        await trio.sleep(100)
        record(log, *range(7))
        assert (log.waiting, log.dropped) == (MAX_WAITING_EVENTS, 130)
        rows.away = False
        await trio.sleep(100)
        record(log, "after")
    assert reasons(rows) == [
        *(str(number) for number in range(MAX_WAITING_EVENTS)),
        "130 earlier events are missing",
        "after",
    ]
    assert brief(rows.rows[MAX_WAITING_EVENTS])[:2] == ("audit", "incomplete")
    warnings = [line for line in lines() if line["level"] == "warning"]
    assert [line["event"] for line in warnings] == [
        "audit rows are dropped: too many wait for the database",
        "audit",
    ]


def knock(log: AuditLog, times: int, address: str = "192.0.2.66") -> None:
    for _ in range(times):
        log.record("close", outcome="forced", reason="forbidden", address=address)


@pytest.mark.mock_clock
async def test_what_a_stranger_meets_again_and_again_is_a_row_a_minute(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    async with writing(log):
        await trio.sleep(1)
        knock(log, 500)
        knock(log, 1, "192.0.2.1")
        await trio.sleep(1)
        assert reasons(rows) == ["forbidden", "forbidden"]
        await trio.sleep(REPETITION_INTERVAL)
        assert [(row.reason, row.address) for row in rows.rows[2:]] == [
            ("forbidden, 499 more", "192.0.2.66")
        ]
        knock(log, 20)
        knock(log, 1, "192.0.2.1")
        await trio.sleep(REPETITION_INTERVAL)
        assert reasons(rows)[3:] == ["forbidden", "forbidden, 20 more"]
        await trio.sleep(2 * REPETITION_INTERVAL)
        knock(log, 4)
    assert reasons(rows)[5:] == ["forbidden", "forbidden, 3 more"]
    assert log.dropped == 0


@pytest.mark.mock_clock
async def test_what_happens_to_somebody_is_a_row_each_time(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    async with writing(log):
        for _ in range(3):
            log.record("close", outcome="forced", reason="rate_limited", user_id="ann")
            log.record("close", outcome="forced", reason="rate_limited", service="sentry")
            log.record("auth", outcome="failed", address="192.0.2.66")
    assert len(rows.rows) == 9


@pytest.mark.mock_clock
async def test_strangers_fill_half_of_the_room_at_most_however_many_they_are(
    log: AuditLog, rows: MemoryAuditStore, lines: Lines
) -> None:
    async with writing(log):
        for _ in range(2):  # the second time with room again
            rows.away = True
            for number in range(MAX_WAITING_ANONYMOUS + 100):
                log.record("auth", outcome="failed", address=f"192.0.2.{number}")
            assert log.waiting == MAX_WAITING_ANONYMOUS
            record(log, *range(MAX_WAITING_EVENTS - MAX_WAITING_ANONYMOUS))
            assert (log.waiting, log._anonymous) == (MAX_WAITING_EVENTS, MAX_WAITING_ANONYMOUS)
            rows.away = False
            await trio.sleep(2 * REPETITION_INTERVAL)
            assert (log.waiting, log._anonymous) == (0, 0)
    users = [row for row in rows.rows if row.user_id]
    assert len(users) == 2 * (MAX_WAITING_EVENTS - MAX_WAITING_ANONYMOUS)
    warnings = [line for line in lines() if line["level"] == "warning"]
    assert [warning.get("most") for warning in warnings] == [MAX_WAITING_ANONYMOUS, None] * 2


@pytest.mark.mock_clock
async def test_the_kinds_of_repetitions_that_are_counted_are_bounded(log: AuditLog) -> None:
    for number in range(MAX_REPETITIONS + 10):
        knock(log, 2, f"192.0.2.{number}")
    assert len(log._repetitions._counts) == MAX_REPETITIONS + 1
    assert log.waiting == MAX_REPETITIONS + 1


@pytest.mark.mock_clock
async def test_the_log_has_the_lines_that_the_table_has(
    log: AuditLog, rows: MemoryAuditStore, lines: Lines
) -> None:
    async with writing(log):
        knock(log, 500)
        record(log, *range(3))
        await trio.sleep(REPETITION_INTERVAL + 1)
    assert [line["reason"] for line in lines()] == reasons(rows)
    assert reasons(rows) == ["forbidden", "0", "1", "2", "forbidden, 499 more"]


@pytest.mark.mock_clock
async def test_who_is_refused_at_the_door_fills_no_audit(relay: MemoryRelay) -> None:
    relay.guard = Guard(connection_rate=RateLimiter("10/minute"))
    for _ in range(100):
        client = relay.connect()
        await client.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
        await client.has_ended()
    await trio.testing.wait_all_tasks_blocked()
    rows = await recorded(relay)
    assert [brief(row) for row in rows] == [
        ("close", "forced", "rate_limited"),
        ("close", "forced", "rate_limited, 89 more"),
    ]


@pytest.mark.mock_clock
@pytest.mark.parametrize("seconds", [30, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_flood_that_is_faster_than_the_store_is_said_once(
    log: AuditLog, rows: MemoryAuditStore, lines: Lines, seconds: int
) -> None:
    rows.delay = 1
    async with writing(log):
        for second in range(seconds):
            record(log, *(f"{second}.{number}" for number in range(3 * AUDIT_BATCH)))
            assert log.waiting <= MAX_WAITING_EVENTS
            await trio.sleep(1)
        assert log.dropped > 0
        await trio.sleep(120)
    assert [line["event"] for line in lines() if line["level"] == "warning"] == [
        "audit rows are dropped: too many wait for the database",
        "audit",
    ]
    assert f"{log.dropped} earlier events are missing" in reasons(rows)
    assert log.written == len(rows.rows) == seconds * 3 * AUDIT_BATCH - log.dropped + 1


@pytest.mark.mock_clock
async def test_what_waits_is_written_when_relay_stops(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    rows.delay = 0.1
    begun = trio.current_time()
    async with writing(log):
        record(log, *range(1200))
    assert len(rows.rows) == 1200
    assert trio.current_time() - begun < 1


@pytest.mark.mock_clock
async def test_a_batch_that_the_stop_interrupts_is_written_once(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    rows.delay = 1
    async with writing(log):
        record(log, *range(300))
        await trio.sleep(AUDIT_LINGER + 0.5)
    assert reasons(rows) == [str(number) for number in range(300)]


@pytest.mark.parametrize("trouble", ["away", "slow"])
@pytest.mark.mock_clock
async def test_a_stop_does_not_wait_long_for_the_store_and_says_what_is_lost(
    trouble: str, log: AuditLog, rows: MemoryAuditStore, lines: Lines
) -> None:
    rows.away, rows.delay = trouble == "away", 0.0 if trouble == "away" else 1000.0
    async with writing(log):
        record(log, *range(12))
        await trio.sleep(10)
        begun = trio.current_time()
    assert trio.current_time() - begun == pytest.approx(AUDIT_FLUSH_TIMEOUT)
    assert (log.dropped, rows.rows) == (12, [])
    assert lines()[-1]["lost"] == 12


@pytest.mark.mock_clock
async def test_a_batch_that_cannot_be_written_holds_up_none_behind_it(
    log: AuditLog, rows: MemoryAuditStore, lines: Lines
) -> None:
    rows.broken = True
    async with writing(log):
        record(log, 1, 2, 3)
        await trio.sleep(AUDIT_LINGER + 0.01)
        rows.broken = False
        record(log, 4)
        await trio.sleep(10)
        assert reasons(rows) == ["4", "3 earlier events are missing"]
        assert (log.written, log.dropped) == (2, 3)
    assert "service failed" in [line["event"] for line in lines()]


@pytest.mark.mock_clock
async def test_a_batch_that_was_written_unheard_is_not_written_twice(
    log: AuditLog, rows: MemoryAuditStore
) -> None:
    rows.answer_lost = True
    async with writing(log):
        record(log, 1, 2)
        await trio.sleep(3)
        rows.answer_lost = False
        await trio.sleep(3)
    assert reasons(rows) == ["1", "2"]


@pytest.mark.mock_clock
async def test_old_rows_are_pruned_in_small_batches_again_and_again(
    rows: MemoryAuditStore, lines: Lines
) -> None:
    log = AuditLog(rows, timedelta(days=7))
    rows.old = 2500
    async with writing(log):
        await trio.sleep(1)
        assert rows.pruned == [(timedelta(days=7), most) for most in (1000, 1000, 500)]
        rows.old, rows.away = 1, True
        await trio.sleep(3600)
        rows.away = False
        await trio.sleep(3600)
        assert rows.old == 0
    assert lines() == []


def test_without_a_table_there_is_the_line_only(lines: Lines) -> None:
    log = AuditLog(None)
    record(log, 1)
    assert [line["reason"] for line in lines()] == ["1"]
    assert log.waiting == 0


def test_a_log_that_cannot_be_written_to_does_not_stop_the_row(
    log: AuditLog, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    configure_logging("info", "json", out)
    out.close()
    record(log, 1)
    assert log.waiting == 1


@given(st.text())
def test_whatever_a_value_is_it_fits_a_line_and_a_column(text: str) -> None:
    event = AuditEvent(what="auth", outcome="failed", reason=text, user_id=text)
    assert event.reason.isprintable()
    assert len(event.reason) <= MAX_VALUE_LENGTH
    assert event.reason.encode("utf-8") == (event.user_id or "").encode("utf-8")
    if text.isprintable() and len(text) <= MAX_VALUE_LENGTH:
        assert event.reason == text
