"""A connection's life: the deadline, the guards, the endings."""

from __future__ import annotations

from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from wsproto import events

from relay.model.access.identity import Identity
from relay.protocol.endings import Ending
from relay.transport.outlet import Outlet
from tests.unit.memory import ANN, BOB, SENTRY, MemoryRelay, MemoryVerifier

pytestmark = pytest.mark.mock_clock


async def test_the_first_message_authenticates(relay: MemoryRelay) -> None:
    client = await relay.open()
    reply = await client.ask({"type": "auth", "token": ANN, "id": 7})
    assert reply["type"] == "success"
    assert reply["code"] == "AUTHENTICATED"
    assert reply["message"] == "Authentication successful"
    assert (reply["userId"], reply["sessionId"], reply["id"]) == ("ann", "session-of-ann", 7)
    assert reply["expiresAt"] > reply["timestamp"]


async def test_a_wrong_token_is_told_so_and_closed(relay: MemoryRelay) -> None:
    client = await relay.open()
    await client.send({"type": "auth", "token": "wrong", "id": "a"})
    error, close = await client.hear_end()
    assert (error["code"], error["message"], error["id"]) == (
        "AUTH_FAILED",
        "Invalid or expired token",
        "a",
    )
    assert close == (1008, "Authentication failed")


@pytest.mark.parametrize(
    "message",
    [
        {"type": "register", "streamId": "s"},
        {"type": "subscribe", "streamId": "s", "consumes": ["video-frame"]},
        {"type": "video-frame", "data": "AAAA"},
        {"type": "alert", "streamId": "s", "severity": "low", "message": "m"},
        {"type": "unknown"},
        "not json",
        b"binary",
    ],
)
async def test_nothing_works_before_authentication(
    relay: MemoryRelay, message: dict[str, Any] | str | bytes
) -> None:
    client = await relay.open()
    await client.send(message)
    error = await client.receive()
    assert (error["type"], error["code"], error["message"]) == (
        "error",
        "AUTH_REQUIRED",
        "Must authenticate first",
    )
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"


@pytest.mark.parametrize("msgpack", [False, True])
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "Object missing required field `token`"),
        ({"token": 17}, "Expected `str`, got `int` - at `$.token`"),
        ({"token": ""}, "Expected `str` of length >= 1 - at `$.token`"),
        ({"token": "t0p-secret" * 900}, "Expected `str` of length <= 8192 - at `$.token`"),
        ({"token": "t0p-secret", "id": []}, "got `array` - at `$.id`"),
    ],
)
async def test_an_auth_that_cannot_be_read_is_told_which_field_and_may_try_again(
    relay: MemoryRelay, msgpack: bool, fields: dict[str, Any], why: str
) -> None:
    client = await relay.open(msgpack=msgpack)
    error = await client.ask({"id": 3, **fields, "type": "auth"})
    assert error["code"] == "INVALID_MESSAGE"
    assert why in error["message"]
    assert "secret" not in str(error)
    assert error.get("id") == (None if "id" in fields else 3)
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"


async def test_the_tenth_auth_that_cannot_be_read_closes(relay: MemoryRelay) -> None:
    client = await relay.open()
    for _ in range(10):
        await client.send({"type": "auth"})
    error, close = await client.hear_end()
    assert (error["code"], error["message"]) == ("INVALID_MESSAGE", "Too many invalid messages")
    assert close == (1008, "policy")


async def test_silence_after_the_upgrade_ends_at_the_deadline(relay: MemoryRelay) -> None:
    start = trio.current_time()
    client = await relay.open()
    error, close = await client.hear_end()
    assert error["code"] == "AUTH_TIMEOUT"
    assert close == (4004, "authentication timeout")
    assert trio.current_time() - start == pytest.approx(10)


async def test_the_deadline_counts_from_the_accept(relay: MemoryRelay) -> None:
    client = relay.connect()
    start = trio.current_time()
    await trio.sleep(9)
    await client.upgrade()
    _, close = await client.hear_end()
    assert close[0] == 4004
    assert trio.current_time() - start == pytest.approx(10)


async def test_guesses_do_not_move_the_deadline(relay: MemoryRelay) -> None:
    client = await relay.open()
    start = trio.current_time()
    for _ in range(4):
        await trio.sleep(2)
        await client.send({"type": "register"})
    _, close = await client.hear_end()
    assert close[0] == 4004
    assert trio.current_time() - start == pytest.approx(10)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /streams/register HTTP/1.1\r\nHost: re", b"\x16\x03\x01"]
)
async def test_half_a_handshake_and_silence_closes_the_connection(
    relay: MemoryRelay, sent: bytes
) -> None:
    client = relay.connect()
    start = trio.current_time()
    await client.send_bytes(sent)
    await client.has_ended()
    assert trio.current_time() - start == pytest.approx(10)
    assert relay.connections[0].peer.ending is Ending.HANDSHAKE_TIMEOUT


