"""Alerts, from a service's connection through the table to everyone who shall hear them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import psycopg
import trio

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id
from tests.integration.relay_process import (
    RelayProcess,
    run_relay,
    start_relay,
    until,
)

ALERTS_LOCK = "select relay.lock_alerts()"
BIG = bytes(64 * 1024)


def alert(stream_id: str, text: str = "Smoke", **fields: Any) -> Message:
    return {
        "type": "alert",
        "streamId": stream_id,
        "severity": "high",
        "message": text,
        **fields,
    }


@contextmanager
def alerts_locked(accounts: Accounts) -> Iterator[None]:
    """No alert is stored within the block."""
    with psycopg.connect(accounts.url) as connection:
        connection.execute(ALERTS_LOCK)
        yield


async def until_one_waits_to_be_stored(accounts: Accounts) -> None:
    waiting = (
        "select 1 from pg_locks where relation = 'relay.alert_order'::regclass and not granted"
    )
    await until(lambda: bool(accounts.execute(waiting)))


async def hear(peer: Peer, count: int) -> list[Message]:
    return [await peer.receive_type("alert") for _ in range(count)]


async def test_an_alert_is_acknowledged_once_it_is_committed(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    made = run_relay(
        "token", "service", "detector", "--consume", stream_id, "--alerts",
        database_url=accounts.url,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    async with (
        login(relay, accounts.session()) as phone,
        login(relay, made.stdout.strip()) as detector,
    ):
        await phone.register(stream_id)
        with alerts_locked(accounts):
            await detector.send(alert(stream_id, metadata={"confidence": 0.9}))
            await until_one_waits_to_be_stored(accounts)
            assert (await relay.get("/health")).status == 200
            with trio.move_on_after(0.1) as silence:
                await detector.receive()
            assert silence.cancelled_caught
        reply = await detector.receive()
        # As anybody may see it at this moment:
        stored = accounts.execute(
            "select alert_id, sender, severity, message, metadata from relay.alerts"
            " where stream_id = %s",
            stream_id,
        )
        assert (reply["code"], reply["streamId"]) == ("ALERT_ACCEPTED", stream_id)
        expected = (reply["alertId"], "service:detector", "high", "Smoke", {"confidence": 0.9})
        assert stored == [expected]


async def test_phone_and_viewers_hear_an_alert_and_strangers_do_not(
    relay: RelayProcess, accounts: Accounts
) -> None:
    ann, stream_id = accounts.session("ann"), new_stream_id()
    async with (
        login(relay, ann) as phone,
        login(relay, ann) as viewer,
        login(relay, accounts.session("bob")) as stranger,
        login(relay, accounts.service(stream_id)) as detector,
    ):
        await phone.register(stream_id)
        for peer in (viewer, stranger, detector):
            await peer.subscribe(stream_id)
        sent = alert(stream_id, metadata={"zone": 3}, timestamp=1_700_000_000_000)
        reply = await detector.ask(sent)
        for peer in (phone, viewer, detector):
            heard = await peer.receive_type("alert")
            assert heard == {**sent, "alertId": reply["alertId"]}
        # What comes behind it comes to the stranger alone.
        answer = await stranger.ask({"type": "unsubscribe", "streamId": stream_id})
        assert answer["code"] == "UNSUBSCRIBED"
        assert stranger.passed_over == []


async def test_an_alert_goes_before_the_video_that_waits(
    relay: RelayProcess, accounts: Accounts
) -> None:
    ann, stream_id = accounts.session(), new_stream_id()
    async with (
        login(relay, ann) as phone,
        login(relay, ann, max_queue=1) as slow,
        login(relay, accounts.service(stream_id)) as detector,
    ):
        await phone.register(stream_id)
        await slow.subscribe(stream_id)
        before = await figures(relay)

        async def since(name: str) -> int:
            return (await figures(relay))[name] - before[name]

        async def until_there_are(count: int, name: str) -> None:
            async def there_are() -> bool:
                return await since(name) == count

            await until(there_are)

        sent = 0
        while await since("dropped") == 0:  # it reads nothing until now
            await phone.send_frame(BIG)
            sent += 1
            await until_there_are(sent, "accepted")
        written = await since("written")
        await detector.ask(alert(stream_id))
        await until_there_are(2, "alerts")
        await phone.send_frame(BIG)
        await until_there_are(sent + 1, "accepted")

        heard = [await slow.receive() for _ in range(written + 2)]
        kinds = [message["type"] for message in heard if message["type"] != "status"]
        assert kinds == ["video-frame"] * written + ["alert"]
        assert (await slow.receive_type("video-frame"))["seq"] == sent + 1


async def figures(relay: RelayProcess) -> dict[str, int]:
    stats = await relay.stats()
    frames = stats["frames_to_consumers"]
    return {
        "accepted": stats["frames_accepted"],
        "written": frames["written"],
        "dropped": sum(frames["dropped"].values()),
        "alerts": stats["alerts_delivered"],
    }


async def test_the_same_key_is_the_same_alert(relay: RelayProcess, accounts: Accounts) -> None:
    stream_id = new_stream_id()
    async with (
        login(relay, accounts.session()) as phone,
        login(relay, accounts.service(stream_id)) as detector,
    ):
        await phone.register(stream_id)
        first = await detector.ask(alert(stream_id, alertKey="k"))
        again = await detector.ask(alert(stream_id, alertKey="k"))
        other = await detector.ask(alert(stream_id, alertKey="l"))
        assert first["alertId"] == again["alertId"] < other["alertId"]
        ids = [message["alertId"] for message in await hear(phone, 2)]
        assert ids == [first["alertId"], other["alertId"]]


async def test_alerts_for_streams_of_others_are_refused(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    async with AsyncExitStack() as stack:

        async def enter(token: str) -> Peer:
            return await stack.enter_async_context(login(relay, token))

        phone = await enter(accounts.session("ann"))
        await phone.register(stream_id)
        of_everything = await enter(accounts.service("*"))
        unknown = await of_everything.ask(alert(new_stream_id()))
        assert (unknown["type"], unknown["code"]) == ("error", "UNAUTHORIZED")
        for token in (
            accounts.session("bob"),
            accounts.service(new_stream_id()),
            accounts.service(stream_id, alerts=False),
        ):
            reply = await (await enter(token)).ask(alert(stream_id))
            assert (reply["type"], reply["code"]) == ("error", "UNAUTHORIZED")
            assert reply["streamId"] == stream_id
        assert (await of_everything.ask(alert(stream_id)))["code"] == "ALERT_ACCEPTED"
        assert (await phone.ask(alert(stream_id)))["code"] == "ALERT_ACCEPTED"
    stored = accounts.execute("select 1 from relay.alerts where stream_id = %s", stream_id)
    assert len(stored) == 2


async def test_ids_grow_in_the_order_of_delivery_with_many_senders_on_two_relays(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    detector, each = accounts.service(stream_id), 20
    accepted: list[list[int]] = []

    async def raise_alerts(where: RelayProcess) -> None:
        async with login(where, detector) as sender:
            replies = [await sender.ask(alert(stream_id)) for _ in range(each)]
            accepted.append([reply["alertId"] for reply in replies])

    with start_relay(database_url=accounts.url) as other:
        async with login(relay, accounts.session()) as phone:
            await phone.register(stream_id)
            async with trio.open_nursery() as nursery:
                for where in (relay, other) * 4:
                    nursery.start_soon(raise_alerts, where)
            # One more, so that what the other relay stored is sure to be dispatched here.
            last = await phone.ask(alert(stream_id))
            ids = [message["alertId"] for message in await hear(phone, 8 * each + 1)]
    assert all(mine == sorted(mine) for mine in accepted)
    assert ids == sorted(ids)
    assert set(ids) == {last["alertId"]}.union(*accepted)
    assert len(set(ids)) == 8 * each + 1
