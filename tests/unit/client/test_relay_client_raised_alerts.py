"""Alerts that a client raises: sent until they are stored, or refused."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client import ClientClosed, ClientState, ServerError
from relay.client.state.alert_outbox import MAX_PENDING_ALERTS
from tests.unit.client.scripted_relay import ScriptedRelay, never_returns, open_client, state
from tests.unit.memory.scripted_server import ScriptedServer

pytestmark = pytest.mark.mock_clock


async def test_an_alert_is_sent_until_it_is_stored_and_always_with_the_same_key(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        stored: list[int] = []

        async def warn() -> None:
            stored.append((await client.alert("door", "Smoke", severity="high")).alert_id)

        nursery.start_soon(warn)
        server = await scripted.login()
        first = await server.receive()
        await server.lose()
        server = await scripted.login()
        second = await server.receive()
        error = {"code": "STORE_UNAVAILABLE", "message": "away", "retryAfter": 100}
        await server.send("error", id=second["id"], **error)
        third = await server.answer(alertId=3, streamId="door")
    assert stored == [3]
    for alert in (first, second, third):
        del alert["id"]
    assert first == second == third
    assert first["alertKey"]


async def test_an_alert_that_is_refused_is_told_to_who_raised_it(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client, trio.open_nursery() as nursery:

        async def refuse() -> None:
            server = await scripted.login()
            await server.refuse("UNAUTHORIZED", "no")

        nursery.start_soon(refuse)
        with pytest.raises(ServerError, match="UNAUTHORIZED"):
            await client.alert("of-somebody", "x")
        with trio.move_on_after(1):
            await client.alert("door", "nobody answers")
        assert not client._lifecycle.desired.outbox._pending


async def test_alerts_that_wait_are_bounded_and_end_with_the_client(
    scripted: ScriptedRelay,
) -> None:
    scripted.away = True
    async with trio.open_nursery() as nursery, open_client(scripted) as client:

        async def warn() -> None:
            with pytest.raises(ClientClosed):
                await client.alert("door", "x")

        for _ in range(MAX_PENDING_ALERTS):
            nursery.start_soon(warn)
        await trio.sleep(0.01)
        with pytest.raises(ServerError, match="RATE_LIMITED"):
            await client.alert("door", "one more")


async def test_an_alert_for_the_own_stream_waits_for_its_registration(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        client.publish("door")
        nursery.start_soon(client.alert, "door", "mine")
        nursery.start_soon(client.alert, "gate", "of another")
        server = await scripted.login()
        request = await server.receive()
        other = await server.answer(alertId=1, streamId="gate")
        assert (request["type"], other["streamId"]) == ("register", "gate")
        await never_returns(server.receive)
        await server.send("success", id=request["id"], timestamp=1, streamId="door")
        assert (await server.answer(alertId=2, streamId="door"))["streamId"] == "door"


async def too_many(server: ScriptedServer) -> None:
    request = await server.refuse("RATE_LIMITED", "later", retryAfter=60_000)
    assert request["type"] == "alert"


async def test_an_alert_that_the_next_connection_stores_is_told_at_once(
    scripted: ScriptedRelay,
) -> None:
    stored: list[float] = []
    async with open_client(scripted) as client, trio.open_nursery() as nursery:

        async def raise_alert() -> None:
            await client.alert("door", "somebody is there")
            stored.append(trio.current_time())

        nursery.start_soon(raise_alert)
        server = await scripted.login()
        await too_many(server)
        await trio.sleep(0.1)
        await server.lose()
        server = await scripted.login()
        await server.answer(alertId=3, streamId="door")
        answered = trio.current_time()
    assert stored == [pytest.approx(answered, abs=1)]


async def test_an_alert_that_waits_to_be_tried_again_fails_when_the_client_ends(
    scripted: ScriptedRelay,
) -> None:
    failed: list[float] = []
    async with open_client(scripted) as client, trio.open_nursery() as nursery:

        async def raise_alert() -> None:
            with pytest.raises(ClientClosed):
                await client.alert("door", "somebody is there")
            failed.append(trio.current_time())

        nursery.start_soon(raise_alert)
        server = await scripted.login()
        await too_many(server)
        await trio.sleep(0.1)
        await server.socket.aclose(4501, "session revoked")
        await state(client, ClientState.CLOSED)
        closed = trio.current_time()
    assert failed == [pytest.approx(closed, abs=1)]


async def test_a_senseless_answer_to_an_alert_ends_the_connection_and_not_the_call(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.alert, "door", "somebody is there")
        server = await scripted.login()
        await server.answer(alertId="three", streamId="door")
        server = await scripted.login()
        await server.answer(alertId=3, streamId="door")
