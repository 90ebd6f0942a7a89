"""TLS as clients and operators meet it: a relay process, and certificates of our own making."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import signal
import socket
import ssl
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from relay.client import Frame, connect
from relay.load.actors.network.shaped_link import ShapedLink
from relay.load.scenario.groups import Network
from tests.integration.accounts import Accounts
from tests.integration.certificate_files import Files
from tests.integration.peers import login, new_stream_id, open_peer
from tests.integration.relay_process import (
    PATIENCE,
    RelayProcess,
    run_relay,
    start_relay,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def relay(files: Files, database_url: str) -> Iterator[RelayProcess]:
    arguments = [*files.arguments, "--auth-timeout", "3"]
    with start_relay(*arguments, database_url=database_url) as relay:
        yield relay


@pytest.fixture
def own_files(tmp_path: Path) -> Files:
    """A certificate that the test may replace."""
    return Files(tmp_path)


@pytest.fixture
def own_relay(own_files: Files, database_url: str) -> Iterator[RelayProcess]:
    """A relay that the test may signal."""
    with start_relay(*own_files.arguments, database_url=database_url) as relay:
        yield relay


def certificate_of(relay: RelayProcess, trust: ssl.SSLContext) -> bytes | None:
    """What a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", relay.port), timeout=PATIENCE) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True)


async def test_a_stream_travels_over_tls(
    relay: RelayProcess, files: Files, accounts: Accounts
) -> None:
    assert relay.url.startswith("https://")
    token, stream_id, chance = accounts.session("ann"), new_stream_id(), random.Random(3)
    async with (
        login(relay, token, ssl=files.trust()) as phone,
        login(relay, token, ssl=files.trust()) as viewer,
    ):
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        for size in (1, 1000, 16_384, 70_000, 2 << 20):
            text = base64.b64encode(chance.randbytes(size)).decode()
            await phone.send({"type": "video-frame", "data": text})
            frame = await viewer.receive_type("video-frame")
            assert hashlib.sha256(frame["data"].encode()).digest() == (
                hashlib.sha256(text.encode()).digest()
            )


async def test_pages_are_served_over_tls(relay: RelayProcess, files: Files) -> None:
    def get() -> int:
        with urllib.request.urlopen(f"{relay.url}/health", context=files.trust()) as answer:
            return int(answer.status)

    assert await trio.to_thread.run_sync(get) == 200


async def test_browsers_are_told_to_insist_on_tls(relay: RelayProcess) -> None:
    for path, status in (("/health", 200), ("/", 200), ("/nothing", 404), ("/alerts", 401)):
        answer = await relay.get(path)
        assert answer.status == status
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize("dev_tls", [True, False])
async def test_they_are_not_told_without_tls_or_by_a_relay_for_development(
    database_url: str, tmp_path: Path, dev_tls: bool
) -> None:
    flags = ["--dev-tls", "--data-dir", str(tmp_path)] if dev_tls else []
    with start_relay(*flags, database_url=database_url) as relay:
        answer = await relay.get("/health")
        assert relay.url.startswith("https" if dev_tls else "http:")
        assert "Strict-Transport-Security" not in answer.headers


async def test_browsers_can_be_made_to_forget_it(database_url: str, files: Files) -> None:
    arguments = [*files.arguments, "--hsts-max-age", "0"]
    with start_relay(*arguments, database_url=database_url) as relay:
        answer = await relay.get("/health")
        assert answer.headers["Strict-Transport-Security"] == "max-age=0"


async def test_http_1_1_is_all_that_is_offered(relay: RelayProcess, files: Files) -> None:
    context = files.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", relay.port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        assert encrypted.selected_alpn_protocol() == "http/1.1"


async def test_a_handshake_that_is_not_done_at_the_auth_deadline_ends_then(
    relay: RelayProcess,
) -> None:
    """Whether nothing of it came, half, or byte after byte; all three wait at the same time."""

    async def send(data: bytes) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        start = trio.current_time()
        if data:
            await stream.send_all(data)
        assert await stream.receive_some() == b""
        assert trio.current_time() - start > 2
        await stream.aclose()

    async def drip() -> None:
        hello = b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03" + bytes(100)
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
            for byte in hello:
                await stream.send_all(bytes((byte,)))
                await trio.sleep(0.1)
        assert 2 < trio.current_time() - start < 8
        await stream.aclose()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, b"")
            nursery.start_soon(send, b"\x16\x03\x01\x00\xf8\x01\x00")
            nursery.start_soon(drip)


async def test_silence_after_the_handshake_is_told(relay: RelayProcess, files: Files) -> None:
    async with open_peer(relay, ssl=files.trust()) as peer:
        heard, close = await peer.hear_end()
        assert heard[-1]["code"] == "AUTH_TIMEOUT"
        assert close == (4004, "authentication timeout")