async def test_an_endless_request_head_closes_the_connection_at_once(relay: MemoryRelay) -> None:
    client = relay.connect()
    await client.send_bytes(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000)
    await client.has_ended()
    assert trio.current_time() < 1
    assert relay.connections[0].peer.ending is Ending.HANDSHAKE_REFUSED


async def test_verification_that_is_late_is_not_called_a_wrong_token(relay: MemoryRelay) -> None:
    relay.verifier.delay = 60
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    error, close = await client.hear_end()
    assert error["code"] == "AUTH_UNAVAILABLE"
    assert error["retryAfter"] > 0
    assert close == (4013, "try again later")
    assert trio.current_time() == pytest.approx(10)


async def test_a_store_that_is_away_is_not_called_a_wrong_token(relay: MemoryRelay) -> None:
    relay.verifier.away = True
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    error, close = await client.hear_end()
    assert error["code"] == "AUTH_UNAVAILABLE"
    assert close[0] == 4013


async def test_a_bug_ends_its_own_connection_and_no_other(relay: MemoryRelay) -> None:
    healthy = await relay.login()
    client = await relay.open()
    relay.verifier.broken = True
    await client.send({"type": "auth", "token": ANN})
    error, close = await client.hear_end()
    assert error["code"] == "INTERNAL_ERROR"
    assert close == (1011, "internal error")
    assert (await healthy.ask({"type": "register"}))["code"] == "REGISTERED"


async def test_an_eleventh_message_before_authentication_closes(relay: MemoryRelay) -> None:
    client = await relay.open()
    for _ in range(11):
        await client.send({"type": "register"})
    error, close = await client.hear_end()
    assert error["code"] == "AUTH_REQUIRED"
    assert close == (1008, "policy")


async def test_a_big_message_before_authentication_closes(relay: MemoryRelay) -> None:
    client = await relay.open()
    await client.send("x" * (16 * 1024 + 1))
    error, close = await client.hear_end()
    assert error["code"] == "MESSAGE_TOO_BIG"
    assert close == (1009, "message too big")


async def test_messages_behind_auth_wait_for_it(relay: MemoryRelay) -> None:
    relay.verifier.delay = 3
    relay.owners.delay = 3
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN, "id": 1})
    await client.send({"type": "register", "streamId": "s", "id": 2})
    await client.send({"type": "video-frame", "data": "AAAA"})
    await client.send({"type": "subscribe", "streamId": "s", "consumes": ["video-frame"], "id": 3})
    assert (await client.receive())["code"] == "AUTHENTICATED"
    assert (await client.receive())["code"] == "REGISTERED"
    assert (await client.receive_type("success"))["code"] == "SUBSCRIBED"
    assert (await client.receive_type("video-frame"))["data"] == "AAAA"


async def test_auth_again_by_the_same_user_renews(relay: MemoryRelay) -> None:
    client = await relay.login(ANN)
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"


async def test_auth_again_by_another_user_is_refused_and_changes_nothing(
    relay: MemoryRelay,
) -> None:
    client = await relay.login(ANN)
    assert (await client.ask({"type": "auth", "token": BOB}))["code"] == "UNAUTHORIZED"
    await client.ask({"type": "register", "streamId": "s"})
    assert relay.owners.owners == {"s": "ann"}


async def test_auth_again_with_the_store_away_leaves_the_session(relay: MemoryRelay) -> None:
    client = await relay.login(ANN)
    relay.verifier.away = True
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTH_UNAVAILABLE"
    relay.verifier.away = False
    assert (await client.ask({"type": "register", "streamId": "s"}))["code"] == "REGISTERED"


async def test_a_service_authenticates_without_a_session(relay: MemoryRelay) -> None:
    client = await relay.open()
    reply = await client.ask({"type": "auth", "token": SENTRY})
    assert reply["code"] == "AUTHENTICATED"
    assert "userId" not in reply


@pytest.mark.parametrize("target", ["/streams/register", "/streams/subscribe"])
async def test_both_paths_upgrade(relay: MemoryRelay, target: str) -> None:
    assert isinstance(await relay.connect().upgrade(target), events.AcceptConnection)


async def test_an_upgrade_elsewhere_is_not_found(relay: MemoryRelay) -> None:
    client = relay.connect()
    answer = await client.upgrade("/elsewhere")
    assert isinstance(answer, events.RejectConnection)
    assert answer.status_code == 404
    await client.has_ended()


