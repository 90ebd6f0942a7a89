"""What an application sees of the client that comes back. The relay is played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
import trio_websocket
from attrs import define, field

from relay.client import (
    Alert,
    Authenticated,
    ClientClosed,
    ClientEvent,
    Demand,
    Disconnected,
    Frame,
    Manners,
    Problem,
    Registered,
    RelayClient,
    ServerError,
    State,
    StateChange,
    Status,
    StreamEntry,
    Streams,
    TokenRequest,
    TokenUnavailable,
    open_relay_client,
)
from relay.client import clock as relay_clock
from relay.client.relay_client import keep_client
from relay.client.sending import MOST_ALERTS_WAITING
from relay.client.unread import MOST_UNREAD
from relay.protocol.messages import now_ms
from relay.transport.dial import DialFailed, WebSocket, open_background, open_websocket
from tests.unit.played_server import Server

pytestmark = pytest.mark.mock_clock

T = TypeVar("T")
TOKEN = "a-very-secret-token"
MANNERS = Manners()


@define(eq=False)
class Relay:
    """Connections come to the test, one after the other."""

    nursery: trio.Nursery
    dialled: list[float] = field(factory=list)
    """When."""
    offers: list[tuple[str, ...]] = field(factory=list)
    """Of subprotocols."""
    away: bool = False
    _put: trio.MemorySendChannel[Server] = field(init=False)
    _get: trio.MemoryReceiveChannel[Server] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[Server](10)

    @asynccontextmanager
    async def dial(self, subprotocols: Sequence[str]) -> AsyncIterator[WebSocket]:
        self.offers.append(tuple(subprotocols))
        await trio.lowlevel.checkpoint()
        self.dialled.append(trio.current_time())
        if self.away:
            raise DialFailed("cannot connect to relay: Connection refused")
        client_end, server_end = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._accept, server_end)
        async with open_websocket(client_end, "relay", "/streams/subscribe") as socket:
            yield socket

    async def _accept(self, stream: trio.abc.Stream) -> None:
        request = await trio_websocket.wrap_server_stream(
            self.nursery, stream, message_queue_size=2000
        )
        await self._put.send(Server(await request.accept()))

    async def connection(self) -> Server:
        """The next one, before its `auth`."""
        return await self._get.receive()

    async def login(self, **session: object) -> Server:
        """The next one, behind its `auth`."""
        server = await self.connection()
        request = await server.answer(**session)
        assert request["type"] == "auth"
        return server


@pytest.fixture
async def played() -> AsyncIterator[Relay]:
    async with open_background() as nursery:
        yield Relay(nursery)


@define(eq=False)
class Tokens:
    """An application that gives its tokens one after the other, and the last again and again."""

    tokens: list[str | Exception | None]
    asked: list[TokenRequest] = field(factory=list)

    async def __call__(self, request: TokenRequest) -> str | None:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        if isinstance(token, Exception):
            raise token
        return token

    @property
    def reasons(self) -> list[str]:
        return [request.reason for request in self.asked]


def open_client(played: Relay, *tokens: str | Exception | None, manners: Manners = MANNERS) -> Any:
    return keep_client(played.dial, Tokens(list(tokens) or [TOKEN]), manners)


async def next_of(client: RelayClient, kind: type[T]) -> T:
    """The next event of a kind; others are passed over."""
    with trio.fail_after(1000):  # by the mock clock
        while not isinstance(event := await anext(client), kind):
            pass
        return event


async def state(client: RelayClient, wanted: State) -> StateChange:
    while (change := await next_of(client, StateChange)).state is not wanted:
        pass
    return change


def unread(client: RelayClient) -> list[ClientEvent]:
    """All that can be taken at once."""
    events = client._life.wants.unread
    return [*events._events.values(), *(f for each in events._frames.values() for f in each)]


async def subscribed(server: Server, stream: str = "door", epoch: int = 7) -> dict[str, Any]:
    """Answer a subscription without alerts; returns what was asked for."""
    request = await server.answer(streamId=stream, epoch=epoch)
    await server.say("status", streamId=stream, epoch=epoch, status="streaming", timestamp=1)
    return request


async def goodbye(server: Server) -> int:
    """The code of the Close that comes next."""
    with pytest.raises(trio_websocket.ConnectionClosed) as caught:
        await server.hear()
    assert caught.value.reason is not None
    return caught.value.reason.code


# -- Tokens


async def test_the_token_is_asked_for_before_each_connection(played: Relay) -> None:
    tokens = Tokens([TOKEN])
    async with keep_client(played.dial, tokens, MANNERS) as client:
        for _ in range(3):
            server = await played.login(userId="u1", sessionId="s1", expiresAt=9)
            assert await client.ready() == Authenticated("u1", "s1", 9)
            await server.socket.aclose(4003, "idle")
            await state(client, State.WAITING)
    assert tokens.reasons == ["connect"] * 3


async def test_a_session_is_renewed_on_the_living_connection(played: Relay) -> None:
    tokens = Tokens(["first", TokenUnavailable(), "second"])
    async with keep_client(played.dial, tokens, MANNERS) as client:
        server = await played.login(expiresAt=60_000)
        await server.say("notice", code="SESSION_EXPIRING", expiresAt=60_000, timestamp=1)
        request = await server.answer(expiresAt=900_000)
        assert (request["type"], request["token"]) == ("auth", "second")
        while (await next_of(client, Authenticated)).expires_at != 900_000:
            pass
        assert client.session == Authenticated(expires_at=900_000)
    assert len(played.dialled) == 1
    expiring = TokenRequest("expiring", 60_000)
    assert tokens.asked == [TokenRequest("connect"), expiring, expiring]


async def test_a_renewal_that_the_relay_cannot_judge_now_is_tried_again(played: Relay) -> None:
    async with open_client(played):
        server = await played.login(expiresAt=60_000)
        await server.say("notice", code="SESSION_EXPIRING", expiresAt=60_000, timestamp=1)
        request = await server.hear()
        before = trio.current_time()
        await server.say(
            "error", id=request["id"], code="AUTH_UNAVAILABLE", message="away", retryAfter=7000
        )
        assert (await server.hear())["type"] == "auth"
        assert trio.current_time() == pytest.approx(before + 7)


async def test_an_expired_session_needs_a_fresh_token_until_there_is_a_session(
    played: Relay,
) -> None:
    tokens = Tokens([TOKEN, "stale", "fresh"])
    async with keep_client(played.dial, tokens, MANNERS) as client:
        server = await played.login()
        await server.say("error", code="SESSION_EXPIRED", message="over", timestamp=1)
        played.away = True
        await server.socket.aclose(4001, "session expired")
        while len(played.dialled) < 2:
            await next_of(client, StateChange)
        played.away = False
        server = await played.connection()
        assert (await server.answer())["token"] == "fresh"
        await client.ready()
        await server.socket.aclose(4003, "idle")
        await played.login()
    assert tokens.reasons == ["connect", "expired", "expired", "connect"]


async def test_a_refused_token_is_replaced_by_another_and_never_tried_twice(played: Relay) -> None:
    async def refuse() -> None:
        server = await played.connection()
        request = await server.hear()
        text = "Invalid or expired token"
        await server.say("error", id=request["id"], code="AUTH_FAILED", message=text)
        await server.socket.aclose(1008, "Authentication failed")

    good = Tokens(["guessed", "good"])
    async with keep_client(played.dial, good, MANNERS) as client:
        await refuse()
        await played.login()
        await client.ready()
    assert good.asked == [TokenRequest("connect"), TokenRequest("refused", refused="guessed")]
    assert "guessed" not in repr(good.asked)

    bad = Tokens(["guessed again"])
    async with keep_client(played.dial, bad, MANNERS) as client:
        await refuse()
        with pytest.raises(ClientClosed) as caught:
            await client.ready()
    assert (caught.value.code, bad.reasons) == ("AUTH_FAILED", ["connect", "refused"])


async def test_nobody_signed_in_is_an_end_and_a_refresh_that_fails_is_not(played: Relay) -> None:
    async with open_client(played, None) as client:
        with pytest.raises(ClientClosed, match="NO_TOKEN"):
            await client.ready()
        assert client.state is State.CLOSED
    assert played.dialled == []
    away = TokenUnavailable("no network")
    async with open_client(played, away, away, TOKEN) as client:
        change = await state(client, State.WAITING)
        assert change.error is away
        await played.login()
        await client.ready()


async def test_a_token_that_does_not_come_in_time_is_asked_for_again(played: Relay) -> None:
    late = True

    async def token(_request: TokenRequest) -> str:
        await trio.sleep(1000 if late else 0)
        return TOKEN

    async with keep_client(played.dial, token, MANNERS) as client:
        change = await state(client, State.WAITING)
        assert isinstance(change.error, TokenUnavailable)
        late = False
        await played.login()
        await client.ready()


async def test_a_bug_in_the_token_function_ends_the_client_loudly(played: Relay) -> None:
    with pytest.RaisesGroup(KeyError):
        async with open_client(played, KeyError("a bug")):
            await trio.sleep_forever()


# -- Coming back


@pytest.mark.parametrize(
    ("code", "error"), [(4501, "SESSION_REVOKED"), (4502, "SUPERSEDED"), (1009, "MESSAGE_TOO_BIG")]
)
async def test_an_ending_without_return_is_told_and_final(
    played: Relay, code: int, error: str
) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
        await server.say("error", code=error, message="the reason", timestamp=1)
        await server.socket.aclose(code, "bye")
        await state(client, State.CLOSED)
        with pytest.raises(ClientClosed) as caught:
            await anext(client)
        assert (caught.value.code, caught.value.close_code) == (error, code)
        await trio.sleep(1000)
        assert len(played.dialled) == 1
        with pytest.raises(ClientClosed):
            client.subscribe("door")
        with pytest.raises(ClientClosed):
            await client.alert("door", "x")


async def test_a_last_word_without_a_close_ends_the_connection_soon(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
        await server.say("error", code="SESSION_REVOKED", message="ended", timestamp=1)
        before = trio.current_time()
        with pytest.raises(ClientClosed, match="SESSION_REVOKED"):
            await next_of(client, int)
        assert trio.current_time() - before < 4


async def test_the_refusal_of_a_request_is_not_why_the_connection_is_lost_after_it(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
        client.watch_streams()
        request = await server.hear()
        await server.say(
            "error",
            id=request["id"],
            code="RATE_LIMITED",
            message="too many",
            retryAfter=60_000,
            timestamp=1,
        )
        await trio.sleep(0.1)
        await server.socket.aclose(4003, "idle")
        change = await state(client, State.WAITING)
        assert isinstance(change.error, Disconnected)
        assert change.error.error is None
        assert change.retry_in is not None
        assert change.retry_in < 1


async def test_a_register_that_came_too_late_ends_the_client_without_a_close(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.publish("door")
        server = await played.login()
        request = await server.hear()
        await server.say(
            "error", id=request["id"], code="SUPERSEDED", message="a newer one has it", timestamp=1
        )
        with pytest.raises(ClientClosed, match="SUPERSEDED"):
            await next_of(client, int)


async def test_a_subscription_made_anew_gets_no_frame_of_the_one_before(played: Relay) -> None:
    async with open_client(played) as client:
        before = client.subscribe("door", alerts=False)
        server = await played.login()
        await server.answer(streamId="door", epoch=7)
        await server.frame(1)
        await next_of(client, Frame)
        before.unsubscribe()
        client.subscribe("door", alerts=False)
        await server.frame(2)
        with trio.move_on_after(0.1):
            pytest.fail(f"{await next_of(client, Frame)} came")
        while (request := await server.hear())["type"] != "subscribe":
            pass
        await server.say(
            "success", id=request["id"], message="", streamId="door", epoch=7, timestamp=1
        )
        await server.frame(3)
        assert (await next_of(client, Frame)).seq == 3


async def test_where_nobody_listens_the_pauses_grow_and_stay_bounded(played: Relay) -> None:
    played.away = True
    pauses = []
    async with open_client(played) as client:
        for _ in range(12):
            change = await state(client, State.WAITING)
            assert isinstance(change.error, DialFailed)
            assert change.retry_in is not None
            pauses.append(change.retry_in)
    assert pauses[0] <= 0.3
    for pause, least in zip(pauses[1:5], (0.3, 0.6, 1.2, 2.4), strict=True):
        assert least <= pause <= 2 * least
    assert all(7.5 <= pause <= 15 for pause in pauses[6:])


async def test_without_luck_each_third_attempt_offers_no_subprotocol(played: Relay) -> None:
    played.away = True
    async with open_client(played) as client:
        while len(played.offers) < 7:
            await state(client, State.WAITING)
    assert [bool(offer) for offer in played.offers] == [True, True, False] * 2 + [True]


async def test_the_relay_says_when_to_come_back_at_the_earliest(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
        await server.say("notice", code="SERVER_RESTARTING", retryAfter=20_000, timestamp=1)
        await server.socket.aclose(4012, "server restarting")
        change = await state(client, State.WAITING)
        assert isinstance(change.error, Disconnected)
        assert change.retry_in is not None
        assert 20 <= change.retry_in <= 20.6
        await played.login()
        assert played.dialled[1] - played.dialled[0] >= 20


async def test_retry_now_does_not_wait(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
        await server.say("notice", code="SERVER_RESTARTING", retryAfter=900_000, timestamp=1)
        await server.socket.aclose(4012, "server restarting")
        await state(client, State.WAITING)
        client.retry_now()
        await played.login()
        assert played.dialled[1] - played.dialled[0] < 5


async def test_a_relay_that_accepts_and_says_nothing_is_left_in_time(played: Relay) -> None:
    async with open_client(played) as client:
        await played.connection()
        change = await state(client, State.WAITING)
        assert str(change.error) == "closed with 1006 (the relay did not answer in time)"
        await played.login()
        await client.ready()


async def test_a_silent_connection_is_asked_for_a_sign_of_life_and_then_given_up(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
        for _ in range(3):
            before = trio.current_time()
            question = await server.hear()
            assert question["type"] == "unsubscribe"
            assert trio.current_time() - before == pytest.approx(MANNERS.silence)
            await server.say("error", id=question["id"], code="INVALID_MESSAGE", message="no")
        await server.hear()
        asked = trio.current_time()
        await state(client, State.WAITING)
        assert trio.current_time() - asked == pytest.approx(MANNERS.patience)


async def test_a_connection_on_which_much_is_heard_and_nothing_answered_is_given_up(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()

        async def talk() -> None:
            for number in range(1000):
                await server.say("status", streamId="x", epoch=number, status="online", timestamp=1)
                await trio.sleep(1)

        with pytest.RaisesGroup(trio_websocket.ConnectionClosed, allow_unwrapped=True):
            await talk()
        assert client.state in {State.WAITING, State.CONNECTING}
        assert trio.current_time() - played.dialled[0] == pytest.approx(50, abs=3)


async def test_a_paused_client_is_gone_and_comes_back_when_it_is_resumed(played: Relay) -> None:
    async with open_client(played) as client:
        client.subscribe("door", alerts=False)
        server = await played.login()
        await subscribed(server)
        client.pause()
        assert await goodbye(server) == 1000
        await state(client, State.PAUSED)
        await trio.sleep(1000)
        assert len(played.dialled) == 1
        client.resume()
        client.pause()
        client.resume()
        server = await played.login()
        assert (await subscribed(server))["streamId"] == "door"


async def test_what_the_relay_sends_without_sense_ends_the_connection_and_not_the_client(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        for nonsense in ("{", "[]", '{"type": "alert"}', b"\xff"):
            server = await played.login()
            await client.ready()
            await server.socket.send_message(nonsense)
            change = await state(client, State.WAITING)
            assert "cannot read the relay" in str(change.error)


@pytest.mark.parametrize("url", ["", "relay.example.org", "ftp://host", "ws://me:secret@host"])
async def test_an_address_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(DialFailed, match="the URL must look like"):
        async with open_relay_client(url, TOKEN):
            pytest.fail("opened")


async def test_leaving_the_block_says_goodbye_and_leaves_nothing_behind(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await client.ready()
    assert await goodbye(server) == 1000
    with pytest.raises(ClientClosed, match="CLOSED"):
        await next_of(client, int)


async def test_no_repr_holds_the_token(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.connection()
        assert TOKEN not in repr(client) + repr(client._life) + repr(client._life.link)
        assert (await server.hear())["token"] == TOKEN


# -- Watching


async def test_subscriptions_are_asked_for_again_on_the_terms_as_they_are_by_then(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        door = client.subscribe("door", alerts=False, max_fps=5)
        gate = client.subscribe("gate", alerts=False, policy="lossless")
        gone = client.subscribe("gone", alerts=False)
        server = await played.login()
        first = await subscribed(server)
        assert {
            key: first[key] for key in ("streamId", "consumes", "policy", "maxFps", "window")
        } == {
            "streamId": "door",
            "consumes": ["video-frame"],
            "policy": "latest",
            "maxFps": 5,
            "window": 4,
        }
        assert (await subscribed(server, "gate"))["window"] == 32
        await subscribed(server, "gone")
        door.update(max_fps=None, window=9)
        changed = await subscribed(server)
        assert ("maxFps" in changed, changed["window"]) == (False, 9)
        gone.unsubscribe()
        assert (await server.answer(streamId="gone"))["type"] == "unsubscribe"
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        again = [await subscribed(server, stream) for stream in ("door", "gate")]
        assert [each["streamId"] for each in again] == ["door", "gate"]
        assert again[0]["window"] == 9
        await trio.testing.wait_all_tasks_blocked()
        assert gate.active
        with pytest.raises(ValueError, match="there is a subscription to gate already"):
            client.subscribe("gate")


async def test_a_refused_subscription_is_a_problem_of_its_stream_and_is_gone(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        wrong = client.subscribe("not an id", alerts=False)
        server = await played.login()
        request = await server.hear()
        await server.say("error", id=request["id"], code="INVALID_MESSAGE", message="streamId: no")
        problem = await next_of(client, Problem)
        assert (problem.stream_id, problem.code) == ("not an id", "INVALID_MESSAGE")
        assert not wrong.active
        client.subscribe("door", alerts=False)
        request = await server.hear()
        before = trio.current_time()
        await server.say(
            "error", id=request["id"], code="STORE_UNAVAILABLE", message="away", retryAfter=5000
        )
        await subscribed(server)
        assert trio.current_time() == pytest.approx(before + 5)
        assert (await next_of(client, Status)).status == "streaming"


async def test_a_frame_is_acknowledged_when_the_event_after_it_is_asked_for(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.subscribe("door", alerts=False)
        server = await played.login()
        await subscribed(server)
        await server.frame(1)
        await server.frame(2)
        first = await next_of(client, Frame)
        assert (first.seq, first.epoch, first.data) == (1, 7, b"picture")
        with trio.move_on_after(1) as waiting:
            await server.hear()
        assert waiting.cancelled_caught
        assert (await next_of(client, Frame)).seq == 2
        ack = await server.hear()
        assert ack == {"type": "ack", "streamId": "door", "seq": 1, "epoch": 7}


async def test_a_frame_that_was_seen_does_not_come_again_and_gaps_are_counted(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.subscribe("door", alerts=False)
        server = await played.login()
        await subscribed(server)
        await server.frame(5)
        assert (await next_of(client, Frame)).missed == 0
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        await subscribed(server)
        for seq in (5, 9):
            await server.frame(seq)
        frame = await next_of(client, Frame)
        assert (frame.seq, frame.missed) == (9, 3)
        await server.say("status", streamId="door", epoch=8, status="streaming", timestamp=1)
        await server.frame(1)
        frame = await next_of(client, Frame)
        assert (frame.seq, frame.epoch, frame.missed) == (1, 8, 0)


async def test_what_is_unread_of_a_lost_connection_makes_room_for_what_is_new(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.subscribe("door", alerts=False)
        server = await played.login()
        await subscribed(server)
        await client.ready()
        for seq in range(1, 9):
            await server.frame(seq)
        await trio.testing.wait_all_tasks_blocked()
        assert [f.seq for f in unread(client) if isinstance(f, Frame)] == [5, 6, 7, 8]
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        await subscribed(server)
        await server.frame(20)
        assert (await next_of(client, Frame)).seq == 20


async def test_streams_that_may_be_seen_are_listed_and_each_change_is_told(played: Relay) -> None:
    async def changed(**fields: object) -> dict[str, str]:
        if fields:
            await server.say("status", timestamp=1, epoch=1, **fields)
        entries = (await next_of(client, Streams)).streams
        return {entry.stream_id: entry.status for entry in entries}

    async with open_client(played) as client:
        client.watch_streams()
        client.watch_streams()
        for _ in range(2):  # also after a loss
            server = await played.login()
            door = {"streamId": "door", "status": "online", "metadata": {"codec": "jpeg"}}
            request = await server.answer(streams=[door])
            assert request["type"] == "streams"
            assert await changed() == {"door": "online"}
            await server.say("status", timestamp=1, epoch=0, streamId="gate", status="offline")
            await server.say("status", timestamp=1, epoch=1, streamId="door", status="streaming")
            entries = (await next_of(client, Streams)).streams
            assert entries == (StreamEntry("door", "streaming", {"codec": "jpeg"}),)
            both = {"door": "streaming", "gate": "online"}
            assert await changed(streamId="gate", status="online") == both
            assert await changed(streamId="door", status="offline") == {"gate": "online"}
            await server.socket.aclose(4003, "idle")


async def test_a_subscription_whose_new_terms_are_refused_is_gone_on_the_relay_too(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        subscription = client.subscribe("door", alerts=False)
        server = await played.login()
        await subscribed(server)
        await next_of(client, Status)
        subscription.update(max_fps=5000)
        request = await server.hear()
        await server.say("error", id=request["id"], code="INVALID_MESSAGE", message="too many")
        assert (await next_of(client, Problem)).stream_id == "door"
        assert not subscription.active
        request = await server.hear()
        assert (request["type"], request["streamId"]) == ("unsubscribe", "door")


@pytest.mark.parametrize("wrong", [object(), 1 << 70])
async def test_what_cannot_be_sent_is_refused_at_once_and_holds_nothing_else_up(
    played: Relay, wrong: object
) -> None:
    async with open_client(played) as client:
        with pytest.raises(ValueError, match="alert: "):
            await client.alert("door", "m", metadata={"wrong": wrong})
        with pytest.raises(ValueError, match="register: "):
            client.publish("door", metadata={"wrong": wrong})
        client.publish("door")
        server = await played.login()
        assert (await server.hear())["type"] == "register"


# -- Alerts


def page(request: dict[str, Any]) -> tuple[Any, ...]:
    return request["type"], request.get("after"), request.get("last")


async def replay(server: Server, *numbers: int, more: bool = False) -> dict[str, Any]:
    request = await server.hear()
    for number in numbers:
        await server.alert(number)
    await server.say("success", id=request["id"], message="", timestamp=1, more=more)
    return request


async def test_alerts_go_on_from_the_last_one_seen_each_once_and_in_order(played: Relay) -> None:
    async with open_client(played) as client:
        client.subscribe("door", frames=False)
        server = await played.login()
        assert page(await replay(server, 3)) == ("alerts-since", None, 1)
        await subscribed(server)
        assert page(await replay(server)) == ("alerts-since", 3, None)
        await server.alert(4)
        alert = await next_of(client, Alert)
        assert (alert.alert_id, alert.replayed) == (4, False)
        await server.socket.aclose(4003, "idle")

        server = await played.login()
        await subscribed(server)
        await server.alert(9)  # live, before the replay has begun
        assert page(await replay(server, 5, 6, more=True)) == ("alerts-since", 4, None)
        assert page(await replay(server, 7, 8, 9)) == ("alerts-since", 6, None)
        await server.alert(10)
        seen = [await next_of(client, Alert) for _ in range(6)]
        assert [each.alert_id for each in seen] == [5, 6, 7, 8, 9, 10]
        assert [each.replayed for each in seen] == [True] * 5 + [False]


async def test_history_comes_first_and_is_marked(played: Relay) -> None:
    async with open_client(played) as client:
        client.subscribe("door", history=2)
        server = await played.login()
        assert page(await replay(server, 6, 7)) == ("alerts-since", None, 2)
        await subscribed(server)
        await replay(server)
        await server.alert(8)
        seen = [await next_of(client, Alert) for _ in range(3)]
        assert [(each.alert_id, each.replayed) for each in seen] == [
            (6, True),
            (7, True),
            (8, False),
        ]


async def test_where_the_last_alert_is_no_longer_kept_all_of_late_are_asked_for(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.subscribe("door")
        server = await played.login()
        await replay(server, 3)
        await subscribed(server)
        request = await server.hear()
        await server.say("error", id=request["id"], code="INVALID_MESSAGE", message="after: pruned")
        assert page(await replay(server, 2, 3, 5)) == ("alerts-since", None, 500)
        assert (await next_of(client, Alert)).alert_id == 5


async def test_no_alert_is_missed_before_a_subscription_that_has_to_be_asked_for_again(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.subscribe("door", frames=False)
        server = await played.login()
        await replay(server, 3)
        request = await server.hear()
        await server.say(
            "error", id=request["id"], code="RATE_LIMITED", message="later", retryAfter=30
        )
        assert page(await replay(server)) == ("alerts-since", 3, None)
        assert (await subscribed(server))["type"] == "subscribe"
        assert page(await replay(server, 4)) == ("alerts-since", 3, None)  # stored meanwhile
        assert (await next_of(client, Alert)).alert_id == 4


async def test_no_alert_is_missed_before_a_registration_that_has_to_be_asked_for_again(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.publish("door", alerts=True)
        server = await played.login()
        await replay(server, 3)
        request = await server.hear()
        await server.say(
            "error", id=request["id"], code="RATE_LIMITED", message="later", retryAfter=30
        )
        assert page(await replay(server)) == ("alerts-since", 3, None)
        assert (await server.answer(streamId="door", epoch=7))["type"] == "register"
        assert page(await replay(server, 4)) == ("alerts-since", 3, None)
        assert (await next_of(client, Alert)).alert_id == 4


async def test_who_publishes_what_is_being_caught_up_with_misses_no_alert(played: Relay) -> None:
    async with open_client(played) as client, trio.open_nursery() as nursery:
        client.subscribe("door", frames=False)
        server = await played.login()
        mark = await server.hear()
        await server.hear()
        client.publish("door", alerts=True)
        stored = [3]

        async def play() -> None:
            request = mark
            while True:
                if request["type"] == "alerts-since":
                    after, last = request.get("after") or 0, request.get("last")
                    for number in stored[-last:] if last else [n for n in stored if n > after]:
                        await server.alert(number)
                await server.say(
                    "success", id=request["id"], message="", timestamp=1, streamId="door", epoch=7
                )
                if request is mark:
                    stored.append(4)
                    await server.alert(4)
                request = await server.hear()

        nursery.start_soon(play)
        assert (await next_of(client, Alert)).alert_id == 4
        nursery.cancel_scope.cancel()


async def test_alerts_beyond_what_may_lie_unread_stay_in_the_store_and_none_is_lost(
    played: Relay,
) -> None:
    many = MOST_UNREAD + 300  # and one more, which comes live into the replay
    async with open_client(played) as client, trio.open_nursery() as nursery:
        client.subscribe("door", frames=False)
        server = await played.login()
        await replay(server)
        await subscribed(server)
        await replay(server)

        async def play() -> None:
            for number in range(1, many + 1):
                await server.alert(number)
            while True:
                request = await server.hear()
                if request["type"] != "alerts-since":
                    await server.say(
                        "error", id=request["id"], code="INVALID_MESSAGE", message="no"
                    )
                    continue
                after = request["after"]
                await server.alert(many + 1)
                last = min(many + 1, after + min(100, request["limit"]))
                for number in range(after + 1, last + 1):
                    await server.alert(number)
                await server.say("success", id=request["id"], timestamp=1, more=last <= many)

        nursery.start_soon(play)
        await trio.sleep(1)
        assert len(unread(client)) <= MOST_UNREAD
        seen = [(await next_of(client, Alert)).alert_id for _ in range(many + 1)]
        assert seen == list(range(1, many + 2))
        nursery.cancel_scope.cancel()


async def test_an_alert_is_sent_until_it_is_stored_and_always_with_the_same_key(
    played: Relay,
) -> None:
    async with open_client(played) as client, trio.open_nursery() as nursery:
        stored: list[int] = []

        async def warn() -> None:
            stored.append((await client.alert("door", "Smoke", severity="high")).alert_id)

        nursery.start_soon(warn)
        server = await played.login()
        first = await server.hear()
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        second = await server.hear()
        error = {"code": "STORE_UNAVAILABLE", "message": "away", "retryAfter": 100}
        await server.say("error", id=second["id"], **error)
        third = await server.answer(alertId=3, streamId="door")
    assert stored == [3]
    for alert in (first, second, third):
        del alert["id"]
    assert first == second == third
    assert first["alertKey"]


async def test_an_alert_that_is_refused_is_told_to_who_raised_it(played: Relay) -> None:
    async with open_client(played) as client, trio.open_nursery() as nursery:

        async def refuse() -> None:
            server = await played.login()
            request = await server.hear()
            await server.say("error", id=request["id"], code="UNAUTHORIZED", message="no")

        nursery.start_soon(refuse)
        with pytest.raises(ServerError, match="UNAUTHORIZED"):
            await client.alert("of-somebody", "x")
        with trio.move_on_after(1):
            await client.alert("door", "nobody answers")
        assert not client._life.wants.alerts._pending


async def test_alerts_that_wait_are_bounded_and_end_with_the_client(played: Relay) -> None:
    played.away = True
    async with trio.open_nursery() as nursery, open_client(played) as client:

        async def warn() -> None:
            with pytest.raises(ClientClosed):
                await client.alert("door", "x")

        for _ in range(MOST_ALERTS_WAITING):
            nursery.start_soon(warn)
        await trio.sleep(0.01)
        with pytest.raises(ServerError, match="RATE_LIMITED"):
            await client.alert("door", "one more")


# -- Publishing


async def registered(server: Server, stream: str = "door") -> dict[str, Any]:
    request = await server.answer(streamId=stream)
    assert request["type"] == "register"
    return request


async def demand(server: Server, consumers: int) -> None:
    await server.say(
        "status", streamId="door", epoch=1, status="online", consumers=consumers, timestamp=1
    )


async def test_a_stream_whose_id_the_relay_made_keeps_it_over_a_reconnect(played: Relay) -> None:
    async with open_client(played) as client:
        phone = client.publish(metadata={"codec": "jpeg"})
        server = await played.login()
        request = await registered(server, "stream_abc")
        assert "streamId" not in request
        assert (request["consumes"], request["metadata"]) == ([], {"codec": "jpeg"})
        assert (await next_of(client, Registered)).stream_id == phone.stream_id == "stream_abc"
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        assert (await registered(server, "stream_abc"))["streamId"] == "stream_abc"
        with pytest.raises(ValueError, match="publishes one stream"):
            client.publish()


async def test_a_phone_hears_when_somebody_watches_and_when_nobody_does(played: Relay) -> None:
    async with open_client(played) as client:
        phone = client.publish("door")
        server = await played.login()
        await registered(server)
        await demand(server, 0)
        with trio.move_on_after(1) as waiting:
            await phone.wanted()
        assert waiting.cancelled_caught
        await demand(server, 1)
        await phone.wanted()
        assert await next_of(client, Demand) == Demand("door", 1)
        await demand(server, 0)
        assert await next_of(client, Demand) == Demand("door", 0)


async def test_a_frame_is_skipped_and_not_queued_while_those_before_are_under_way(
    played: Relay,
) -> None:
    async with open_client(played, manners=Manners(max_buffered=100_000)) as client:
        phone = client.publish("door")
        assert not phone.send_frame(b"too early")
        server = await played.login()
        await registered(server)
        await next_of(client, Registered)
        outcomes = []
        for _ in range(50):
            outcomes.append(phone.send_frame(bytes(30_000)))
            await trio.testing.wait_all_tasks_blocked()
        assert outcomes[0]
        assert 2 <= phone.sent <= 5
        assert (phone.sent + phone.skipped, phone.skipped) == (51, outcomes.count(False) + 1)
        while (question := await server.hear())["type"] == "video-frame":
            pass
        await server.say("error", id=question["id"], code="INVALID_MESSAGE", message="no")
        await trio.testing.wait_all_tasks_blocked()
        assert phone.send_frame(b"there is room again")


async def test_what_a_lost_connection_did_not_answer_for_does_not_count_on_the_next(
    played: Relay,
) -> None:
    async with open_client(played, manners=Manners(max_buffered=100_000)) as client:
        phone = client.publish("door")
        server = await played.login()
        await registered(server)
        await phone.ready()
        assert phone.send_frame(bytes(70_000))
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        await registered(server)
        await phone.ready()
        for _ in range(4):
            assert phone.send_frame(bytes(70_000))
            while (question := await server.hear())["type"] == "video-frame":
                pass
            await server.say("error", id=question["id"], code="INVALID_MESSAGE", message="no")
            await trio.testing.wait_all_tasks_blocked()


async def test_a_delta_frame_is_not_sent_after_one_that_was_skipped(played: Relay) -> None:
    async with open_client(played) as client:
        phone = client.publish("door")
        assert not phone.send_frame(b"k", keyframe=True)
        server = await played.login()
        await registered(server)
        await next_of(client, Registered)
        assert not phone.send_frame(b"d", keyframe=False)
        assert phone.send_frame(b"k", keyframe=True)
        assert phone.send_frame(b"d", keyframe=False)


async def test_an_alert_for_the_own_stream_waits_for_its_registration(played: Relay) -> None:
    async with open_client(played) as client, trio.open_nursery() as nursery:
        client.publish("door")
        nursery.start_soon(client.alert, "door", "mine")
        nursery.start_soon(client.alert, "gate", "of another")
        server = await played.login()
        request = await server.hear()
        other = await server.answer(alertId=1, streamId="gate")
        assert (request["type"], other["streamId"]) == ("register", "gate")
        with trio.move_on_after(1) as waiting:
            await server.hear()
        assert waiting.cancelled_caught
        await server.say("success", id=request["id"], timestamp=1, streamId="door")
        assert (await server.answer(alertId=2, streamId="door"))["streamId"] == "door"


async def test_a_stream_that_is_taken_is_a_problem_and_stopping_one_makes_room(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        phone = client.publish("taken")
        server = await played.login()
        request = await server.hear()
        await server.say("error", id=request["id"], code="UNAUTHORIZED", message="taken")
        assert (await next_of(client, Problem)).stream_id == "taken"
        assert not phone.active
        with pytest.raises(ServerError, match="UNAUTHORIZED"):
            await phone.wanted()
        phone = client.publish("door")
        await registered(server)
        await next_of(client, Registered)
        phone.stop()
        assert not phone.send_frame(b"x")
        assert await goodbye(server) == 1000
        await played.login()
        assert client.publication is None


async def test_clock_and_round_trip_are_those_of_the_quickest_answer(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.connection()
        request = await server.hear()
        far = client.relay_now() + 3_600_000
        await server.say("success", id=request["id"], timestamp=far)
        await client.ready()
        assert client.relay_now() == pytest.approx(far, abs=5000)
        await server.socket.aclose(4003, "idle")
        await state(client, State.WAITING)
        assert client.relay_now() == pytest.approx(far, abs=5000)


async def test_the_relays_clock_is_known_again_after_ours_was_set(
    played: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_client(played) as client:
        server = await played.connection()
        request = await server.hear()
        true = now_ms()
        await server.say("success", id=request["id"], timestamp=true)
        await client.ready()
        monkeypatch.setattr(relay_clock, "now_ms", lambda: now_ms() + 3_600_000)
        client.relay_now()  # who asks is what notices it
        question = await server.hear()
        assert question["type"] == "unsubscribe"
        await server.say("success", id=question["id"], timestamp=now_ms())
        await trio.testing.wait_all_tasks_blocked()
        assert client.relay_now() == pytest.approx(true, abs=5000)


# -- What relays that are wrong or away, and applications that change their mind, may not cause


async def alerts_within(client: RelayClient, seconds: float) -> list[int]:
    """The numbers of those that come in so long."""
    seen = []
    with trio.move_on_after(seconds):
        while True:
            event = await anext(client)
            if isinstance(event, Alert):
                seen.append(event.alert_id)
    return seen


async def test_who_unsubscribes_amid_a_replay_asks_for_no_more_of_it(played: Relay) -> None:
    async with open_client(played) as client:
        door = client.subscribe("door", frames=False)
        server = await played.login()
        await replay(server, 3)
        await subscribed(server)
        request = await server.hear()
        door.unsubscribe()
        await server.alert(4)
        await server.say("success", id=request["id"], message="", timestamp=1, more=True)
        assert (await server.hear())["streamId"] == "door"  # the end of the subscription
        await server.alert(5)
        await trio.testing.wait_all_tasks_blocked()
        assert (await server.hear())["streamId"] != "door"  # a sign of life, after a while


async def test_alerts_of_a_stream_with_a_made_up_id_go_on_when_there_is_room_again(
    played: Relay,
) -> None:
    async with open_client(played) as client:
        client.publish(alerts=True)
        server = await played.login()
        await server.answer(streamId="door")
        for number in range(1, MOST_UNREAD + 50):
            await server.alert(number)
        await trio.sleep(1)
        for _ in range(MOST_UNREAD // 2 + 20):
            await next_of(client, Alert)
        assert (await server.hear())["type"] == "alerts-since"


async def test_an_alert_that_comes_before_it_is_known_where_to_begin_is_told(
    played: Relay,
) -> None:
    async with open_client(played) as client, trio.open_nursery() as nursery:
        client.subscribe("door", frames=False)
        server = await played.login()
        request = await server.hear()
        await server.say("error", id=request["id"], code="STORE_UNAVAILABLE", message="away")
        await subscribed(server)
        await server.alert(5)

        async def play() -> None:
            while True:
                request = await server.hear()
                if "last" in request or request.get("after", 0) < 5:
                    await server.alert(5)
                await server.say("success", id=request["id"], timestamp=1, more=False)

        nursery.start_soon(play)
        assert await alerts_within(client, 8) == [5]
        nursery.cancel_scope.cancel()


async def test_much_history_of_many_streams_is_told_whole_to_who_reads_late(
    played: Relay,
) -> None:
    names, many = [f"s{number}" for number in range(5)], 500
    async with open_client(played) as client, trio.open_nursery() as nursery:
        for name in names:
            client.subscribe(name, frames=False, history=many)
        server = await played.login()

        async def play() -> None:
            while True:
                request = await server.hear()
                stream, more = request["streamId"], False
                if request["type"] == "alerts-since":
                    first = names.index(stream) * 1000 + 1
                    kept = list(range(first, first + many))
                    if "last" in request:
                        sent = kept[-request["last"] :]
                    else:
                        sent = [each for each in kept if each > request["after"]][
                            : request["limit"]
                        ]
                    for number in sent:
                        await server.alert(number, stream)
                    more = bool(sent) and sent[-1] < kept[-1]
                await server.say(
                    "success", id=request["id"], timestamp=1, streamId=stream, epoch=7, more=more
                )

        nursery.start_soon(play)
        await trio.sleep(5)
        seen = await alerts_within(client, 20)
        assert len(set(seen)) == len(seen) == len(names) * many
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pause", [-5000, int("9" * 400)])
@pytest.mark.parametrize("way", ["answer", "goodbye"])
async def test_a_senseless_pause_ends_the_connection_at_the_most(
    played: Relay, way: str, pause: int
) -> None:
    async with open_client(played) as client:
        client.subscribe("door", alerts=False)
        server = await played.login()
        request = await server.hear()
        if way == "answer":
            await server.say(
                "error", id=request["id"], code="RATE_LIMITED", message="", retryAfter=pause
            )
        else:
            await server.say("notice", code="SERVER_RESTARTING", timestamp=1, retryAfter=pause)
            await server.socket.aclose(4012, "server restarting")
        await played.login()
        await client.ready()


@pytest.mark.parametrize("streams", [5, None, [5]])
async def test_a_list_of_streams_that_is_none_ends_the_connection_at_the_most(
    played: Relay, streams: object
) -> None:
    async with open_client(played) as client:
        client.watch_streams()
        server = await played.login()
        await server.answer(streams=streams)
        await played.login()
        await client.ready()


@pytest.mark.parametrize("message", [b'{"type":"\xff"}', b"\xff"])
async def test_bytes_that_are_no_text_end_the_connection_at_the_most(
    played: Relay, message: bytes
) -> None:
    async with open_client(played) as client:
        server = await played.login()
        await server.socket.send_message(message)
        await played.login()
        await client.ready()


async def test_a_time_that_is_none_is_not_taken_for_the_relays(played: Relay) -> None:
    async with open_client(played) as client:
        server = await played.connection()
        request = await server.hear()
        late = "9" * 400
        await server.socket.send_message(
            f'{{"type":"success","id":{request["id"]},"timestamp":{late}}}'
        )
        await client.ready()
        assert client.relay_now() == pytest.approx(now_ms(), abs=5000)


async def test_no_delta_is_handed_on_without_the_frame_that_it_builds_on(played: Relay) -> None:
    async with open_client(played) as client:
        door = client.subscribe("door", alerts=False, window=4)
        server = await played.login()
        await subscribed(server)
        for seq in range(1, 5):
            await server.frame(seq, keyframe=seq == 1)
        await trio.sleep(1)
        door.update(window=2)
        await server.answer(streamId="door", epoch=7)
        await server.frame(5, keyframe=False)
        await trio.sleep(1)
        waiting = [event.seq for event in unread(client) if isinstance(event, Frame)]
        assert waiting == [1, 2, 3, 4]
        await server.frame(6, keyframe=False)  # builds on the one that was skipped
        await server.frame(7, keyframe=True)
        await trio.sleep(1)
        waiting = [event.seq for event in unread(client) if isinstance(event, Frame)]
        assert waiting == [7]


async def test_an_error_of_the_application_is_told_beside_one_of_its_token_function(
    played: Relay,
) -> None:
    async def apply() -> None:
        async with open_client(played, RuntimeError("token")):
            try:
                await trio.sleep(10)
            finally:
                raise KeyError("application")

    with pytest.RaisesGroup(KeyError, RuntimeError, flatten_subgroups=True):
        await apply()


async def test_viewers_that_were_there_before_a_loss_are_not_waited_on(played: Relay) -> None:
    watched = {"streamId": "door", "epoch": 7, "status": "streaming", "timestamp": 1}
    async with open_client(played) as client:
        phone = client.publish("door")
        server = await played.login()
        await server.answer(streamId="door")
        await server.say("status", **watched, consumers=1)
        await next_of(client, Demand)
        await server.socket.aclose(4003, "idle")
        server = await played.login()
        await server.answer(streamId="door")
        await phone.ready()
        with trio.move_on_after(3) as waiting:
            await phone.wanted()
        assert waiting.cancelled_caught
        await server.say("status", **watched, consumers=1)
        await phone.wanted()
