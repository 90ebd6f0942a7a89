"""Clients of two libraries, in two encodings, over TCP and TLS: all see the same pictures."""

from __future__ import annotations

import base64
import hashlib
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trustme
from attrs import frozen

from tests.integration.accounts import Accounts
from tests.integration.node import NodeClient, run_script
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay

CHANCE = random.Random(5)
PICTURES = [CHANCE.randbytes(size) for size in (0, 1, 125, 126, 65_535, 65_536, 300_000, 17, 4000)]
CLIENTS = ["python json", "python msgpack", "node json", "node msgpack"]

Seen = list[tuple[int, str]]
"""`seq` and SHA-256 of each frame."""


@frozen
class Place:
    """A relay, and how to trust it."""

    relay: RelayProcess
    authority: Path | None

    @property
    def trust(self) -> ssl.SSLContext | None:
        if self.authority is None:
            return None
        return ssl.create_default_context(cafile=str(self.authority))


@pytest.fixture(scope="module", params=["plain", "tls"])
def place(
    request: pytest.FixtureRequest, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    if request.param == "plain":
        with start_relay(database_url=database_url) as relay:
            yield Place(relay, None)
        return
    folder = tmp_path_factory.mktemp("tls")
    authority, files = trustme.CA(), [folder / name for name in ("ca.pem", "both.pem")]
    authority.cert_pem.write_to_path(str(files[0]))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(files[1]))
    options = ["--tls-certificate", str(files[1]), "--tls-key", str(files[1])]
    with start_relay(*options, database_url=database_url) as relay:
        yield Place(relay, files[0])


async def python_viewer(peer: Peer) -> Seen:
    seen: Seen = []
    for _ in PICTURES:
        frame = await peer.receive_type("video-frame")
        data = frame["data"]
        content = data if isinstance(data, bytes) else base64.b64decode(data)
        seen.append((frame["seq"], hashlib.sha256(content).hexdigest()))
    return seen


async def node_viewer(client: NodeClient) -> Seen:
    lines = [(await client.line("frame:")).split() for _ in PICTURES]
    return [(int(seq), digest) for seq, digest in lines]


@pytest.mark.parametrize("phone_kind", CLIENTS)
async def test_whatever_the_phone_speaks_every_viewer_sees_its_pictures(
    place: Place, node: str, accounts: Accounts, phone_kind: str
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    relay, tls = place.relay, {} if place.trust is None else {"ssl": place.trust}
    async with AsyncExitStack() as stack:

        async def run(role: str, encoding: str) -> NodeClient:
            client = await stack.enter_async_context(
                run_script(
                    node, relay, token, "peer.js", role, encoding, stream_id, trust=place.authority
                )
            )
            await client.line("ready:")
            return client

        async def connect(encoding: str) -> Peer:
            return await stack.enter_async_context(
                login(relay, token, msgpack=encoding == "msgpack", **tls)
            )

        send: Callable[[bytes], Awaitable[None]]
        library, encoding = phone_kind.split()
        if library == "python":
            phone = await connect(encoding)
            await phone.register(stream_id)
            send = phone.send_frame
        else:
            script = await run("phone", encoding)

            async def send(picture: bytes) -> None:
                await script.write(base64.b64encode(picture).decode())

        viewers: list[Callable[[], Awaitable[Seen]]] = []
        for encoding in ("json", "msgpack"):
            peer = await connect(encoding)
            await peer.subscribe(stream_id, policy="lossless")
            viewers.append(partial(python_viewer, peer))
            client = await run("viewer", encoding)
            viewers.append(partial(node_viewer, client))
        for picture in PICTURES:
            await send(picture)
        expected = [
            (seq, hashlib.sha256(picture).hexdigest())
            for seq, picture in enumerate(PICTURES, start=1)
        ]
        for watch in viewers:
            assert await watch() == expected
