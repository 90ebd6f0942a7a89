"""Limits between real sockets, from many addresses of the loopback interface."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.flood import connect, flood
from tests.integration.peers import login, new_stream_id
from tests.integration.raw import REQUEST, RawClient, message
from tests.integration.relay_process import RelayProcess, start_relay, until

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="platform: only Linux has all of 127.0.0.0/8"
)


@asynccontextmanager
async def open_from(relay: RelayProcess, source: str) -> AsyncIterator[RawClient]:
    async with await connect(relay.port, source) as stream:
        yield RawClient(stream)


async def answer(relay: RelayProcess, source: str, request: bytes = REQUEST) -> bytes:
    """What comes to a request; of an accepted upgrade, only the first bytes."""
    async with open_from(relay, source) as client:
        await client.send(request)
        begin = await client.stream.receive_some()
        return bytes(begin) + (b"" if begin.startswith(b"HTTP/1.1 101") else await rest(client))


async def rest(client: RawClient) -> bytes:
    return await client.read_to_end()


async def test_networks_are_refused_and_allowed(database_url: str) -> None:
    lists = ("--allow-networks", "127.0.0.0/16", "--deny-networks", "127.0.0.66,::1")
    with start_relay(*lists, database_url=database_url) as relay:
        assert (await answer(relay, "127.0.0.2")).startswith(b"HTTP/1.1 101 ")
        for source in ("127.0.0.66", "127.1.0.1"):
            for request in (REQUEST, b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n"):
                refused = await answer(relay, source, request)
                assert refused.startswith(b"HTTP/1.1 403 Forbidden\r\n")
                error = json.loads(refused.partition(b"\r\n\r\n")[2])["error"]
                assert error["code"] == "UNAUTHORIZED"
        assert (await relay.get("/health")).status == 200
        assert (await relay.stats())["limits_hit"]["network"] == 4


async def test_new_connections_are_counted_by_address(database_url: str) -> None:
    with start_relay("--connection-rate", "3/hour", database_url=database_url) as relay:
        for source in ("127.0.0.2", "127.0.0.3"):
            for _ in range(3):
                assert (await answer(relay, source)).startswith(b"HTTP/1.1 101 ")
            refused = await answer(relay, source)
            assert refused.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"\r\nRetry-After: 3" in refused


async def test_a_guesser_is_banned_and_a_phone_of_the_same_carrier_is_not(
    database_url: str, accounts: Accounts
) -> None:
    phone, newcomer = accounts.session("ann"), accounts.session("bob")
    with start_relay("--failed-auth-rate", "5/hour", database_url=database_url) as relay:

        async def authenticate(token: str, source: str = "127.0.0.2") -> str:
            async with open_from(relay, source) as client:
                await client.upgrade()
                await client.send(message(type="auth", token=token))
                return str((await client.receive())["code"])

        assert await authenticate(phone) == "AUTHENTICATED"
        guesses = [await authenticate(f"guess-{number}") for number in range(7)]
        assert guesses == ["AUTH_FAILED"] * 5 + ["RATE_LIMITED"] * 2
        queries = (await relay.stats())["verification_queries"]
        assert await authenticate("guess") == "RATE_LIMITED"
        assert (await relay.stats())["verification_queries"] == queries
        assert await authenticate(newcomer, "127.0.0.3") == "AUTHENTICATED"
        assert await authenticate(newcomer) == "AUTHENTICATED"  # known since a moment ago
        assert await authenticate("guess") == "AUTH_FAILED"  # which ended the ban
        assert "address banned" in relay.log
        assert "guess" not in relay.log


async def test_a_proxy_header_comes_before_tls(database_url: str) -> None:
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    settings = ("--trusted-proxies", "127.0.0.9", "--proxy-protocol")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def status(relay: RelayProcess, client_address: str) -> bytes:
        addresses = socket.inet_aton(client_address) + socket.inet_aton("127.0.0.1")
        header = struct.pack("!BBH", 0x21, 0x11, 12) + addresses + bytes(4)
        stream = await connect(relay.port, "127.0.0.9")
        await stream.send_all(signature + header)
        async with trio.SSLStream(stream, context, https_compatible=True) as encrypted:
            await encrypted.send_all(REQUEST)
            return bytes((await encrypted.receive_some())[:12])

    denied = ("--deny-networks", "192.0.2.0/24")
    with start_relay("--dev-tls", *settings, *denied, database_url=database_url) as relay:
        assert await status(relay, "192.0.2.1") == b"HTTP/1.1 403"
        assert await status(relay, "198.51.100.1") == b"HTTP/1.1 101"
        async with open_from(relay, "127.0.0.9") as client:
            await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
            assert await client.read_to_end() == b""


async def test_the_profile_for_load_tests_lifts_limits_and_says_so(
    database_url: str, accounts: Accounts
) -> None:
    limits = ("--max-connections", "1", "--connection-rate", "1/hour")
    load = ("--profile", "load")
    with start_relay(*limits, *load, database_url=database_url) as relay:
        assert "PROFILE LOAD" in relay.log
        assert (await relay.stats())["profile"] == "load"
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(login(relay, accounts.session("ann")))
    with start_relay(*limits, database_url=database_url) as relay:
        assert "PROFILE LOAD" not in relay.log
        assert (await answer(relay, "127.0.0.2")).startswith(b"HTTP/1.1 101 ")
        assert (await answer(relay, "127.0.0.2")).startswith(b"HTTP/1.1 429 ")


@pytest.mark.slow
async def test_honest_streams_lose_no_frame_while_thousands_guess(
    database_url: str, accounts: Accounts
) -> None:
    pairs, guesses = 10, 2000
    received = 0
    attack_is_over = trio.Event()

    async def stream(token: str, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal received
        async with login(relay, token) as phone, login(relay, token) as viewer:
            stream_id = new_stream_id()
            await phone.register(stream_id)
            await viewer.subscribe(stream_id, policy="lossless")
            task_status.started()
            sent = 0
            while not attack_is_over.is_set():
                await phone.send_frame(bytes(2000))
                sent += 1
                assert (await viewer.receive_type("video-frame"))["seq"] == sent
                received += 1
                with trio.move_on_after(0.05):
                    await attack_is_over.wait()

    bans = ("--failed-auth-rate", "2/hour", "--max-unauthenticated", "200")
    with start_relay(*bans, "--log-level", "warning", database_url=database_url) as relay:
        async with trio.open_nursery() as nursery:
            for token in accounts.sessions([f"user-{number}" for number in range(pairs)]):
                await nursery.start(stream, token)
            before = relay.memory
            ended = await flood(relay.port, 50, 300, lambda ended: ended.total() >= guesses)
            grown = relay.memory - before
            attack_is_over.set()
        stats = await relay.stats()

        async def all_have_gone() -> bool:
            return bool((await relay.stats())["unauthenticated"] == 1)  # the one that asks

        await until(all_have_gone)
    assert ended["AUTH_FAILED"] > guesses / 2
    assert stats["limits_hit"]["unauthenticated"] > 0
    assert stats["frames_to_consumers"]["dropped"] == {}
    assert stats["frames_accepted"] == received
    assert grown < 60 * MIB