@pytest.mark.parametrize("name", ["token", "access_token", "session_token"])
async def test_a_token_in_the_url_is_refused_with_the_reason(relay: MemoryRelay, name: str) -> None:
    client = relay.connect()
    answer = await client.upgrade(f"/streams/register?a=b&{name}=secret")
    assert isinstance(answer, events.RejectConnection)
    assert answer.status_code == 400
    body = await client.event()
    assert b"first message" in body.data
    assert b"secret" not in body.data


async def test_only_unknown_subprotocols_are_refused_with_the_known_ones(
    relay: MemoryRelay,
) -> None:
    client = relay.connect()
    answer = await client.upgrade(subprotocols=["graphql-ws"])
    assert isinstance(answer, events.RejectConnection)
    assert answer.status_code == 400
    assert b"relay.v1.json" in (await client.event()).data


async def test_a_refused_subprotocol_is_logged_for_browsers_hide_the_answer(
    relay: MemoryRelay,
) -> None:
    with structlog.testing.capture_logs() as logs:
        await relay.connect().upgrade(subprotocols=["graphql-ws", "mqtt"])
    (entry,) = [entry for entry in logs if entry["event"] == "subprotocols refused"]
    assert entry["offered"] == 2
    assert "mqtt" not in repr(logs)  # who knows what a client puts there


async def test_a_known_subprotocol_among_others_is_chosen(relay: MemoryRelay) -> None:
    answer = await relay.connect().upgrade(subprotocols=["graphql-ws", "relay.v1.json"])
    assert isinstance(answer, events.AcceptConnection)
    assert answer.subprotocol == "relay.v1.json"


async def test_a_peer_that_is_silent_is_ended(relay: MemoryRelay) -> None:
    client = await relay.login()
    await trio.sleep(119)  # reads nothing, so it answers no ping
    assert relay.connections[0].peer.ending is None
    await trio.sleep(2)
    assert relay.connections[0].peer.ending is Ending.IDLE_TIMEOUT
    error, close = await client.hear_end()
    assert error["code"] == "IDLE_TIMEOUT"
    assert close == (4003, "idle or unreachable")


async def test_a_peer_that_answers_pings_stays(relay: MemoryRelay) -> None:
    client = await relay.login()
    with trio.move_on_after(1000):
        await client.receive()
    assert relay.connections[0].peer.ending is None


async def test_a_peer_that_closes_is_answered(relay: MemoryRelay) -> None:
    client = await relay.login()
    await client.send_bytes(client.protocol.send(events.CloseConnection(code=1000)))
    assert await client.closing() == (1000, "")
    await client.has_ended()
    assert relay.connections[0].peer.ending is Ending.CLIENT_CLOSED


async def test_a_peer_that_vanishes_ends_its_connection(relay: MemoryRelay) -> None:
    client = await relay.login()
    client.link.close()
    await client.has_ended()
    assert relay.connections[0].peer.ending is Ending.CLIENT_GONE


