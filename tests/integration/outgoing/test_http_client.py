"""The HTTP client against real servers."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from relay.outgoing.http_client import HttpClient, RequestFailed, open_http_client
from tests.dead_listener import named, open_dead_listener
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
async def http_client() -> AsyncIterator[HttpClient]:
    async with open_http_client() as http_client:
        yield http_client


async def trouble(http_client: HttpClient, url: str) -> str:
    with trio.fail_after(PATIENCE), pytest.raises(RequestFailed) as caught:
        await http_client.post_form(url, {"token": "5ecret"}, authorization=SECRET, max_bytes=MOST)
    assert "5ecret" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


async def test_an_answer_is_its_body(http_client: HttpClient) -> None:
    async with open_web_server(says(b"x" * MOST)) as server:
        assert await http_client.get(f"{server.url}/keys", max_bytes=MOST) == b"x" * MOST
        assert await http_client.post_form(
            f"{server.url}/ask", {"token": "a b&c=é"}, authorization=SECRET, max_bytes=MOST
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
async def test_a_rude_answer_is_none(http_client: HttpClient, answer: Answer, why: str) -> None:
    async with open_web_server(answer) as server:
        assert why in await trouble(http_client, server.url)
        assert len(server.requests) == 1
        server.answer = says(b"fine")
        assert await http_client.get(server.url, max_bytes=MOST) == b"fine"


@pytest.mark.parametrize("answer", [silence, drip])
async def test_a_slow_server_is_left_when_the_caller_s_time_is_up(
    http_client: HttpClient, answer: Answer
) -> None:
    async with open_web_server(answer) as server:
        for _ in range(3):
            with trio.move_on_after(0.3) as limit:
                await http_client.get(server.url, max_bytes=MOST)
            assert limit.cancelled_caught
        server.answer = says(b"fine")
        assert await http_client.get(server.url, max_bytes=MOST) == b"fine"


async def test_a_server_that_is_away_can_come_back(http_client: HttpClient) -> None:
    async with open_web_server(says(b"fine")) as server:
        assert await http_client.get(server.url, max_bytes=MOST) == b"fine"
        server.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert await trouble(http_client, server.url) == "ConnectError"
        await server.start()
        assert await http_client.get(server.url, max_bytes=MOST) == b"fine"


async def test_cookies_are_not_kept(http_client: HttpClient) -> None:
    async with open_web_server(says(b"", "200 OK", "Set-Cookie: a=b; Path=/")) as server:
        for _ in range(2):
            await http_client.get(server.url, max_bytes=MOST)
    assert all("cookie" not in request.headers for request in server.requests)


@pytest.mark.parametrize(
    ("cookie", "removes"),
    [
        ("better-auth.session_token=; Max-Age=0; Path=/", True),
        ("better-auth.session_token=;path=/;max-age=0", True),
        ("AWSALB=x; Expires=Sun, 06 Dec 2099 00:00:00 GMT; Path=/", False),
        ("GCLB=Max-Age=0; Max-Age=01800", False),
    ],
)
async def test_removed_cookies_are_told_from_those_of_load_balancers(
    http_client: HttpClient, cookie: str, removes: bool
) -> None:
    async with open_web_server(says(b"null", "200 OK", f"Set-Cookie: {cookie}")) as server:
        response = await http_client.get_any(server.url, max_bytes=MOST)
    assert response.removes_cookie is removes


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with open_http_client() as http_client, open_web_server(says(b"fine")) as server:
        assert await http_client.get(server.url, max_bytes=MOST) == b"fine"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    http_client: HttpClient, authority: trustme.CA
) -> None:
    context = tls(authority.issue_cert("127.0.0.1"))
    async with open_web_server(says(b"fine"), tls=context) as server:
        assert await trouble(http_client, server.url) == "ConnectError"
        assert server.requests == []


async def test_authorities_can_be_named_and_the_host_must_be_right(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    async with open_http_client() as http_client:
        context = tls(authority.issue_cert("127.0.0.1"))
        async with open_web_server(says(b"fine"), tls=context) as server:
            assert await http_client.get(server.url, max_bytes=MOST) == b"fine"
        context = tls(authority.issue_cert("elsewhere.example.org"))
        async with open_web_server(says(b"fine"), tls=context) as server:
            assert await trouble(http_client, server.url) == "ConnectError"
            assert server.requests == []


async def test_an_address_that_does_not_answer_does_not_keep_the_next_from_it(
    http_client: HttpClient,
) -> None:
    async with open_web_server(says(b"keys")) as server:
        with (
            open_dead_listener() as dead,
            named("issuer.example.org", [dead, ("127.0.0.1", server.port)]),
            trio.fail_after(PATIENCE),
        ):
            url = "http://issuer.example.org/keys"
            assert await http_client.get(url, max_bytes=MOST) == b"keys"


async def test_a_host_that_cannot_be_looked_up_is_a_failed_request(
    http_client: HttpClient,
) -> None:
    for host in ("a" * 64 + "é.example.org", "xn--\N{SNOWMAN}", "no-such-host.invalid"):
        with trio.fail_after(PATIENCE), pytest.raises(RequestFailed):
            await http_client.get(f"http://{host}/", max_bytes=MOST)
        with trio.fail_after(PATIENCE), pytest.raises(RequestFailed):
            await http_client.get_any(f"http://{host}/", max_bytes=MOST)
