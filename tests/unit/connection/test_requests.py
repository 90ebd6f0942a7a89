"""Requests as proxies, browsers and scanners write them."""

from __future__ import annotations

import json
import re

import pytest
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from relay.guard.client_address import ClientAddress, Proxies, parse_networks
from relay.guard.connection_limits import Caps, ConnectionLimits
from relay.guard.guard import Guard
from relay.guard.rates import RateLimiter
from relay.protocol.endings import Ending
from relay.protocol.states import State
from relay.transport.handshake.head import with_path
from relay.transport.stream import MAX_HEAD_BYTES, MAX_LINGER_BYTES
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

KEY = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\n"


async def response(relay: MemoryRelay, head: str, host: str = "192.0.2.1") -> str:
    """What comes back at once."""
    client = relay.connect(host=host)
    await client.send_bytes(head.encode("latin-1"))
    await wait_all_tasks_blocked()
    return bytes(client.link.incoming.content).decode("latin-1")


async def status(
    relay: MemoryRelay, target: str = "/streams/register", lines: str = UPGRADE
) -> int:
    head = f"GET {target} HTTP/1.1\r\nHost: relay\r\n{lines}{KEY}\r\n"
    return int((await response(relay, head)).split()[1])


@pytest.mark.parametrize(
    "lines",
    [
        "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: h2c, websocket\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        "Upgrade: h2c,WebSocket ,TLS/1.0\r\nConnection: keep-alive, upgrade\r\n",
        "Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nConnection: keep-alive\r\n",
        "Upgrade: websocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n",
        "upgrade:WEBSOCKET\r\nCONNECTION:UPGRADE\r\n",
        "Upgrade: websocket,\r\nConnection: Upgrade\r\n",
    ],
)
async def test_a_websocket_among_other_protocols_is_a_websocket(
    relay: MemoryRelay, lines: str
) -> None:
    assert await status(relay, lines=lines) == 101


@pytest.mark.parametrize(
    "lines",
    [
        "Upgrade: h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: websocketx, h2c\r\nConnection: Upgrade\r\n",
        "X-Upgrade: websocket\r\nConnection: Upgrade\r\n",
        "",
    ],
)
async def test_what_does_not_list_a_websocket_is_a_plain_request(
    relay: MemoryRelay, lines: str
) -> None:
    head = f"GET /streams/register HTTP/1.1\r\nHost: relay\r\n{lines}{KEY}\r\n"
    assert await response(relay, head) == ""
    assert relay.http_served == 1


async def test_a_list_without_connection_upgrade_is_refused(relay: MemoryRelay) -> None:
    lines = "Upgrade: websocket, h2c\r\nConnection: keep-alive\r\n"
    assert await status(relay, lines=lines) == 400


@pytest.mark.parametrize(
    "target",
    [
        "http://relay/streams/register",
        "ws://relay:3000/streams/subscribe",
        "WSS://user@relay/streams/register?a=b",
    ],
)
async def test_a_target_may_be_a_whole_url(relay: MemoryRelay, target: str) -> None:
    assert await status(relay, target) == 101


async def test_the_path_of_a_url_is_its_target() -> None:
    for target, path in {
        "http://relay/health": "/health",
        "http://relay": "/",
        "https://relay?x=/y": "/?x=/y",
        "/health?u=http://x/y": "/health?u=http://x/y",
        "*": "*",
        "//relay/health": "//relay/health",
    }.items():
        head = f"GET {target} HTTP/1.1\r\nReferer: http://x/y\r\n\r\n"
        assert with_path(head.encode()) == head.replace(f" {target} ", f" {path} ").encode()


@pytest.mark.parametrize(
    "query",
    [
        "token",
        "Token",
        "TOKEN",
        "%74oken",
        "access_token",
        "accessToken",
        "access-token",
        "session_token",
        "sessionToken",
        "better-auth.session_token",
        "auth_token",
        "authToken",
        "id_token",
        "jwt",
        "bearer",
        "Authorization",
        "token[]",
    ],
)
async def test_a_token_in_the_url_is_refused_however_it_is_called(
    relay: MemoryRelay, query: str
) -> None:
    for target in (f"?{query}=secret", f"?a=b&{query}=secret", f"?a=b;{query}=secret", f"?{query}"):
        assert await status(relay, f"/streams/register{target}") == 400