async def test_plain_text_on_the_tls_port_harms_nobody(
    relay: RelayProcess, files: Files, accounts: Accounts
) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
    await stream.send_all(b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n")
    with trio.fail_after(PATIENCE):
        while True:
            try:
                if not await stream.receive_some():
                    break
            except trio.BrokenResourceError:
                break
    await stream.aclose()
    async with login(relay, accounts.session("ann"), ssl=files.trust()):
        pass


async def test_hangup_loads_a_new_certificate_and_old_connections_go_on(
    own_relay: RelayProcess, own_files: Files, accounts: Accounts
) -> None:
    before = certificate_of(own_relay, own_files.trust())
    async with login(own_relay, accounts.session("ann"), ssl=own_files.trust()) as peer:
        own_files.renew()
        own_relay.signal(signal.SIGHUP)
        await own_relay.until_logged("certificate reloaded")
        assert certificate_of(own_relay, own_files.trust()) != before
        assert (await peer.ask({"type": "register"}))["code"] == "REGISTERED"


async def test_a_broken_new_certificate_leaves_the_old_one(
    own_relay: RelayProcess, own_files: Files
) -> None:
    before = certificate_of(own_relay, own_files.trust())
    own_files.chain.write_text("no certificate")
    own_relay.signal(signal.SIGHUP)
    await own_relay.until_logged("certificate not reloaded")
    assert certificate_of(own_relay, own_files.trust()) == before


async def test_a_directory_in_the_place_of_the_new_certificate_leaves_the_old_one(
    own_relay: RelayProcess, own_files: Files
) -> None:
    before = certificate_of(own_relay, own_files.trust())
    own_files.chain.unlink()
    own_files.chain.mkdir()
    own_relay.signal(signal.SIGHUP)
    await own_relay.until_logged("certificate not reloaded")
    assert certificate_of(own_relay, own_files.trust()) == before


async def test_a_restart_is_told_over_tls(
    own_relay: RelayProcess, own_files: Files, accounts: Accounts
) -> None:
    async with login(own_relay, accounts.session("ann"), ssl=own_files.trust()) as peer:
        own_relay.signal(signal.SIGTERM)
        heard, close = await peer.hear_end()
        assert heard[-1]["code"] == "SERVER_RESTARTING"
        assert close[0] == 4012
        assert await own_relay.ended() == 0


async def test_a_certificate_for_development_is_made_once_and_trusted(
    tmp_path: Path, database_url: str, accounts: Accounts
) -> None:
    arguments = ["--dev-tls", "--data-dir", str(tmp_path)]
    seen = []
    for _ in range(2):
        with start_relay(*arguments, database_url=database_url) as relay:
            authority = tmp_path / "dev-tls" / "authority.pem"
            await relay.until_logged(str(authority))
            trust = ssl.create_default_context(cafile=str(authority))
            async with login(relay, accounts.session("ann"), ssl=trust):
                seen.append(certificate_of(relay, trust))
    assert seen[0] == seen[1]
    assert stat.S_IMODE((tmp_path / "dev-tls" / "key.pem").stat().st_mode) == 0o600


def test_a_certificate_that_is_no_good_is_explained_in_a_line(tmp_path: Path) -> None:
    good, other = Files(tmp_path), tmp_path / "other"
    other.mkdir()
    stranger = Files(other)
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    for chain, key, words in (
        (good.chain, tmp_path / "missing.pem", "missing.pem cannot be read"),
        (good.chain, broken, "no certificate and its key"),
        (good.chain, stranger.key, "no certificate and its key"),
        (good.chain, None, "tls_certificate and tls_key must be set together"),
    ):
        arguments = ["--tls-certificate", str(chain)]
        arguments += [] if key is None else ["--tls-key", str(key)]
        done = run_relay("serve", "--bind", "127.0.0.1:0", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


async def test_behind_a_deep_queue_frames_are_as_fresh_as_the_link_over_tls(
    relay: RelayProcess, files: Files, accounts: Accounts
) -> None:
    thin = Network(bandwidth=2e6, queue=4 << 20, delay=0.02)
    frame, wire_seconds = bytes(50_000), 50_000 * 4 / 3 / 250_000
    token, stream_id, url = accounts.session(), new_stream_id(), relay.url.replace("http", "ws", 1)
    ages: list[float] = []
    below: list[trio.abc.Stream] = []
    async with trio.open_nursery() as carrying:

        def over_thin_link(stream: trio.abc.Stream) -> ShapedLink:
            below.append(stream)
            link = ShapedLink(stream, lambda _: (thin, math.inf), random.Random(1))
            for carry in (link.carry_in, link.carry_out, link.down.run, link.up.run):
                carrying.start_soon(carry)
            return link

        async def watch() -> None:
            async with connect(url, token, tls=files.trust(), wrap=over_thin_link) as viewer:
                await viewer.subscribe(stream_id, window=None)
                async for event in viewer:
                    if isinstance(event, Frame):
                        ages.append(trio.current_time() - event.timestamp)  # noqa: PERF401

        async with connect(url, token, tls=files.trust()) as phone, trio.open_nursery() as nursery:
            await phone.register(stream_id)
            nursery.start_soon(watch)
            for _ in range(90):
                await phone.send_frame(frame, timestamp=trio.current_time())
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(below[0])
        carrying.cancel_scope.cancel()
    assert len(ages) >= 8  # of about 20 that the link carries
    # Queued, the last would be 3 s old.
    assert min(ages[-3:]) < 2.5 * wire_seconds + 0.3
