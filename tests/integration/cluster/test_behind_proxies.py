"""Relays that serve together behind nginx and Caddy, set as docs/operations.md has them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
from attrs import evolve, frozen

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.proxies import CADDY, NGINX, caddy, documented, free_port, nginx
from tests.integration.relay_process import RelayProcess, start_relay

OPTIONS = (
    *("--cluster-bind", "127.0.0.1:0", "--trusted-proxies", "127.0.0.1"),
    *("--offline-grace", "0.1"),  # relays that end stay for so long
)
ADDRESSES = ("10.0.0.11:3000", "10.0.0.12:3000", "10.0.0.13:3000")
Nodes = tuple[RelayProcess, RelayProcess, RelayProcess]


@frozen
class Files:
    """The certificate of a proxy, and clients' trust in it."""

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


@pytest.fixture(scope="module")
def nodes(database_url: str) -> Iterator[Nodes]:
    with (
        start_relay(*OPTIONS, database_url=database_url) as first,
        start_relay(*OPTIONS, database_url=database_url) as second,
        start_relay(*OPTIONS, database_url=database_url) as third,
    ):
        yield first, second, third


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    return Accounts(database_url)


def places(nodes: Nodes) -> dict[str, str]:
    """Where the relays of the page are on this machine."""
    return {there: f"127.0.0.1:{node.port}" for there, node in zip(ADDRESSES, nodes, strict=True)}


@contextmanager
def behind_nginx(nodes: Nodes, files: Files) -> Iterator[RelayProcess]:
    """The relays as clients see them: the page's settings, with its upstream for several."""
    port = free_port()
    settings = documented("conf.d/relay.conf")
    begin, end = settings.index("upstream relay"), settings.index("server {\n")
    settings = settings[:begin] + documented("in place of the upstream") + settings[end:]
    here = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/nginx/relay/chain.pem": str(files.chain),
        "/etc/nginx/relay/key.pem": str(files.key),
        **places(nodes),
    }
    with nginx(settings, here, port=port):
        yield evolve(nodes[0], url=f"https://127.0.0.1:{port}")


@contextmanager
def behind_caddy(nodes: Nodes, files: Files) -> Iterator[RelayProcess]:
    port = free_port()
    here = {
        "relay.example.org {": f"https://127.0.0.1:{port} {{\n\ttls {files.chain} {files.key}",
        **places(nodes),
    }
    with caddy(documented("three relays", "caddyfile"), here, port=port):
        yield evolve(nodes[0], url=f"https://127.0.0.1:{port}")


async def accepted(nodes: Nodes) -> list[int]:
    """WebSockets that each relay has accepted so far."""
    return [(await each.stats())["connections_accepted"] for each in nodes]


async def grown_since(before: list[int], nodes: Nodes) -> list[int]:
    return [now - then for now, then in zip(await accepted(nodes), before, strict=True)]


async def stream_to_all(
    front: RelayProcess, token: str, trust: ssl.SSLContext, *, hint: bool, viewers: int
) -> None:
    """Frames of a phone reach all viewers, wherever the proxy has put them."""
    stream_id = new_stream_id()
    query = f"?stream={stream_id}" if hint else ""
    async with AsyncExitStack() as stack:

        async def enter(path: str) -> Peer:
            peer = login(front, token, path=path + query, ssl=trust, msgpack=True)
            return await stack.enter_async_context(peer)

        phone = await enter("/streams/register")
        peers = [await enter("/streams/subscribe") for _ in range(viewers)]
        await phone.register(stream_id)
        for peer in peers:
            await peer.subscribe(stream_id)
        for number in range(3):
            await phone.send_frame(bytes([number]) * 1000)
            for peer in peers:
                frame = await peer.receive_type("video-frame")
                while frame["seq"] < number + 1:
                    frame = await peer.receive_type("video-frame")
                assert frame["data"] == bytes([number]) * 1000


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
async def test_behind_nginx_those_who_name_a_stream_meet_and_others_are_spread(
    nodes: Nodes, accounts: Accounts, files: Files
) -> None:
    token = accounts.session()
    with behind_nginx(nodes, files) as front:
        for _ in range(3):
            before = await accepted(nodes)
            await stream_to_all(front, token, files.trust, hint=True, viewers=4)
            assert sorted(await grown_since(before, nodes)) == [0, 0, 5]
        before = await accepted(nodes)
        await stream_to_all(front, token, files.trust, hint=False, viewers=11)
        assert sum(1 for each in await grown_since(before, nodes) if each) > 1


@pytest.mark.skipif(CADDY is None, reason="caddy is not installed")
async def test_behind_caddy_clients_are_spread_and_get_their_frames(
    nodes: Nodes, accounts: Accounts, files: Files
) -> None:
    token = accounts.session()
    with behind_caddy(nodes, files) as front:
        before = await accepted(nodes)
        await stream_to_all(front, token, files.trust, hint=True, viewers=5)
        assert all(await grown_since(before, nodes))