@pytest.mark.parametrize("query", ["?room=1", "?EIO=4&transport=websocket", "?t=5", "?tokenless=1"])
async def test_other_parameters_are_ignored(relay: MemoryRelay, query: str) -> None:
    assert await status(relay, f"/streams/register{query}") == 101


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 1, MAX_HEAD_BYTES * 3])
@pytest.mark.parametrize("ends", [True, False])
async def test_a_head_that_is_too_large_is_answered(
    relay: MemoryRelay, size: int, ends: bool
) -> None:
    head = "GET / HTTP/1.1\r\nHost: relay\r\nCookie: "
    head += "x" * (size - len(head) - 4) + ("\r\n\r\n" if ends else "xxxx")
    answer = await response(relay, head)
    assert answer.startswith("HTTP/1.1 431 ")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "MESSAGE_TOO_BIG"


REQUEST_FOR_A_LIST = (
    f"GET /streams/register HTTP/1.1\r\nHost: relay\r\n{UPGRADE}{KEY}"
    f"Sec-WebSocket-Protocol: {'a,' * 5000}a\r\n"
)


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: relay\r\n" + "a:b\r\n" * 3000,
        "GET /streams/register HTTP/1.1\r\nHost: relay\r\n" + "a:b\r\n" * 3000 + UPGRADE + KEY,
        "GET /health?" + "a&" * 5000 + " HTTP/1.1\r\nHost: relay\r\n",
        "GET /health?" + "a;" * 5000 + " HTTP/1.1\r\nHost: relay\r\n",
        REQUEST_FOR_A_LIST,
    ],
    ids=["headers", "headers of an upgrade", "parameters", "parameters by semicolon", "a list"],
)
async def test_a_head_with_thousands_of_parts_is_not_taken_apart(
    relay: MemoryRelay, head: str
) -> None:
    answer = await response(relay, head + "\r\n")
    assert answer.startswith("HTTP/1.1 431 ")
    assert re.search("more than [15]00 ", answer)
    assert relay.http_served == 0


async def test_a_refusal_is_delivered_though_the_client_goes_on_sending(relay: MemoryRelay) -> None:
    relay.guard = Guard(connection_rate=RateLimiter("1/minute"))
    head = f"GET /streams/register HTTP/1.1\r\nHost: relay\r\n{UPGRADE}{KEY}\r\n"
    assert " 101 " in await response(relay, head)
    client = relay.connect(host="192.0.2.1")
    await client.send_bytes(head.encode() + b"x" * 5000)
    await wait_all_tasks_blocked()
    assert client.link.incoming.content.startswith(b"HTTP/1.1 429")
    assert client.link.incoming.ended
    assert not client.link.incoming.broken
    await client.send_bytes(b"x" * 5000)
    client.link.close()
    await wait_all_tasks_blocked()
    assert not client.link.outgoing.content  # all of it was read
    assert relay.metrics.endings[Ending.RATE_LIMITED] == 1


@pytest.mark.parametrize("pause", [0.1, 1.9])
async def test_a_client_that_never_stops_sending_is_left_in_ten_seconds(
    relay: MemoryRelay, pause: float
) -> None:
    client = await refused(relay)
    before = trio.current_time()
    while relay.connections[0].peer.state is not State.ENDED:
        client.link.outgoing.put(b"x")
        await trio.sleep(pause)
    assert trio.current_time() - before == pytest.approx(10, abs=2)
    assert relay.metrics.endings[Ending.HANDSHAKE_REFUSED] == 1


async def test_a_client_that_sends_no_more_is_left_soon(relay: MemoryRelay) -> None:
    await refused(relay)
    await trio.sleep(2.1)
    assert relay.connections[0].peer.state is State.ENDED


