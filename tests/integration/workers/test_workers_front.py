"""What comes before the first byte of a client: TLS, and the header of a proxy."""

from __future__ import annotations

import re
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.certificate_files import Files
from tests.integration.peers import Peer, login
from tests.integration.proxies import proxy_header
from tests.integration.raw import REQUEST, RawClient, message, open_raw
from tests.integration.relay_process import RelayProcess, start_relay, until

GUESSES, STRANGERS = 4, 6
BEHIND_PROXY = (
    *("--workers", "2", "--trusted-proxies", "127.0.0.1", "--proxy-protocol"),
    *("--failed-auth-rate", f"{GUESSES}/hour", "--max-unauthenticated", str(STRANGERS)),
)


# -- TLS


def certificate_of(peer: Peer) -> bytes | None:
    stream = peer.socket.stream
    found: bytes | None = stream.getpeercert(binary_form=True)  # type: ignore[attr-defined]
    return found


@pytest.mark.slow
async def test_hangup_loads_a_new_certificate_at_all_workers_and_later_ones(
    database_url: str, accounts: Accounts, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    token = accounts.session("tls")
    with start_relay("--workers", "2", *files.arguments, database_url=database_url) as relay:
        async with AsyncExitStack() as stack:

            async def join(trust: ssl.SSLContext) -> Peer:
                return await stack.enter_async_context(login(relay, token, ssl=trust))

            before = [await join(files.trust()) for _ in range(2)]
            files.renew()
            relay.signal(signal.SIGHUP)
            await until(lambda: relay.log.count("certificate reloaded") == 2)
            after = [await join(files.trust()) for _ in range(2)]
            (old,) = {certificate_of(peer) for peer in before}
            (new,) = {certificate_of(peer) for peer in after}
            assert old != new
            for peer in before:
                assert (await peer.ask({"type": "streams"}))["type"] == "success"
            files.chain.write_text("no certificate")
            relay.signal(signal.SIGHUP)
            await until(lambda: relay.log.count("certificate not reloaded") == 2)
            assert {certificate_of(await join(files.trust())) for _ in range(2)} == {new}
        assert {"worker=1", "worker=2"} <= set(
            re.findall(r"certificate reloaded.*(worker=\d)", relay.log)
        )


# -- behind a proxy


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*BEHIND_PROXY, database_url=database_url) as relay:
        yield relay


@asynccontextmanager
async def open_behind(
    relay: RelayProcess, client: str, version: int, *, path: bytes = b"/streams/register"
) -> AsyncIterator[RawClient]:
    """A client whose address a proxy tells, with an open WebSocket."""
    async with open_raw(relay) as raw:
        await raw.send(proxy_header(version, (client, 4711), ("127.0.0.1", relay.port)))
        await raw.upgrade(REQUEST.replace(b"/streams/register", path))
        yield raw


async def guess(relay: RelayProcess, client: str, version: int) -> str:
    async with open_behind(relay, client, version) as raw:
        await raw.send(message(type="auth", token=f"guess of {client}"))
        return str((await raw.receive())["code"])


@pytest.mark.parametrize("version", [1, 2])
async def test_workers_ban_the_client_behind_the_proxy_and_not_the_proxy(
    relay: RelayProcess, version: int
) -> None:
    guesser, other = f"192.0.2.{version}", f"198.51.100.{version}"
    assert [await guess(relay, guesser, version) for _ in range(GUESSES)] == [
        "AUTH_FAILED"
    ] * GUESSES
    await until(lambda: re.search(rf"address banned.*address={guesser} ", relay.log) is not None)
    assert await guess(relay, guesser, version) == "RATE_LIMITED"
    assert await guess(relay, other, version) == "AUTH_FAILED"


@pytest.mark.parametrize("version", [1, 2])
async def test_the_parent_counts_strangers_by_the_client_behind_the_proxy(
    relay: RelayProcess, accounts: Accounts, version: int
) -> None:
    token = accounts.session("behind")
    async with AsyncExitStack() as stack:

        async def join(client: str) -> RawClient:
            return await stack.enter_async_context(open_behind(relay, client, version))

        # Were they all of one address, the oldest of them would be ended.
        lone = await join("198.51.100.77")
        crowd = [await join("192.0.2.77") for _ in range(STRANGERS)]
        heard, _ = await crowd[0].hear_end()
        assert [each["code"] for each in heard] == ["TOO_MANY_CONNECTIONS"]
        await lone.authenticate(token)
        await crowd[-1].authenticate(token)


async def test_the_name_of_a_stream_behind_the_header_of_a_proxy_places_its_clients(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("placed")
    path = b"/streams/subscribe?stream=placed"
    async with AsyncExitStack() as stack:
        for version in (1, 2, 1, 2):
            client = f"203.0.113.{version}"
            raw = await stack.enter_async_context(open_behind(relay, client, version, path=path))
            await raw.authenticate(token)
        lines = [line for line in relay.log.splitlines() if "address=203.0.113." in line]
        assert len({re.findall(r"worker=\d", line)[0] for line in lines}) == 1
        assert len(lines) == 4
