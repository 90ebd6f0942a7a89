"""Alerts while the database is away, while somebody holds it up, and with one that is broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, until

QUICK = ("--statement-timeout", "0.5", "--connect-timeout", "0.5")


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*QUICK, database_url=database_url) as relay:
        yield relay


def alert(stream_id: str, text: str) -> Message:
    fields = {"streamId": stream_id, "message": text, "alertKey": text}
    return {"type": "alert", "severity": "high", **fields}


async def post(relay: RelayProcess, token: str, content: Message) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"}
    body = json.dumps(content).encode()
    answer = await relay.get("/alerts", "POST", headers=headers, body=body)
    reply = answer.json()
    return answer.status, reply.get("code") or reply["error"]["code"]


async def receive(peer: Peer, count: int) -> list[Message]:
    return [await peer.receive_type("alert") for _ in range(count)]


async def hear(peer: Peer, count: int) -> list[str]:
    return [each["message"] for each in await receive(peer, count)]


async def test_while_the_database_is_away_none_is_acknowledged_and_then_all_goes_on(
    relay: RelayProcess, accounts: Accounts, away: Callable[[], Any]
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    service = accounts.service(stream_id)
    async with login(relay, token) as phone, login(relay, service) as detector:
        await phone.register(stream_id)
        assert (await detector.ask(alert(stream_id, "before")))["code"] == "ALERT_ACCEPTED"
        async with away():
            for _ in range(3):
                reply = await detector.ask(alert(stream_id, "away"))
                assert (reply["type"], reply["code"]) == ("error", "STORE_UNAVAILABLE")
            status, code = await post(relay, service, alert(stream_id, "away"))
            # Whose token it is cannot be seen either.
            assert (status, code) == (503, "AUTH_UNAVAILABLE")
        count = "select count(*) from relay.alerts where stream_id = %s"
        assert accounts.execute(count, stream_id) == [(1,)]

        async def accepted() -> bool:
            reply = await detector.ask(alert(stream_id, "away"))
            return bool(reply["code"] == "ALERT_ACCEPTED")

        await until(accepted)
        assert await post(relay, service, alert(stream_id, "http")) == (200, "ALERT_ACCEPTED")
        accounts.execute("select relay.raise_alert(%s, 'sql')", stream_id)
        assert await hear(phone, 4) == ["before", "away", "http", "sql"]
        services = (await relay.get("/ready")).json()["services"]
        assert services["alert-intake"] == services["alert-dispatch"] == "running"


async def test_who_holds_the_lock_delays_alerts_and_causes_no_false_acknowledgement(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    async with login(relay, token) as phone:
        await phone.register(stream_id)
        with psycopg.connect(accounts.url) as other:
            other.execute("lock table relay.alert_order in exclusive mode")
            reply = await phone.ask(alert(stream_id, "held"))
            assert reply["code"] == "STORE_UNAVAILABLE"
        assert (await phone.ask(alert(stream_id, "held")))["code"] == "ALERT_ACCEPTED"
        assert await hear(phone, 1) == ["held"]


DEEP = '{"a":' * 3_000 + "1" + "}" * 3_000
ODD = {
    "a list": ("low", "m", 1, "[1]"),
    "a number": ("low", "m", 1, "7"),
    "a null": ("low", "m", 1, "null"),
    "too large a number": ("low", "m", 1, '{"n": 123456789012345678901234567890}'),
    "half a character": ("low", "m", 1, r'{"a": "\ud800"}'),
    "deep": ("low", "m", 1, '{"a":' * 33 + "1" + "}" * 33),
    "too deep": ("low", "m", 1, DEEP),
    "too long": ("low", "m" * 3_000_000, 1, None),
    "too much": ("low", "m", 1, '{"a": "' + "x" * 3_000_000 + '"}'),
    "unknown": ("dire", "m", 1, None),
    "of no time": ("low", "m", -(2**63), None),
    "of another age": ("low", "m", 2**63 - 1, '{"zone": 3}'),
}
"""Rows that nobody can send, but that somebody may write into the table: severity, message, time
and metadata."""


async def test_rows_that_are_no_alerts_are_shown_as_far_as_they_go_and_stop_none_behind_them(
    database_url: str, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()

    def check(alerts: list[Message]) -> None:
        assert len(alerts) == len(ODD) + 1
        shown = dict(zip([*ODD, "behind"], alerts, strict=True))
        assert shown["behind"]["message"] == "behind"
        assert shown["unknown"]["severity"] == "medium"
        assert shown["too long"]["message"] == "m" * 8192
        assert [shown[name]["timestamp"] for name in ("of no time", "of another age")] == [0, 2**53]
        assert [each["metadata"] for each in alerts if "metadata" in each] == [{"zone": 3}]

    with start_relay(database_url=database_url) as relay:
        async with login(relay, token) as phone:
            await phone.register(stream_id)
            for severity, message, timestamp, metadata in ODD.values():
                accounts.execute(
                    "select relay.store_alerts(array[%s], '{x}', array[%s], array[%s], array[%s],"
                    " array[%s]::json[], '{null}')",
                    *(stream_id, severity, message, timestamp, metadata),
                )
            accounts.execute("select relay.raise_alert(%s, 'behind')", stream_id)
            with trio.fail_after(20):
                check(await receive(phone, len(ODD) + 1))
            assert relay.log.count("an alert was written by hand") == len(ODD) - 1
            asked = {"type": "alerts-since", "streamId": stream_id}
            for how in ({"after": 0}, {"last": 100}):
                await phone.send({**asked, **how})
                check(await receive(phone, len(ODD) + 1))
                assert (await phone.receive_type("success"))["code"] == "ALERTS_REPLAYED"
        headers = {"Authorization": f"Bearer {token}"}
        answer = await relay.get(f"/alerts?streamId={stream_id}", headers=headers)
        assert answer.status == 200
        check(answer.json()["alerts"][::-1])
