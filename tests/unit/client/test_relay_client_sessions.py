"""Where `RelayClient` gets its tokens from, when it renews a session, and when it gives up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client import (
    Authenticated,
    ClientClosed,
    ClientState,
    StateChange,
    TokenRequest,
    TokenUnavailable,
)
from relay.client.relay_client import keep_client
from tests.unit.client.scripted_relay import (
    POLICY,
    TOKEN,
    ScriptedRelay,
    ScriptedTokens,
    next_of,
    open_client,
    state,
)

pytestmark = pytest.mark.mock_clock


async def test_the_token_is_asked_for_before_each_connection(scripted: ScriptedRelay) -> None:
    tokens = ScriptedTokens([TOKEN])
    async with keep_client(scripted.dial, tokens, POLICY) as client:
        for _ in range(3):
            server = await scripted.login(userId="u1", sessionId="s1", expiresAt=9)
            assert await client.ready() == Authenticated("u1", "s1", 9)
            await server.lose()
            await state(client, ClientState.WAITING)
    assert tokens.reasons == ["connect"] * 3


async def test_a_session_is_renewed_on_the_living_connection(scripted: ScriptedRelay) -> None:
    tokens = ScriptedTokens(["first", TokenUnavailable(), "second"])
    async with keep_client(scripted.dial, tokens, POLICY) as client:
        server = await scripted.login(expiresAt=60_000)
        await server.send("notice", code="SESSION_EXPIRING", expiresAt=60_000, timestamp=1)
        request = await server.answer(expiresAt=900_000)
        assert (request["type"], request["token"]) == ("auth", "second")
        while (await next_of(client, Authenticated)).expires_at != 900_000:
            pass
        assert client.session == Authenticated(expires_at=900_000)
    assert len(scripted.dialled) == 1
    expiring = TokenRequest("expiring", 60_000)
    assert tokens.asked == [TokenRequest("connect"), expiring, expiring]


async def test_a_renewal_that_the_relay_cannot_judge_now_is_tried_again(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted):
        server = await scripted.login(expiresAt=60_000)
        await server.send("notice", code="SESSION_EXPIRING", expiresAt=60_000, timestamp=1)
        before = trio.current_time()
        await server.refuse("AUTH_UNAVAILABLE", "away", retryAfter=7000)
        assert (await server.receive())["type"] == "auth"
        assert trio.current_time() == pytest.approx(before + 7)


async def test_an_expired_session_needs_a_fresh_token_until_there_is_a_session(
    scripted: ScriptedRelay,
) -> None:
    tokens = ScriptedTokens([TOKEN, "stale", "fresh"])
    async with keep_client(scripted.dial, tokens, POLICY) as client:
        server = await scripted.login()
        await server.send("error", code="SESSION_EXPIRED", message="over", timestamp=1)
        scripted.away = True
        await server.socket.aclose(4001, "session expired")
        while len(scripted.dialled) < 2:
            await next_of(client, StateChange)
        scripted.away = False
        server = await scripted.connection()
        assert (await server.answer())["token"] == "fresh"
        await client.ready()
        await server.lose()
        await scripted.login()
    assert tokens.reasons == ["connect", "expired", "expired", "connect"]


async def test_a_refused_token_is_replaced_by_another_and_never_tried_twice(
    scripted: ScriptedRelay,
) -> None:
    async def refuse() -> None:
        server = await scripted.connection()
        request = await server.receive()
        text = "Invalid or expired token"
        await server.send("error", id=request["id"], code="AUTH_FAILED", message=text)
        await server.socket.aclose(1008, "Authentication failed")

    good = ScriptedTokens(["guessed", "good"])
    async with keep_client(scripted.dial, good, POLICY) as client:
        await refuse()
        await scripted.login()
        await client.ready()
    assert good.asked == [TokenRequest("connect"), TokenRequest("refused", refused="guessed")]
    assert "guessed" not in repr(good.asked)

    bad = ScriptedTokens(["guessed again"])
    async with keep_client(scripted.dial, bad, POLICY) as client:
        await refuse()
        with pytest.raises(ClientClosed) as caught:
            await client.ready()
    assert (caught.value.code, bad.reasons) == ("AUTH_FAILED", ["connect", "refused"])


async def test_nobody_signed_in_is_an_end_and_a_refresh_that_fails_is_not(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted, None) as client:
        with pytest.raises(ClientClosed, match="NO_TOKEN"):
            await client.ready()
        assert client.state is ClientState.CLOSED
    assert scripted.dialled == []
    away = TokenUnavailable("no network")
    async with open_client(scripted, away, away, TOKEN) as client:
        change = await state(client, ClientState.WAITING)
        assert change.error is away
        await scripted.login()
        await client.ready()


async def test_a_token_that_does_not_come_in_time_is_asked_for_again(
    scripted: ScriptedRelay,
) -> None:
    late = True

    async def token(_request: TokenRequest) -> str:
        await trio.sleep(1000 if late else 0)
        return TOKEN

    async with keep_client(scripted.dial, token, POLICY) as client:
        change = await state(client, ClientState.WAITING)
        assert isinstance(change.error, TokenUnavailable)
        late = False
        await scripted.login()
        await client.ready()


async def test_a_bug_in_the_token_function_ends_the_client_loudly(scripted: ScriptedRelay) -> None:
    with pytest.RaisesGroup(KeyError):
        async with open_client(scripted, KeyError("a bug")):
            await trio.sleep_forever()


async def test_an_error_of_the_application_is_told_beside_one_of_its_token_function(
    scripted: ScriptedRelay,
) -> None:
    async def apply() -> None:
        async with open_client(scripted, RuntimeError("token")):
            try:
                await trio.sleep(10)
            finally:
                raise KeyError("application")

    with pytest.RaisesGroup(KeyError, RuntimeError, flatten_subgroups=True):
        await apply()


async def test_no_repr_holds_the_token(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        server = await scripted.connection()
        assert TOKEN not in repr(client) + repr(client._lifecycle) + repr(
            client._lifecycle.connection
        )
        assert (await server.receive())["token"] == TOKEN
