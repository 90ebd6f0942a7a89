"""Where limits, the watch over sessions, the audit and a connection's life meet."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from relay.auth.methods.signed_cookie import sign
from relay.guard.failed_auths import FailedAuths
from relay.guard.guard import Guard, SessionLimits
from relay.guard.rates import RateLimiter
from relay.guard.throttle import ThrottleRates
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.protocol.endings import Ending
from tests.unit.memory import ANN, BOB, SENTRY, Client, Closed, MemoryRelay, user

pytestmark = pytest.mark.mock_clock

FRAME = {"type": "video-frame", "data": "QUJD"}


def sign_out(relay: MemoryRelay, token: str) -> None:
    gone = relay.verifier.identities.pop(token)
    assert isinstance(gone, User)
    relay.change_feed.tell(Change("session", gone.session_id))


async def test_tokens_revoked_while_many_come_in_at_once_do_not_live(relay: MemoryRelay) -> None:
    await relay.login(BOB)  # so that the watch has read everybody already
    clients = [await relay.open() for _ in range(200)]
    await trio.sleep(1)
    relay.verifier.delay = 0.1
    for client in clients:
        await client.send({"type": "auth", "token": ANN})
    await trio.sleep(0.1)
    sign_out(relay, ANN)
    revoked_at = trio.current_time()
    for client in clients:
        await client.hear_end()
    assert trio.current_time() - revoked_at <= 1


async def test_neighbours_that_guess_do_not_keep_a_live_phone_from_renewing(
    relay: MemoryRelay,
) -> None:
    relay.guard = Guard(
        failed_auths=FailedAuths(RateLimiter("3/minute"), RateLimiter("5/minute"), 60)
    )
    relay.verifier.identities["fresh"] = user("ann")
    phone = await relay.login(ANN)
    for guess in range(3):
        await (await relay.open()).ask({"type": "auth", "token": f"guess-{guess}"})
    stranger = await relay.open()
    assert (await stranger.ask({"type": "auth", "token": "new"}))["code"] == "RATE_LIMITED"
    assert (await phone.ask({"type": "auth", "token": "fresh"}))["code"] == "AUTHENTICATED"


async def test_a_renewal_that_hangs_is_given_up_and_frames_go_on(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    relay.verifier.delay = 10_000
    await phone.send({"type": "auth", "token": ANN, "id": 7})
    await phone.send(FRAME)
    reply = await phone.receive_type("error")
    assert (reply["code"], reply["id"]) == ("AUTH_UNAVAILABLE", 7)
    assert (await viewer.receive_type("video-frame"))["seq"] == 1


async def test_renewals_have_a_rate(relay: MemoryRelay) -> None:
    relay.guard = Guard(renewal_rate=RateLimiter("3/minute"))
    phone = await relay.login(ANN)
    codes = [(await phone.ask({"type": "auth", "token": ANN}))["code"] for _ in range(5)]
    assert codes == ["AUTHENTICATED"] * 3 + ["RATE_LIMITED"] * 2
    await trio.sleep(60)
    assert (await phone.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"


async def test_registrations_of_a_user_have_a_rate(relay: MemoryRelay) -> None:
    relay.guard.session_limits = SessionLimits(register_rate=RateLimiter("3/minute"))
    phones = [await relay.login(ANN) for _ in range(5)]
    replies = [await phone.ask({"type": "register"}) for phone in phones]
    assert [reply["code"] for reply in replies] == ["REGISTERED"] * 3 + ["RATE_LIMITED"] * 2
    assert replies[-1]["retryAfter"] > 0
    assert len(relay.owners.owners) == 3


async def test_a_window_opens_again_after_what_was_too_much(relay: MemoryRelay) -> None:
    relay.guard = Guard(throttle_rates=ThrottleRates("10/second", "240/second", "33554432/second"))
    phone, viewer = await relay.phone(), await relay.viewer(window=1)
    await trio.sleep(10)
    await phone.send(FRAME)
    seq = (await viewer.receive_type("video-frame"))["seq"]
    for _ in range(60):
        await viewer.send({"type": "streams"})
    await wait_all_tasks_blocked()
    assert relay.metrics.limits_hit
    await viewer.send({"type": "ack", "streamId": "front-door", "seq": seq})
    await phone.send(FRAME)
    with trio.fail_after(60):
        assert (await viewer.receive_type("video-frame"))["seq"] == seq + 1


async def test_the_token_in_a_signed_one_is_in_no_row_of_the_audit(relay: MemoryRelay) -> None:
    raw = "k3yk3yk3yk3yk3yk3yk3yk3yk3yk3y32"
    signed = f"{raw}.{sign(raw, 'secret')}"
    relay.verifier.identities[signed] = user("ann")
    client = await relay.login(signed)
    assert (await client.ask({"type": "register", "streamId": raw}))["code"] == "REGISTERED"
    rows = [event.stream_id for event in relay.audit._waiting]
    assert rows
    assert raw not in rows


async def test_who_is_revoked_while_registering_takes_nothing_over(relay: MemoryRelay) -> None:
    relay.verifier.identities["second"] = evolve(user("ann"), session_id="other")
    phone = await relay.phone(token="second")
    late = await relay.login()
    late_connection = relay.connections[-1]
    assert late_connection._session is not None
    relay.owners.on_answer = late_connection._session.revoked
    await late.send({"type": "register", "streamId": "front-door"})
    await wait_all_tasks_blocked()
    assert late_connection.peer.ending is Ending.SESSION_REVOKED
    relay.owners.on_answer = lambda: None
    assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_alerts_that_wait_do_not_reach_who_was_revoked(relay: MemoryRelay) -> None:
    await relay.phone()
    sentry = await relay.login(SENTRY)
    relay.verifier.identities["second"] = evolve(user("ann"), session_id="other")
    viewer = await relay.viewer(token="second", capacity=2000)
    for number in range(20):
        alert = {"streamId": "front-door", "severity": "low", "message": f"{number}" + "m" * 500}
        await sentry.ask({"type": "alert", **alert})
    await trio.sleep(1)
    sign_out(relay, "second")
    await wait_all_tasks_blocked()
    heard = await all_types(viewer)
    assert heard.count("alert") <= 5  # those that were in the link
    assert heard[-1] == "error"


async def all_types(client: Client) -> list[Any]:
    types = []
    try:
        while True:
            types.append((await client.receive())["type"])
    except Closed:
        return types
