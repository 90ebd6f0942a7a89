"""When `RelayClient` comes back after a loss, and when not; and how it knows the relay's clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing
import trio_websocket

from relay.client import ClientClosed, ClientState, Disconnected, open_relay_client
from relay.client.connection import clock as relay_clock
from relay.client.errors import DialFailed
from relay.protocol.messages import now_ms
from tests.unit.client.scripted_relay import (
    POLICY,
    TOKEN,
    ScriptedRelay,
    next_of,
    open_client,
    open_door,
    state,
    subscribed,
)

pytestmark = pytest.mark.mock_clock


@pytest.mark.parametrize(
    ("code", "error"), [(4501, "SESSION_REVOKED"), (4502, "SUPERSEDED"), (1009, "MESSAGE_TOO_BIG")]
)
async def test_an_ending_without_return_is_told_and_final(
    scripted: ScriptedRelay, code: int, error: str
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
        await server.send("error", code=error, message="the reason", timestamp=1)
        await server.socket.aclose(code, "bye")
        await state(client, ClientState.CLOSED)
        with pytest.raises(ClientClosed) as caught:
            await anext(client)
        assert (caught.value.code, caught.value.close_code) == (error, code)
        await trio.sleep(1000)
        assert len(scripted.dialled) == 1
        with pytest.raises(ClientClosed):
            client.subscribe("door")
        with pytest.raises(ClientClosed):
            await client.alert("door", "x")


async def test_a_last_word_without_a_close_ends_the_connection_soon(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
        await server.send("error", code="SESSION_REVOKED", message="ended", timestamp=1)
        before = trio.current_time()
        with pytest.raises(ClientClosed, match="SESSION_REVOKED"):
            await next_of(client, int)
        assert trio.current_time() - before < 4


async def test_the_refusal_of_a_request_is_not_why_the_connection_is_lost_after_it(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
        client.watch_streams()
        await server.refuse("RATE_LIMITED", "too many", retryAfter=60_000)
        await trio.sleep(0.1)
        await server.lose()
        change = await state(client, ClientState.WAITING)
        assert isinstance(change.error, Disconnected)
        assert change.error.error is None
        assert change.retry_in is not None
        assert change.retry_in < 1


async def test_where_nobody_listens_the_pauses_grow_and_stay_bounded(
    scripted: ScriptedRelay,
) -> None:
    scripted.away = True
    pauses = []
    async with open_client(scripted) as client:
        for _ in range(12):
            change = await state(client, ClientState.WAITING)
            assert isinstance(change.error, DialFailed)
            assert change.retry_in is not None
            pauses.append(change.retry_in)
    assert pauses[0] <= 0.3
    for pause, least in zip(pauses[1:5], (0.3, 0.6, 1.2, 2.4), strict=True):
        assert least <= pause <= 2 * least
    assert all(7.5 <= pause <= 15 for pause in pauses[6:])


async def test_without_luck_each_third_attempt_offers_no_subprotocol(
    scripted: ScriptedRelay,
) -> None:
    scripted.away = True
    async with open_client(scripted) as client:
        while len(scripted.offers) < 7:
            await state(client, ClientState.WAITING)
    assert [bool(offer) for offer in scripted.offers] == [True, True, False] * 2 + [True]


async def test_the_relay_says_when_to_come_back_at_the_earliest(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
        await server.send("notice", code="SERVER_RESTARTING", retryAfter=20_000, timestamp=1)
        await server.socket.aclose(4012, "server restarting")
        change = await state(client, ClientState.WAITING)
        assert isinstance(change.error, Disconnected)
        assert change.retry_in is not None
        assert 20 <= change.retry_in <= 20.6
        await scripted.login()
        assert scripted.dialled[1] - scripted.dialled[0] >= 20


async def test_retry_now_does_not_wait(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
        await server.send("notice", code="SERVER_RESTARTING", retryAfter=900_000, timestamp=1)
        await server.socket.aclose(4012, "server restarting")
        await state(client, ClientState.WAITING)
        client.retry_now()
        await scripted.login()
        assert scripted.dialled[1] - scripted.dialled[0] < 5


async def test_a_relay_that_accepts_and_says_nothing_is_left_in_time(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        await scripted.connection()
        change = await state(client, ClientState.WAITING)
        assert str(change.error) == "closed with 1006 (the relay did not answer in time)"
        await scripted.login()
        await client.ready()


async def test_a_silent_connection_is_asked_for_a_sign_of_life_and_then_given_up(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
        for _ in range(3):
            before = trio.current_time()
            question = await server.receive()
            assert question["type"] == "unsubscribe"
            assert trio.current_time() - before == pytest.approx(POLICY.silence_timeout)
            await server.send("error", id=question["id"], code="INVALID_MESSAGE", message="no")
        await server.receive()
        asked = trio.current_time()
        await state(client, ClientState.WAITING)
        assert trio.current_time() - asked == pytest.approx(POLICY.ping_timeout)


async def test_a_connection_on_which_much_is_heard_and_nothing_answered_is_given_up(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()

        async def talk() -> None:
            for number in range(1000):
                await server.send(
                    "status", streamId="x", epoch=number, status="online", timestamp=1
                )
                await trio.sleep(1)

        with pytest.RaisesGroup(trio_websocket.ConnectionClosed, allow_unwrapped=True):
            await talk()
        assert client.state in {ClientState.WAITING, ClientState.CONNECTING}
        assert trio.current_time() - scripted.dialled[0] == pytest.approx(50, abs=3)


async def test_a_paused_client_is_gone_and_comes_back_when_it_is_resumed(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await open_door(client, scripted)
        client.pause()
        assert await server.close_code() == 1000
        await state(client, ClientState.PAUSED)
        await trio.sleep(1000)
        assert len(scripted.dialled) == 1
        client.resume()
        client.pause()
        client.resume()
        server = await scripted.login()
        assert (await subscribed(server))["streamId"] == "door"


async def test_what_the_relay_sends_without_sense_ends_the_connection_and_not_the_client(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        for nonsense in ("{", "[]", '{"type": "alert"}', b"\xff"):
            server = await scripted.login()
            await client.ready()
            await server.socket.send_message(nonsense)
            change = await state(client, ClientState.WAITING)
            assert "cannot read the relay" in str(change.error)


@pytest.mark.parametrize("url", ["", "relay.example.org", "ftp://host", "ws://me:secret@host"])
async def test_an_address_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(DialFailed, match="the URL must look like"):
        async with open_relay_client(url, TOKEN):
            pytest.fail("opened")


async def test_leaving_the_block_says_goodbye_and_leaves_nothing_behind(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await client.ready()
    assert await server.close_code() == 1000
    with pytest.raises(ClientClosed, match="CLOSED"):
        await next_of(client, int)


async def test_clock_and_round_trip_are_those_of_the_quickest_answer(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.connection()
        request = await server.receive()
        far = client.relay_now() + 3_600_000
        await server.send("success", id=request["id"], timestamp=far)
        await client.ready()
        assert client.relay_now() == pytest.approx(far, abs=5000)
        await server.lose()
        await state(client, ClientState.WAITING)
        assert client.relay_now() == pytest.approx(far, abs=5000)


async def test_the_relays_clock_is_known_again_after_ours_was_set(
    scripted: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.connection()
        request = await server.receive()
        true = now_ms()
        await server.send("success", id=request["id"], timestamp=true)
        await client.ready()
        monkeypatch.setattr(relay_clock, "now_ms", lambda: now_ms() + 3_600_000)
        client.relay_now()  # who asks is what notices it
        question = await server.receive()
        assert question["type"] == "unsubscribe"
        await server.send("success", id=question["id"], timestamp=now_ms())
        await trio.testing.wait_all_tasks_blocked()
        assert client.relay_now() == pytest.approx(true, abs=5000)


async def test_a_time_that_is_none_is_not_taken_for_the_relays(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        server = await scripted.connection()
        request = await server.receive()
        late = "9" * 400
        await server.socket.send_message(
            f'{{"type":"success","id":{request["id"]},"timestamp":{late}}}'
        )
        await client.ready()
        assert client.relay_now() == pytest.approx(now_ms(), abs=5000)


@pytest.mark.parametrize("pause", [-5000, int("9" * 400)])
@pytest.mark.parametrize("way", ["answer", "goodbye"])
async def test_a_senseless_pause_ends_the_connection_at_the_most(
    scripted: ScriptedRelay, way: str, pause: int
) -> None:
    async with open_client(scripted) as client:
        client.subscribe("door", alerts=False)
        server = await scripted.login()
        request = await server.receive()
        if way == "answer":
            await server.send(
                "error", id=request["id"], code="RATE_LIMITED", message="", retryAfter=pause
            )
        else:
            await server.send("notice", code="SERVER_RESTARTING", timestamp=1, retryAfter=pause)
            await server.socket.aclose(4012, "server restarting")
        await scripted.login()
        await client.ready()


@pytest.mark.parametrize("message", [b'{"type":"\xff"}', b"\xff"])
async def test_bytes_that_are_no_text_end_the_connection_at_the_most(
    scripted: ScriptedRelay, message: bytes
) -> None:
    async with open_client(scripted) as client:
        server = await scripted.login()
        await server.socket.send_message(message)
        await scripted.login()
        await client.ready()
