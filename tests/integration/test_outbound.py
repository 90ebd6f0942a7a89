"""What relay asks of other servers, and what those make of it."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from relay.outbound import Outbound, Unanswered, open_outbound
from tests.integration.relay_process import PATIENCE
from tests.integration.web_server import (
    Answer,
    drip,
    flood,
    open_web_server,
    raw,
    says,
    silence,
)

MOST = 10_000
SECRET = "Basic cmVsYXk6NWVjcmV0"


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with open_outbound() as outbound:
        yield outbound


async def trouble(outbound: Outbound, url: str) -> str:
    with trio.fail_after(PATIENCE), pytest.raises(Unanswered) as caught:
        await outbound.post_form(url, {"token": "5ecret"}, authorization=SECRET, most=MOST)
    assert "5ecret" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


async def test_an_answer_is_its_body(outbound: Outbound) -> None:
    async with open_web_server(says(b"x" * MOST)) as server:
        assert await outbound.get(f"{server.url}/keys", most=MOST) == b"x" * MOST
        assert await outbound.post_form(
            f"{server.url}/ask", {"token": "a b&c=é"}, authorization=SECRET, most=MOST
        )
    get, post = server.requests
    assert get.line == "GET /keys HTTP/1.1"
    assert "authorization" not in get.headers
    assert post.line == "POST /ask HTTP/1.1"
    assert post.headers["content-type"] == "application/x-www-form-urlencoded"
    assert post.headers["authorization"] == SECRET
    assert post.form == {"token": "a b&c=é"}


MOVED = "Location: http://127.0.0.1:9/"

RUDE: dict[str, tuple[Answer, str]] = {
    "an error": (says(b"no", "500 Internal Server Error"), "status 500"),
    "a refusal": (says(b"no", "401 Unauthorized"), "status 401"),
    "a redirect": (says(b"", "302 Found", MOVED), "status 302"),
    "a redirect that keeps the method": (says(b"", "307 Temporary Redirect", MOVED), "status 307"),
    "nothing new": (says(b"", "204 No Content"), "status 204"),
    "too much": (says(b"x" * (MOST + 1)), "more than 10000 bytes"),
    "no end": (flood, "more than 10000 bytes"),
    "a bomb": (
        says(gzip.compress(b"x" * 10_000_000), "200 OK", "Content-Encoding: gzip"),
        "compressed",
    ),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "RemoteProtocolError"),
    "a head without end": (raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000), "RemoteProt"),
    "half an answer": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx"), "RemoteProtocolE"),
    "half a head": (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "RemoteProtocolError"),
    "no answer": (raw(), "RemoteProtocolError"),
    "a wrong length": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), "RemoteProtocolE"),
    "wrong chunks": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "RemoteProtocolError",
    ),
}


@pytest.mark.parametrize(("answer", "why"), RUDE.values(), ids=RUDE)
async def test_a_rude_answer_is_none(outbound: Outbound, answer: Answer, why: str) -> None:
    async with open_web_server(answer) as server:
        assert why in await trouble(outbound, server.url)
        assert len(server.requests) == 1
        server.answer = says(b"fine")
        assert await outbound.get(server.url, most=MOST) == b"fine"


@pytest.mark.parametrize("answer", [silence, drip])
async def test_a_slow_server_is_left_when_the_caller_s_time_is_up(
    outbound: Outbound, answer: Answer
) -> None:
    async with open_web_server(answer) as server:
        for _ in range(3):
            with trio.move_on_after(0.3) as limit:
                await outbound.get(server.url, most=MOST)
            assert limit.cancelled_caught
        server.answer = says(b"fine")
        assert await outbound.get(server.url, most=MOST) == b"fine"


async def test_a_server_that_is_away_can_come_back(outbound: Outbound) -> None:
    async with open_web_server(says(b"fine")) as server:
        assert await outbound.get(server.url, most=MOST) == b"fine"
        server.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert await trouble(outbound, server.url) == "ConnectError"
        await server.start()
        assert await outbound.get(server.url, most=MOST) == b"fine"


async def test_cookies_are_not_kept(outbound: Outbound) -> None:
    async with open_web_server(says(b"", "200 OK", "Set-Cookie: a=b; Path=/")) as server:
        for _ in range(2):
            await outbound.get(server.url, most=MOST)
    assert all("cookie" not in request.headers for request in server.requests)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with open_outbound() as outbound, open_web_server(says(b"fine")) as server:
        assert await outbound.get(server.url, most=MOST) == b"fine"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    outbound: Outbound, authority: trustme.CA
) -> None:
    context = tls(authority.issue_cert("127.0.0.1"))
    async with open_web_server(says(b"fine"), tls=context) as server:
        assert await trouble(outbound, server.url) == "ConnectError"
        assert server.requests == []


async def test_authorities_can_be_named_and_the_host_must_be_right(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    async with open_outbound() as outbound:
        context = tls(authority.issue_cert("127.0.0.1"))
        async with open_web_server(says(b"fine"), tls=context) as server:
            assert await outbound.get(server.url, most=MOST) == b"fine"
        context = tls(authority.issue_cert("elsewhere.example.org"))
        async with open_web_server(says(b"fine"), tls=context) as server:
            assert await trouble(outbound, server.url) == "ConnectError"
            assert server.requests == []
