"""relay behind nginx and Caddy, set as docs/operations.md has them, and behind PROXY protocol."""

from __future__ import annotations

import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trustme
from attrs import evolve, frozen

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.proxies import (
    CADDY,
    NGINX,
    caddy,
    documented,
    forwarder,
    free_port,
    nginx,
    stream_module,
)
from tests.integration.relay_process import RelayProcess, start_relay, until

PHONE = "127.0.0.77"

from_elsewhere = pytest.mark.skipif(
    sys.platform != "linux", reason="platform: only Linux has all of 127.0.0.0/8"
)
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
needs_stream_module = pytest.mark.skipif(
    stream_module() is None, reason="nginx's stream module is not installed"
)
needs_caddy = pytest.mark.skipif(CADDY is None, reason="caddy is not installed")
BEHIND_PROXY = ("--trusted-proxies", "127.0.0.1")


@frozen
class Files:
    """A certificate for the proxy or the relay, and clients' trust in it."""

    chain: Path
    key: Path
    trust: ssl.SSLContext


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = Files(folder / "chain.pem", folder / "key.pem", ssl.create_default_context())
    files.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    authority.configure_trust(files.trust)
    return files


@contextmanager
def behind_nginx(files: Files, relay: RelayProcess, spare: int) -> Iterator[RelayProcess]:
    """A relay as clients see it that come through nginx, with the page's settings."""
    port = free_port()
    here = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "127.0.0.1:3000": f"127.0.0.1:{relay.port}",
        "127.0.0.1:3001": f"127.0.0.1:{spare}",
        "/etc/nginx/relay/chain.pem": str(files.chain),
        "/etc/nginx/relay/key.pem": str(files.key),
    }
    with nginx(documented("conf.d/relay.conf"), here, port=port):
        yield evolve(relay, url=f"https://127.0.0.1:{port}")


@contextmanager
def behind_caddy(files: Files, relay: RelayProcess) -> Iterator[RelayProcess]:
    """A relay as clients see it that come through Caddy, with the page's settings."""
    port = free_port()
    here = {
        "relay.example.org {": f"https://127.0.0.1:{port} {{\n\ttls {files.chain} {files.key}",
        "127.0.0.1:3000": f"127.0.0.1:{relay.port}",
    }
    with caddy(documented("relay.example.org", "caddyfile"), here, port=port):
        yield evolve(relay, url=f"https://127.0.0.1:{port}")


async def stream_through(phone: Peer, viewer: Peer) -> None:
    """A large frame passes, and what comes later does not wait in a buffer for more."""
    stream_id, picture = new_stream_id(), bytes(300_000)
    await phone.register(stream_id)
    await viewer.subscribe(stream_id)
    for data in (picture, b"small", picture):
        await phone.send_frame(data)
        assert (await viewer.receive_type("video-frame"))["data"] == data


@from_elsewhere
@pytest.mark.parametrize(
    "proxy", [pytest.param("nginx", marks=needs_nginx), pytest.param("caddy", marks=needs_caddy)]
)
async def test_behind_a_proxy_the_phone_s_own_address_is_known(
    proxy: str, files: Files, database_url: str, accounts: Accounts
) -> None:
    token = accounts.session()
    with (
        start_relay(*BEHIND_PROXY, database_url=database_url) as relay,
        behind_caddy(files, relay)
        if proxy == "caddy"
        else behind_nginx(files, relay, free_port()) as front,
    ):
        options = {"ssl": files.trust, "msgpack": True}
        forged = {"X-Forwarded-For": "192.0.2.1"}
        async with (
            login(front, token, local_address=PHONE, additional_headers=forged, **options) as phone,
            login(front, token, **options) as viewer,
        ):
            await stream_through(phone, viewer)
        assert (await front.get("/ready")).status == 200
        await relay.until_logged(f"address={PHONE}")
        assert "192.0.2.1" not in relay.log


@from_elsewhere
@pytest.mark.parametrize(
    "way", ["version 1", "version 2", pytest.param("nginx", marks=needs_stream_module)]
)
async def test_behind_proxy_protocol_the_phone_s_own_address_is_known(
    way: str, files: Files, database_url: str, accounts: Accounts
) -> None:
    token = accounts.session()
    arguments = ("--proxy-protocol", *BEHIND_PROXY)
    tls = ("--tls-certificate", str(files.chain), "--tls-key", str(files.key))
    async with AsyncExitStack() as stack:
        relay = stack.enter_context(start_relay(*arguments, *tls, database_url=database_url))
        if way == "nginx":
            port = free_port()
            here = {
                "listen 443": f"listen 127.0.0.1:{port}",
                "127.0.0.1:3000": f"127.0.0.1:{relay.port}",
            }
            settings = documented("nginx.conf, beside http")
            stack.enter_context(nginx(settings, here, main=stream_module() or "", port=port))
        else:
            port = await stack.enter_async_context(forwarder(relay.port, int(way[-1])))
        front = evolve(relay, url=f"https://127.0.0.1:{port}")
        options = {"ssl": files.trust, "msgpack": True}
        async with (
            login(front, token, local_address=PHONE, **options) as phone,
            login(front, token, **options) as viewer,
        ):
            await stream_through(phone, viewer)
        await relay.until_logged(f"address={PHONE}")


async def is_ready(relay: RelayProcess) -> bool:
    return (await relay.get("/ready")).status == 200


@needs_nginx
async def test_a_drain_moves_everybody_to_the_relay_beside_it(
    files: Files, database_url: str, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    options = {"ssl": files.trust, "msgpack": True}
    with (
        start_relay(*BEHIND_PROXY, database_url=database_url) as old,
        start_relay(*BEHIND_PROXY, database_url=database_url) as new,
        behind_nginx(files, old, new.port) as front,
    ):
        async with login(front, token, **options) as phone, login(front, token, **options) as eye:
            await phone.register(stream_id)
            await eye.subscribe(stream_id)
            await phone.send_frame(b"before")
            assert (await eye.receive_type("video-frame"))["data"] == b"before"
            # All are at the one that is no backup, though both are ready.
            await until(partial(is_ready, new))
            assert (await new.stats())["connections_accepted"] == 0
            old.signal(signal.SIGTERM)
            for peer in (phone, eye):
                heard, close = await peer.hear_end()
                assert close == (4012, "server restarting")
                assert heard[-1]["code"] == "SERVER_RESTARTING"
        # Who comes back does not have to know of another address, nor to try twice.
        async with login(front, token, **options) as phone, login(front, token, **options) as eye:
            await phone.register(stream_id)
            await eye.subscribe(stream_id)
            await phone.send_frame(b"after")
            assert (await eye.receive_type("video-frame"))["data"] == b"after"
            assert (await new.stats())["connections"] == 2
        assert await old.ended() == 0
