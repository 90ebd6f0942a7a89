"""The limits as a client meets them, with the real connection code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import wait_all_tasks_blocked
from wsproto import events

from relay.guard.access_lists import AccessLists
from relay.guard.client_address import Proxies, parse_networks
from relay.guard.connection_limits import Caps, ConnectionLimits
from relay.guard.failed_auths import FailedAuths
from relay.guard.guard import Guard, SessionLimits
from relay.guard.rates import RateLimiter
from relay.guard.throttle import ThrottleRates
from relay.metrics import Limit
from relay.protocol.endings import Ending
from relay.settings.settings import Settings
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay, user

pytestmark = pytest.mark.mock_clock

HEAD = b"GET /streams/register HTTP/1.1\r\nHost: relay\r\n"
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
FRAME = {"type": "video-frame", "data": "QUJD"}


@frozen
class Answer:
    """The response to a refused upgrade."""

    status: int
    headers: dict[str, str]
    error: dict[str, Any]


async def request(
    relay: MemoryRelay, *lines: bytes, upgrade: bool = True, host: str
) -> Answer | int:
    """Send a request; returns its status alone if the response has no JSON error."""
    client = relay.connect(host=host)
    wanted = UPGRADE if upgrade else b""
    return await converse(client, HEAD + wanted + b"".join(b"%b\r\n" % line for line in lines))


async def converse(client: Client, head: bytes) -> Answer | int:
    await client.send_bytes(head + b"\r\n")
    await wait_all_tasks_blocked()
    answer = bytes(client.link.incoming.content)
    if not answer:
        return 0
    status_line, _, rest = answer.partition(b"\r\n")
    status = int(status_line.split()[1])
    lines, _, body = rest.partition(b"\r\n\r\n")
    if not body.startswith(b"{"):
        return status
    assert client.link.incoming.ended
    headers = dict(line.decode().split(": ", 1) for line in lines.split(b"\r\n"))
    assert int(headers["Content-Length"]) == len(body)
    return Answer(status, headers, json.loads(body)["error"])


async def refused(relay: MemoryRelay, *lines: bytes, upgrade: bool = True, host: str) -> Answer:
    answer = await request(relay, *lines, upgrade=upgrade, host=host)
    assert isinstance(answer, Answer), answer
    return answer


# -- access lists


async def test_a_denied_network_is_refused_with_403_before_the_upgrade(relay: MemoryRelay) -> None:
    relay.guard = Guard(AccessLists(deny_networks=parse_networks(["192.0.2.0/24"])))
    answer = await refused(relay, host="192.0.2.7")
    assert (answer.status, answer.error["code"]) == (403, "UNAUTHORIZED")
    assert "192.0.2.7" in answer.error["message"]
    answer = await refused(relay, upgrade=False, host="192.0.2.7")
    assert answer.status == 403
    assert await request(relay, host="198.51.100.1") == 101
    assert relay.http_served == 0
    assert relay.metrics.limits_hit == {Limit.NETWORK: 2}
    assert relay.metrics.endings[Ending.FORBIDDEN] == 2


async def test_plain_requests_are_answered_to_networks_that_are_allowed(relay: MemoryRelay) -> None:
    relay.guard = Guard(AccessLists(allow_networks=parse_networks(["192.0.2.0/24"])))
    assert await request(relay, upgrade=False, host="192.0.2.7") == 0
    assert relay.http_served == 1
    assert (await refused(relay, upgrade=False, host="2001:db8::1")).status == 403


async def test_a_page_from_elsewhere_is_refused_and_apps_are_not(relay: MemoryRelay) -> None:
    relay.guard = Guard(AccessLists(allow_origins=frozenset(["https://example.org"])))
    answer = await refused(relay, b"Origin: https://evil.test", host="192.0.2.1")
    assert (answer.status, answer.error["code"]) == (403, "UNAUTHORIZED")
    assert await request(relay, b"Origin: https://example.org", host="192.0.2.1") == 101
    assert await request(relay, host="192.0.2.1") == 101
    assert relay.metrics.limits_hit == {Limit.ORIGIN: 1}


# -- proxies

TRUSTED = parse_networks(["10.0.0.0/8"])


async def test_behind_a_proxy_the_client_s_address_counts(relay: MemoryRelay) -> None:
    deny = AccessLists(deny_networks=parse_networks(["192.0.2.0/24"]))
    relay.guard = Guard(deny, Proxies(TRUSTED))
    forwarded = b"X-Forwarded-For: 192.0.2.1"
    assert (await refused(relay, forwarded, host="10.0.0.1")).status == 403
    assert await request(relay, forwarded, host="198.51.100.1") == 101
    assert [str(each.peer.address) for each in relay.connections] == ["192.0.2.1", "198.51.100.1"]


async def test_a_proxy_header_says_whose_connection_it_is(relay: MemoryRelay) -> None:
    relay.guard = Guard(proxies=Proxies(TRUSTED, speak_proxy_protocol=True))
    client = relay.connect(host="10.0.0.1")
    await client.send_bytes(b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n")
    assert await converse(client, HEAD + UPGRADE) == 101
    health_check = relay.connect(host="10.0.0.1")
    await health_check.send_bytes(b"PROXY UNKNOWN\r\n")
    assert await converse(health_check, HEAD + UPGRADE) == 101
    assert [str(each.peer.address) for each in relay.connections] == ["192.0.2.1", "10.0.0.1"]


async def test_a_proxy_that_owes_its_header_is_refused_without_it(relay: MemoryRelay) -> None:
    relay.guard = Guard(proxies=Proxies(TRUSTED, speak_proxy_protocol=True))
    assert await request(relay, host="10.0.0.1") == 0
    await wait_all_tasks_blocked()
    assert relay.connections[0].peer.ending is Ending.HANDSHAKE_REFUSED


async def test_a_stranger_s_proxy_header_is_no_request(relay: MemoryRelay) -> None:
    relay.guard = Guard(proxies=Proxies(TRUSTED, speak_proxy_protocol=True))
    client = relay.connect(host="192.0.2.1")
    await client.send_bytes(b"PROXY TCP4 198.51.100.1 10.0.0.1 4711 443\r\n")
    await client.send_bytes(HEAD + UPGRADE + b"\r\n")
    await client.has_ended()
    assert relay.connections[0].peer.address.text == "192.0.2.1"
    assert not relay.metrics.connections_accepted


@pytest.mark.parametrize("begin", [b"", b"PROXY TCP4 192", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"])
async def test_a_proxy_header_that_does_not_come_ends_with_the_auth_deadline(
    relay: MemoryRelay, begin: bytes
) -> None:
    relay.guard = Guard(proxies=Proxies(TRUSTED, speak_proxy_protocol=True))
    client = relay.connect(host="10.0.0.1")
    start = trio.current_time()
    await client.send_bytes(begin)
    await client.has_ended()
    assert trio.current_time() - start == pytest.approx(10)
    assert relay.connections[0].peer.ending is Ending.HANDSHAKE_TIMEOUT


# -- new connections


async def test_new_connections_over_the_rate_get_429_before_the_upgrade(relay: MemoryRelay) -> None:
    relay.guard = Guard(connection_rate=RateLimiter("3/minute"))
    await trio.sleep(7.5)
    for _ in range(3):
        assert await request(relay, host="2001:db8::1") == 101
        await trio.sleep(1)
    answer = await refused(relay, host="2001:db8::2")
    assert (answer.status, answer.error["code"]) == (429, "RATE_LIMITED")
    assert answer.headers["Retry-After"] == "57"
    assert answer.error["retryAfter"] == pytest.approx(57_000)
    assert (await refused(relay, upgrade=False, host="2001:db8::3")).status == 429
    assert await request(relay, host="2001:db8:0:1::1") == 101
    await trio.sleep(57)
    assert await request(relay, host="2001:db8::2") == 101
    assert relay.metrics.limits_hit == {Limit.NEW_CONNECTIONS: 2}
    assert relay.metrics.endings[Ending.RATE_LIMITED] == 2


# -- failed auths


def guess(number: int) -> dict[str, Any]:
    return {"type": "auth", "token": f"guess {number}", "id": number}


async def fail(relay: MemoryRelay, number: int, host: str) -> None:
    for each in range(number):
        client = await relay.open(host=host)
        await client.send(guess(each))
        assert (await client.hear_end())[1][0] == 1008


async def test_a_banned_address_is_told_to_wait_and_nobody_is_asked(relay: MemoryRelay) -> None:
    relay.guard = Guard(
        failed_auths=FailedAuths(RateLimiter("3/minute"), RateLimiter("3/minute"), 100)
    )
    await fail(relay, 3, "192.0.2.1")
    relay.verifier.broken = True
    client = await relay.open(host="192.0.2.1")
    await client.send(guess(9))
    error, close = await client.hear_end()
    assert (error["code"], error["id"], error["retryAfter"]) == ("RATE_LIMITED", 9, 100_000)
    assert close == (4008, "rate limited")
    relay.verifier.broken = False
    await fail(relay, 1, "192.0.2.2")
    await trio.sleep(100)
    await fail(relay, 1, "192.0.2.1")
    assert relay.metrics.limits_hit == {Limit.FAILED_AUTHS: 1}


async def test_a_phone_that_was_here_before_comes_back_from_a_banned_address(
    relay: MemoryRelay,
) -> None:
    relay.guard = Guard(
        failed_auths=FailedAuths(RateLimiter("3/minute"), RateLimiter("3/minute"), 100)
    )
    phone = await relay.login(ANN, host="198.51.100.1")
    await fail(relay, 3, "192.0.2.1")
    phone.link.close()
    await relay.login(ANN, host="192.0.2.1")
    await relay.login(BOB, host="192.0.2.1")


async def test_a_phone_that_repeats_an_expired_token_is_told_to_wait(relay: MemoryRelay) -> None:
    relay.guard = Guard(
        failed_auths=FailedAuths(RateLimiter("100/minute"), RateLimiter("2/minute"), 100)
    )
    await relay.login(ANN)
    del relay.verifier.identities[ANN]
    for code in (1008, 1008, 4008):
        client = await relay.open()
        await client.send({"type": "auth", "token": ANN})
        assert (await client.hear_end())[1][0] == code


async def test_a_live_connection_that_fails_to_renew_stays_open(relay: MemoryRelay) -> None:
    relay.guard = Guard(
        failed_auths=FailedAuths(RateLimiter("9/minute"), RateLimiter("1/minute"), 100)
    )
    client = await relay.login()
    await (await relay.open()).ask(guess(1))
    reply = await client.ask(guess(1))
    assert (reply["code"], reply["id"]) == ("RATE_LIMITED", 1)
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"


async def test_an_outage_of_the_store_bans_nobody(relay: MemoryRelay) -> None:
    relay.guard = Guard(
        failed_auths=FailedAuths(RateLimiter("1/minute"), RateLimiter("1/minute"), 100)
    )
    relay.verifier.away = True
    for _ in range(3):
        client = await relay.open()
        await client.send({"type": "auth", "token": ANN})
        assert (await client.hear_end())[0]["code"] == "AUTH_UNAVAILABLE"
    relay.verifier.away = False
    await relay.login()


# -- what a connection sends

RATES = ThrottleRates("100/second", "10/second", "10000/second")


async def test_frames_over_the_rate_are_dropped_and_that_is_said_once_a_second(
    relay: MemoryRelay,
) -> None:
    relay.guard = Guard(throttle_rates=RATES)
    phone, viewer = await relay.phone(), await relay.viewer(policy="lossless")
    await phone.receive_type("status")
    for _ in range(100):
        await phone.send(FRAME)
        await wait_all_tasks_blocked()
    error = await phone.receive_type("error")
    assert (error["code"], error["message"]) == (
        "RATE_LIMITED",
        "Too many frames in too short a time; some were dropped",
    )
    seqs = [(await viewer.receive_type("video-frame"))["seq"] for _ in range(50)]
    assert seqs == [*range(1, 51)]
    await trio.sleep(1)
    reply = await phone.ask({"type": "unsubscribe", "streamId": "unheard-of"})
    assert reply["code"] == "INVALID_MESSAGE", "a second error was told"
    for _ in range(12):
        await phone.send(FRAME)
        await wait_all_tasks_blocked()
    assert (await phone.receive())["code"] == "RATE_LIMITED"
    assert relay.metrics.limits_hit[Limit.FRAMES] == 52


async def test_no_delta_is_sent_that_builds_on_a_dropped_frame(relay: MemoryRelay) -> None:
    relay.guard = Guard(throttle_rates=RATES)
    phone, viewer = await relay.phone(), await relay.viewer(policy="lossless")
    for number in range(60):
        await phone.send({**FRAME, "keyframe": number == 0})
        await wait_all_tasks_blocked()
    await trio.sleep(3)
    await phone.send({**FRAME, "keyframe": False})
    await phone.send({**FRAME, "keyframe": True})
    got = [await viewer.receive_type("video-frame") for _ in range(51)]
    assert [frame["seq"] for frame in got] == [*range(1, 51), 52]


async def test_messages_over_the_rate_are_dropped_and_when_it_goes_on_it_ends(
    relay: MemoryRelay,
) -> None:
    relay.guard = Guard(throttle_rates=RATES)
    client = await relay.login()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                for _ in range(50):
                    await client.send({"type": "ack", "streamId": "s", "seq": 1})
                await trio.sleep(0.1)

        nursery.start_soon(flood)
        error, close = await client.hear_end()
        nursery.cancel_scope.cancel()
    assert error["code"] == "RATE_LIMITED"
    assert error["retryAfter"] > 0
    assert close == (4008, "rate limited")
    assert 10 < trio.current_time() - start < 15
    assert relay.metrics.endings[Ending.RATE_LIMITED] == 1


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(bytes([0x8A, 0x80, 0, 0, 0, 0]), id="pongs"),
        pytest.param(bytes([0x00, 0x80, 0, 0, 0, 0]), id="empty fragments"),
    ],
)
async def test_what_is_no_message_and_comes_without_end_counts_as_messages(
    relay: MemoryRelay, noise: bytes
) -> None:
    relay.guard = Guard(throttle_rates=RATES)
    client = await relay.login()
    await client.send_bytes(bytes([0x01, 0x80, 0, 0, 0, 0]))
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                await client.send_bytes(noise * 50)
                await trio.sleep(0.1)

        nursery.start_soon(flood)
        error, close = await client.hear_end()
        nursery.cancel_scope.cancel()
    assert error["code"] == "RATE_LIMITED"
    assert close == (4008, "rate limited")


async def test_large_fragments_are_no_noise(relay: MemoryRelay) -> None:
    relay.guard = Guard(throttle_rates=ThrottleRates("1/hour", "1/hour", "1000000/second"))
    client = await relay.login()
    payload = json.dumps({"type": "streams", "id": 7, "padding": "x" * 20_000}).encode()
    pieces = [payload[at : at + 2048] for at in range(0, len(payload), 2048)]
    for at, piece in enumerate(pieces):
        first = (0x80 if piece is pieces[-1] else 0) | (0 if at else 1)
        size = len(piece).to_bytes(2, "big")
        await client.send_bytes(bytes([first, 0x80 | 126]) + size + bytes(4) + piece)
    assert (await client.receive())["code"] == "STREAMS"


async def test_bytes_over_the_rate_are_dropped(relay: MemoryRelay) -> None:
    relay.guard = Guard(throttle_rates=RATES)
    phone = await relay.phone()
    for _ in range(3):
        await phone.send({**FRAME, "data": "A" * 40_000})
        await wait_all_tasks_blocked()
    error = await phone.receive_type("error")
    assert error["message"] == "Too many bytes in too short a time; some were dropped"
    assert error["retryAfter"] == pytest.approx(3000, rel=0.05)
    assert relay.metrics.frames_accepted == 2


async def test_what_comes_before_auth_has_limits_of_its_own(relay: MemoryRelay) -> None:
    relay.guard = Guard(throttle_rates=ThrottleRates("1/hour", "1/hour", "1/hour"))
    client = await relay.open()
    for _ in range(5):
        await client.send({"type": "streams"})
    await client.send({"type": "auth", "token": ANN})
    assert (await client.receive_type("success"))["code"] == "AUTHENTICATED"


# -- alerts


async def test_alerts_over_the_rate_are_refused_each_and_others_go_on(relay: MemoryRelay) -> None:
    relay.guard.session_limits = SessionLimits(alert_rate=RateLimiter("3/minute"))
    await relay.phone()
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    sentries = [await relay.login(SENTRY) for _ in range(2)]
    for number in range(3):
        reply = await sentries[number % 2].ask({**alert, "id": number})
        assert reply["code"] == "ALERT_ACCEPTED"
    for sentry in sentries:
        reply = await sentry.ask({**alert, "id": "late"})
        assert (reply["code"], reply["id"], reply["streamId"]) == (
            "RATE_LIMITED",
            "late",
            "front-door",
        )
        assert 0 < reply["retryAfter"] <= 60_000
    ann = await relay.login(ANN)
    assert (await ann.ask(alert))["code"] == "ALERT_ACCEPTED"
    await trio.sleep(60)
    assert (await sentries[0].ask(alert))["code"] == "ALERT_ACCEPTED"
    assert relay.metrics.limits_hit == {Limit.ALERTS: 2}


# -- caps


def crowd(**caps: Any) -> Guard:
    return Guard(connections=ConnectionLimits(Caps(**{"connections": 9, "per_address": 9, **caps})))


async def test_over_the_caps_an_upgrade_gets_503_with_a_time_to_wait(relay: MemoryRelay) -> None:
    relay.guard = crowd(connections=3, per_address=2, per_user=9, unauthenticated=9)
    first = await relay.login(host="192.0.2.1")
    await relay.login(host="192.0.2.1")
    answer = await refused(relay, host="192.0.2.1")
    assert (answer.status, answer.error["code"]) == (503, "TOO_MANY_CONNECTIONS")
    assert answer.headers["Retry-After"] == "5"
    await relay.login(host="192.0.2.2")
    assert (await refused(relay, host="192.0.2.3")).status == 503
    assert await request(relay, upgrade=False, host="192.0.2.1") == 0  # a health check, say
    first.link.close()
    await wait_all_tasks_blocked()
    await relay.login(host="192.0.2.3")
    assert relay.metrics.limits_hit == {Limit.CONNECTIONS_OF_ADDRESS: 1, Limit.CONNECTIONS: 1}


async def test_upgrades_that_stay_silent_keep_no_phone_behind_their_address_out(
    relay: MemoryRelay,
) -> None:
    relay.guard = crowd(per_address=5, per_user=99, unauthenticated=8)
    silent = [await relay.open() for _ in range(5)]
    phone = await relay.login()
    error, close = await silent[0].hear_end()
    assert (error["code"], close[0]) == ("TOO_MANY_CONNECTIONS", 4013)
    assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"
    assert relay.metrics.limits_hit == {Limit.CONNECTIONS_OF_ADDRESS: 1}


async def test_upgrades_that_stay_silent_keep_nobody_out_of_the_whole(relay: MemoryRelay) -> None:
    relay.guard = crowd(connections=8, per_address=5, per_user=99, unauthenticated=8)
    for _ in range(5):
        await relay.open(host="198.51.100.1")
    for number in range(8):
        await relay.login(host=f"192.0.2.{number}")
    assert (await refused(relay, host="192.0.2.9")).status == 503
    assert relay.metrics.limits_hit == {Limit.CONNECTIONS: 6}


async def test_the_oldest_connection_of_a_user_makes_room_for_the_newest(
    relay: MemoryRelay,
) -> None:
    relay.guard = crowd(per_user=2, unauthenticated=9)
    relay.verifier.identities["another-of-ann"] = user("ann")
    oldest, other = await relay.login(), await relay.login("another-of-ann")
    bob = await relay.login(BOB)
    newest = await relay.login()
    error, close = await oldest.hear_end()
    assert (error["code"], error["retryAfter"]) == ("TOO_MANY_CONNECTIONS", 5000)
    assert close == (4013, "try again later")
    for client in (other, bob, newest):
        assert (await client.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_the_newest_is_refused_if_it_is_so_set(relay: MemoryRelay) -> None:
    relay.guard = crowd(per_user=1, unauthenticated=9, stays="oldest-wins")
    oldest = await relay.login()
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN, "id": 7})
    error, close = await client.hear_end()
    assert (error["code"], close[0]) == ("TOO_MANY_CONNECTIONS", 4013)
    assert (await oldest.ask({"type": "streams"}))["code"] == "STREAMS"
    assert relay.metrics.authenticated == 1


async def test_renewing_is_no_second_connection(relay: MemoryRelay) -> None:
    relay.guard = crowd(per_user=1, unauthenticated=9)
    client = await relay.login()
    for _ in range(3):
        assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"


async def test_the_address_with_most_unauthenticated_connections_loses_its_oldest(
    relay: MemoryRelay,
) -> None:
    relay.guard = crowd(per_user=9, unauthenticated=4)
    honest = await relay.open(host="192.0.2.1")
    many = [await relay.open(host="192.0.2.66") for _ in range(3)]
    silent = relay.connect(host="192.0.2.2")
    error, close = await many[0].hear_end()
    assert (error["code"], close[0]) == ("TOO_MANY_CONNECTIONS", 4013)
    relay.connect(host="192.0.2.66")
    assert (await many[1].hear_end())[1][0] == 4013
    assert not silent.link.incoming.ended
    assert (await honest.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"
    assert relay.metrics.limits_hit == {Limit.UNAUTHENTICATED: 2}


async def test_connections_that_say_nothing_crowd_out_one_another(relay: MemoryRelay) -> None:
    relay.guard = crowd(per_user=9, unauthenticated=10)
    silent = [relay.connect(host=f"192.0.2.{number}") for number in range(200)]
    await wait_all_tasks_blocked()
    left = [client for client in silent if not client.link.incoming.ended]
    assert len(left) == relay.guard.connections.unauthenticated == 10
    assert isinstance(await left[0].upgrade(), events.AcceptConnection)


async def test_who_does_not_answer_our_goodbye_is_still_counted_and_may_be_cut_off(
    relay: MemoryRelay,
) -> None:
    relay.guard = crowd(per_user=9, unauthenticated=3)
    rude = [await relay.open() for _ in range(3)]
    for client in rude:
        await client.send(guess(1))
        assert (await client.closing())[0] == 1008
    assert relay.guard.connections.unauthenticated == 3
    assert not any(connection._stream.link.closed for connection in relay.connections)
    await relay.login()
    assert relay.connections[0]._stream.link.closed
    await trio.sleep(2.1)
    assert relay.guard.connections.unauthenticated == 0


async def test_a_user_has_so_many_streams_online(relay: MemoryRelay) -> None:
    relay.guard.session_limits = SessionLimits(max_streams=2)
    first, second = await relay.phone("a"), await relay.phone("b")
    third = await relay.login()
    register = {"type": "register", "streamId": "c", "id": 3}
    reply = await third.ask(register)
    assert (reply["code"], reply["id"]) == ("TOO_MANY_CONNECTIONS", 3)
    assert reply["retryAfter"] == 5000
    await relay.phone("bobs", token=BOB)
    again = await relay.phone("a")  # a takeover is no stream more
    assert (await first.hear_end())[1][0] == 4502
    reply = await again.ask({"type": "register", "streamId": "d"})  # ends its first
    assert reply["code"] == "REGISTERED"
    second.link.close()
    await trio.sleep(4.9)  # for so long it may come back unnoticed
    assert (await third.ask(register))["code"] == "TOO_MANY_CONNECTIONS"
    await trio.sleep(0.2)
    assert (await third.ask(register))["code"] == "REGISTERED"
    assert relay.metrics.limits_hit == {Limit.STREAMS_OF_USER: 2}


async def test_registers_that_wait_for_the_store_together_are_counted_afterwards(
    relay: MemoryRelay,
) -> None:
    relay.guard.session_limits = SessionLimits(max_streams=2)
    phones = [await relay.login() for _ in range(5)]
    relay.owners.delay = 1
    for number, phone in enumerate(phones):
        await phone.send({"type": "register", "streamId": f"s{number}"})
    replies = [await phone.receive() for phone in phones]
    assert sorted(reply["code"] for reply in replies) == (
        ["REGISTERED"] * 2 + ["TOO_MANY_CONNECTIONS"] * 3
    )


async def test_a_connection_has_so_many_subscriptions(relay: MemoryRelay) -> None:
    relay.guard.session_limits = SessionLimits(max_subscriptions=3)
    viewer = await relay.login()

    async def subscribe(stream_id: str) -> str:
        request = {"type": "subscribe", "streamId": stream_id, "consumes": []}
        return str((await viewer.ask(request))["code"])

    assert [await subscribe(name) for name in "aabcd"] == ["SUBSCRIBED"] * 4 + ["INVALID_MESSAGE"]
    await viewer.ask({"type": "unsubscribe", "streamId": "a"})
    assert await subscribe("d") == "SUBSCRIBED"


# -- all together


@pytest.mark.parametrize("phones", [200, pytest.param(1000, marks=pytest.mark.slow)])
async def test_the_phones_of_one_carrier_come_back_at_once(relay: MemoryRelay, phones: int) -> None:
    relay.guard = Guard.build(Settings())
    for number in range(phones):
        relay.verifier.identities[f"t{number}"] = user(f"user-{number}")
    back = 0

    async def come(number: int) -> None:
        nonlocal back
        await relay.login(f"t{number}", host="192.0.2.1")
        back += 1

    async with trio.open_nursery() as nursery:
        for number in range(phones):
            nursery.start_soon(come, number)
    assert back == phones
    assert not relay.metrics.limits_hit


async def test_nothing_is_left_of_connections_that_end_in_any_way(relay: MemoryRelay) -> None:
    relay.guard = crowd(per_user=2, unauthenticated=3)
    for number in range(30):
        client = relay.connect(host=f"192.0.2.{number % 2}")
        if number % 3:
            await client.send_bytes(HEAD + UPGRADE + b"\r\n")
        if number % 5 == 0:
            client.link.close()
        await wait_all_tasks_blocked()
    await trio.sleep(60)
    connections_left = relay.guard.connections
    assert connections_left.unauthenticated == 0
    assert not connections_left._admitted
    assert not connections_left._by_address