async def test_a_client_that_sends_much_is_left(relay: MemoryRelay) -> None:
    client = await refused(relay)
    with trio.move_on_after(5) as sending:
        await client.send_bytes(bytes(MAX_LINGER_BYTES))
    assert not sending.cancelled_caught
    await wait_all_tasks_blocked()
    assert relay.connections[0].peer.state is State.ENDED


async def test_a_client_that_goes_on_sending_gives_way_to_others(relay: MemoryRelay) -> None:
    relay.guard = Guard(connections=ConnectionLimits(Caps(1000, 1000, 1000, unauthenticated=1)))
    await refused(relay)
    relay.connect(host="192.0.2.2")
    await wait_all_tasks_blocked()
    assert relay.connections[0].peer.state is State.ENDED


async def refused(relay: MemoryRelay) -> Client:
    """A client that has got its answer and has not ended its half."""
    client = relay.connect(host="192.0.2.1")
    await client.send_bytes(b"GET / HTTP/1.1\r\nCookie: " + b"x" * MAX_HEAD_BYTES)
    await wait_all_tasks_blocked()
    assert client.link.incoming.content.startswith(b"HTTP/1.1 431 ")
    return client


async def test_connections_without_a_request_count_and_fill_no_log(relay: MemoryRelay) -> None:
    relay.guard = Guard(connection_rate=RateLimiter("100/minute"))
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            relay.connect(host="192.0.2.1").link.close()
            await wait_all_tasks_blocked()
    assert [log["event"] for log in logs].count("close") == 10
    assert relay.metrics.endings[Ending.CLIENT_GONE] == 100
    head = f"GET /streams/register HTTP/1.1\r\nHost: relay\r\n{UPGRADE}{KEY}\r\n"
    assert (await response(relay, head)).startswith("HTTP/1.1 429")
    assert (await response(relay, head, host="192.0.2.2")).startswith("HTTP/1.1 101")


@pytest.mark.parametrize("bytes_sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n\r\n"])
async def test_connections_that_are_ended_fill_no_log(
    relay: MemoryRelay, bytes_sent: bytes
) -> None:
    """By the deadline, to make room for others, and because there were too many."""
    limits = ConnectionLimits(Caps(1000, 1000, 1000, unauthenticated=20))
    relay.guard = Guard(connections=limits, connection_rate=RateLimiter("50/minute"))
    with structlog.testing.capture_logs() as logs:
        for _ in range(200):
            client = relay.connect(host="192.0.2.1")
            await client.send_bytes(bytes_sent)
            await wait_all_tasks_blocked()
        await trio.sleep(20)
    assert len(logs) < 10
    head = f"GET /streams/register HTTP/1.1\r\nHost: relay\r\n{UPGRADE}{KEY}\r\n"
    assert (await response(relay, head)).startswith("HTTP/1.1 429")


@pytest.mark.parametrize("headers", ["", "Sec-WebSocket-Protocol: unknown\r\n"])
async def test_handshakes_without_a_token_fill_no_log(relay: MemoryRelay, headers: str) -> None:
    head = f"GET /streams/register HTTP/1.1\r\nHost: relay\r\n{UPGRADE}{KEY}{headers}\r\n"
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            client = relay.connect(host="192.0.2.1")
            await client.send_bytes(head.encode())
            await wait_all_tasks_blocked()
            client.link.close()
        await trio.sleep(20)
    assert 0 < len(logs) <= 20


async def test_a_trusted_proxy_may_connect_without_a_request(relay: MemoryRelay) -> None:
    """As load balancers do to see whether relay lives, which then ask for /health, too."""
    proxies = Proxies(parse_networks(["192.0.2.1"]))
    relay.guard = Guard(proxies=proxies, connection_rate=RateLimiter("10/minute"))
    for _ in range(100):
        relay.connect(host="192.0.2.1").link.close()
        await wait_all_tasks_blocked()
    assert await status(relay) == 101


async def test_the_log_is_bounded_however_many_addresses_connect() -> None:
    guard = Guard()
    logged = [guard.may_log(ClientAddress.parse(f"10.0.{i // 256}.{i % 256}")) for i in range(5000)]
    assert sum(logged) == 600