async def test_plain_http_has_no_authentication_deadline(relay: MemoryRelay) -> None:
    client = relay.connect()
    await client.send_bytes(b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n")
    await client.has_ended()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.http_served == 1
    assert relay.connections[0].peer.ending is Ending.HTTP_ANSWERED


async def test_the_tenth_invalid_message_in_a_minute_closes(relay: MemoryRelay) -> None:
    client = await relay.login()
    for _ in range(9):
        assert (await client.ask({"type": "nonsense"}))["code"] == "UNKNOWN_MESSAGE_TYPE"
    await trio.sleep(61)
    for _ in range(9):
        assert (await client.ask({"type": "register", "streamId": 3}))["code"] == "INVALID_MESSAGE"
    await client.send("{")
    error, close = await client.hear_end()
    assert error["code"] == "INVALID_MESSAGE"
    assert close == (1008, "policy")


async def test_any_minute_counts_and_not_only_those_that_begin_with_a_mistake(
    relay: MemoryRelay,
) -> None:
    client = await relay.login()
    await client.ask({"type": "nonsense"})
    await trio.sleep(59)
    for _ in range(8):
        await client.ask({"type": "nonsense"})
    await trio.sleep(2)  # the first one is more than a minute ago
    await client.ask({"type": "nonsense"})
    await client.send("{")
    _, close = await client.hear_end()
    assert close == (1008, "policy")


async def test_a_restart_is_announced_before_the_close(relay: MemoryRelay) -> None:
    client = await relay.login()
    relay.connections[0].restart(1234)
    notice, close = await client.hear_end()
    assert (notice["type"], notice["code"], notice["retryAfter"]) == (
        "notice",
        "SERVER_RESTARTING",
        1234,
    )
    assert close == (4012, "server restarting")


async def test_endings_are_counted(relay: MemoryRelay) -> None:
    client = await relay.login()
    client.link.close()
    await client.has_ended()
    await trio.testing.wait_all_tasks_blocked()
    assert relay.metrics.endings == {Ending.CLIENT_GONE: 1}
    assert (relay.metrics.connections, relay.metrics.authenticated) == (0, 0)


async def test_a_peer_that_sends_but_never_reads_is_given_up(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    deaf = await relay.viewer(capacity=1024)
    await phone.send({"type": "video-frame", "data": "A" * 4000})
    start = trio.current_time()
    while relay.connections[1].peer.ending is None:
        await deaf.send_bytes(deaf.protocol.send(events.Pong()))
        await trio.sleep(10)
    assert relay.connections[1].peer.ending is Ending.IDLE_TIMEOUT
    assert trio.current_time() - start == pytest.approx(120, abs=10)
    assert deaf.link.incoming.broken  # a reset: the kernel must not keep what is unsent


async def test_an_idle_connection_has_no_task_beside_its_own(relay: MemoryRelay) -> None:
    await relay.open()
    await relay.viewer()
    await trio.testing.wait_all_tasks_blocked()
    nurseries = [each for task in relay.nursery.child_tasks for each in task.child_nurseries]
    assert [each.child_tasks for each in nurseries] == [frozenset(), frozenset()]


async def test_a_writer_starts_when_a_frame_first_has_to_wait(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer(capacity=600)
    nurseries = [each for task in relay.nursery.child_tasks for each in task.child_nurseries]
    await phone.send({"type": "video-frame", "data": "A" * 5000})
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(len(each.child_tasks) for each in nurseries) == [0, 1]
    assert len((await viewer.receive_type("video-frame"))["data"]) == 5000


async def test_what_a_task_logs_that_others_caused_carries_its_own_number(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await relay.phone()
    await relay.viewer(capacity=600)
    numbers: list[Any] = []

    async def run(_outlet: Outlet) -> None:
        numbers.append(structlog.contextvars.get_contextvars()["connection"])
        await trio.sleep_forever()

    monkeypatch.setattr(Outlet, "run", run)
    await phone.send({"type": "video-frame", "data": "A" * 5000})
    await trio.testing.wait_all_tasks_blocked()
    assert numbers == [2]


async def test_a_bug_in_an_alarm_ends_its_own_connection_and_no_other(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, healthy = await relay.login(), await relay.login()
    ping = Outlet.post_control

    def err(outlet: Outlet, frame: bytes) -> bool:
        if outlet is relay.connections[0].peer.stream.outlet:
            raise RuntimeError("a bug")
        return ping(outlet, frame)

    monkeypatch.setattr(Outlet, "post_control", err)
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(relay.timing.ping_interval + 1)
    monkeypatch.undo()
    failures = [each for each in logs if each["event"] == "connection failed"]
    assert [each["connection"] for each in failures] == [1]
    error, close = await client.hear_end()
    assert error["code"] == "INTERNAL_ERROR"
    assert close == (1011, "internal error")
    assert (await healthy.ask({"type": "register"}))["code"] == "REGISTERED"


async def test_of_who_has_ended_no_alarm_is_left(relay: MemoryRelay) -> None:
    gone, alive = await relay.login(), await relay.login()
    assert len(relay.alarms) == 4
    with trio.move_on_after(1000):
        await alive.receive()
    endings = [connection.peer.ending for connection in relay.connections]
    assert endings == [Ending.IDLE_TIMEOUT, None]
    await gone.has_ended()
    assert len(relay.alarms) == 2


@pytest.mark.parametrize("after", [9.999, 10.0])
async def test_who_is_verified_in_the_last_moment_is_in_or_out(
    relay: MemoryRelay, after: float
) -> None:
    relay.verifier.delay = after
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    message = await client.receive()
    if message["type"] == "success":
        await trio.sleep(20)
        relay.verifier.delay = 0
        assert (await client.ask({"type": "register"}))["code"] == "REGISTERED"
    else:
        assert message["code"] in {"AUTH_UNAVAILABLE", "AUTH_TIMEOUT"}
        assert (await client.closing())[0] in {4004, 4013}
    assert after == 10.0 or message["type"] == "success"


async def test_an_answer_behind_the_deadline_lets_nobody_in_and_is_not_recorded_as_success(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verify(_verifier: MemoryVerifier, token: str) -> Identity | None:
        with trio.CancelScope(shield=True):  # such as a thread, which nothing interrupts
            await trio.sleep(10.5)
        return _verifier.identities[token]

    monkeypatch.setattr(MemoryVerifier, "verify", verify)
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    error, close = await client.hear_end()
    assert (error["code"], close[0]) == ("AUTH_UNAVAILABLE", 4013)
    assert relay.metrics.auth_attempts == {"unavailable": 1}
