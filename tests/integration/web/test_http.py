"""Plain HTTP on the one port: what it says, what it refuses, and what it does not wait for."""

from __future__ import annotations

import gzip
import io
import json
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from relay.audit.log import AuditLog
from relay.concurrency.supervisor import Supervisor
from relay.guard.client_address import ClientAddress
from relay.guard.guard import Guard, SessionLimits
from relay.hub.hub import Hub
from relay.logs.setup import configure_logging
from relay.metrics import Metrics
from relay.transport.link import SocketLink
from relay.transport.stream import FrameStream
from relay.web.api import Api
from relay.web.app import make_app
from relay.web.assets import CLIENT_FILES, FILES
from relay.web.http import HttpServer
from relay.web.operate import OperateApi
from relay.web.reports import Reports
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id, open_peer
from tests.integration.raw import REQUEST, RawClient, open_raw
from tests.integration.relay_process import PROJECT, RelayProcess, start_relay, until

NO_ONE: Any = None
NO_METRICS = Metrics()
NO_API = Api(
    *(NO_ONE, NO_ONE, NO_ONE, NO_ONE, NO_ONE, SessionLimits()),
    *(AuditLog(None), NO_METRICS, NO_ONE),
)
NO_OPERATORS = OperateApi(NO_API, NO_ONE, NO_ONE, NO_ONE, AuditLog(None), NO_ONE)
GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n"


async def ask(relay: RelayProcess, request: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the answer, after which the relay has closed the connection."""
    async with open_raw(relay) as client:
        await client.send(request)
        head, _, body = (await client.read_to_end()).partition(b"\r\n\r\n")
        return head, body


def status(head: bytes) -> int:
    version, code = head.split(b" ")[:2]
    assert version == b"HTTP/1.1"
    return int(code)


# -- what it says


async def test_health_ready_and_stats_are_json(relay: RelayProcess) -> None:
    health, ready, stats = [await relay.get(path) for path in ("/health", "/ready", "/stats")]
    assert {answer.status for answer in (health, ready, stats)} == {200}
    assert health.json() == {"status": "ok"}
    assert (ready.json()["ready"], ready.json()["draining"]) == (True, False)
    assert ready.json()["database"] == "ok"
    services = ready.json()["services"]
    assert set(services) == {
        *(
            "alarms",
            "verification",
            "vouched-users",
            "alert-outbox",
            "stream-events",
            "mqtt-streams",
            "viewer-waker",
            "clips",
            "picture-retention",
            "session-table",
            "session-watch",
            "stream-owners",
            "operator",
            "alert-intake",
            "alert-retention",
            "alert-dispatch",
            "audit",
            "renditions",
        ),
    }
    assert set(services.values()) == {"running"}
    assert stats.json()["connections"] == 0
    assert {"verifications", "frames_accepted", "alerts_stored", "endings"} <= set(stats.json())


async def test_the_page_says_what_this_is(relay: RelayProcess) -> None:
    page = await relay.get("/")
    assert page.status == 200
    assert page.headers.get_content_type() == "text/html"
    assert b"Watch, broadcast and monitor the streams of this relay" in page.body
    assert b'href="health"' in page.body  # for those without JavaScript


@pytest.mark.parametrize("path", sorted(FILES))
async def test_files_of_the_page_are_strict_and_kept_as_long_as_they_are_the_same(
    relay: RelayProcess, path: str
) -> None:
    plain = await relay.get(path)
    assert plain.status == 200
    assert "unsafe" not in plain.headers["Content-Security-Policy"]
    assert plain.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert plain.headers["Access-Control-Allow-Origin"] == ("*" if path in CLIENT_FILES else None)

    packed = await relay.get(path, headers={"Accept-Encoding": "br, gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body

    etag = plain.headers["ETag"]
    again = await relay.get(path, headers={"If-None-Match": etag})
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", etag)
    assert (await relay.get(path, headers={"If-None-Match": '"another"'})).status == 200


def test_every_file_of_the_page_is_answered() -> None:
    web = PROJECT / "relay" / "web"
    files = {
        str(path.relative_to(web))
        for folder in ("page", "client")
        for path in (web / folder).rglob("*")
        # What is for those who take the client as a package is not served.
        if path.is_file() and path.name not in {"package.json", "README.md"}
    }
    assert set(FILES.values()) == files


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/stats"])
async def test_head_is_get_without_a_body(relay: RelayProcess, path: str) -> None:
    answer = await relay.get(path, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/health/more", "//", "/../etc/passwd"])
async def test_unknown_paths_are_not_found(relay: RelayProcess, path: str) -> None:
    answer = await relay.get(path)
    assert answer.status == 404
    assert set(answer.json()["error"]) == {"code", "message"}


async def test_another_method_is_not_allowed(relay: RelayProcess) -> None:
    answer = await relay.get("/health", method="POST")
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert set(answer.json()["error"]) == {"code", "message"}


async def test_a_bug_in_the_application_is_a_500_and_logged() -> None:
    async def check_database() -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    logged = io.StringIO()
    configure_logging(stream=logged)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await trio.open_tcp_stream(*listener.getsockname())
        stream = FrameStream(SocketLink(listener.accept()[0]), 1.0)
    async with client, stream:
        await client.send_all(b"GET /ready HTTP/1.1\r\nHost: relay\r\n\r\n")
        await stream.read_head()
        reports = Reports(
            NO_METRICS,
            Hub(NO_METRICS, 0.0),
            Supervisor({}),
            Guard(),
            "default",
            check_database=check_database,
            is_draining=lambda: False,
        )
        address = ClientAddress.of_peer(stream.link.peer)
        await HttpServer(make_app(reports, NO_ONE, NO_API, NO_OPERATORS)).serve(stream, address)
        head, _, body = bytes(await client.receive_some()).partition(b"\r\n\r\n")
    assert status(head) == 500
    assert json.loads(body)["error"]["code"] == "INTERNAL_ERROR"
    assert b"a bug" not in body
    assert "RuntimeError: a bug" in logged.getvalue()


# -- what it refuses


@pytest.mark.parametrize("name", ["token", "access_token", "session_token"])
async def test_a_token_in_the_url_is_refused_and_not_logged(relay: RelayProcess, name: str) -> None:
    url = f"/health?a=b&{name}=hunter2"
    answer = await relay.get(url)
    assert answer.status == 400
    assert "first message" in answer.json()["error"]["message"]
    upgrade = REQUEST.replace(b"/streams/register", f"/streams/register?{name}=hunter2".encode())
    head, body = await ask(relay, upgrade)
    assert status(head) == 400
    assert b"first message" in body
    assert "hunter2" not in relay.log


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x00\xff\x13 garbage\r\n\r\n", id="bytes"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01" + bytes(500) + b"\r\n\r\n", id="TLS"),
        pytest.param(b"\r\n\r\n", id="nothing"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(
            b"GET /health HTTP/1.1\r\nHost: relay\r\nContent-Length: x\r\n\r\n", id="size"
        ),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(
            b"GET /health HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade, HTTP2-Settings\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
            id="HTTP/2 upgrade",
        ),
        pytest.param(REQUEST.replace(b"Sec-WebSocket-Key", b"X-Key"), id="no key"),
        pytest.param(REQUEST.replace(b"Connection: Upgrade\r\n", b""), id="half an upgrade"),
        pytest.param(REQUEST.replace(b"GET", b"POST"), id="upgrade by POST"),
    ],
)
async def test_garbage_is_a_bad_request(relay: RelayProcess, garbage: bytes) -> None:
    head, _ = await ask(relay, garbage)
    assert status(head) in {400, 505}


async def test_an_endless_head_is_not_read(relay: RelayProcess) -> None:
    head, _ = await ask(relay, b"GET /health HTTP/1.1\r\nHost: relay\r\n" + b"X: y\r\n" * 10_000)
    assert b"200" not in head


async def test_an_upgrade_elsewhere_is_not_found(relay: RelayProcess) -> None:
    for path in (b"/", b"/health", b"/streams", b"/streams/register/"):
        head, _ = await ask(relay, REQUEST.replace(b"/streams/register", path))
        assert status(head) == 404


async def test_another_version_of_the_protocol_is_told_the_known_one(relay: RelayProcess) -> None:
    head, _ = await ask(relay, REQUEST.replace(b"Version: 13", b"Version: 8"))
    assert status(head) == 426
    assert b"\r\nSec-WebSocket-Version: 13" in head


async def test_one_connection_is_one_request(relay: RelayProcess) -> None:
    head, body = await ask(relay, GET_HEALTH)
    assert b"\r\nconnection: close" in head.lower()
    assert json.loads(body) == {"status": "ok"}
    # What comes behind a request is not looked at, an upgrade least of all.
    head, body = await ask(relay, GET_HEALTH + REQUEST)
    assert (head + body).count(b"HTTP/1.1 ") <= 1
    assert b"101" not in head


# -- what it does not wait for


async def test_slow_and_half_requests_end_at_the_deadline(database_url: str) -> None:
    async def trickle(client: RawClient) -> None:
        try:
            while True:
                await client.stream.send_all(b"X")
                await trio.sleep(0.05)
        except trio.BrokenResourceError:
            pass

    with start_relay("--auth-timeout", "1", database_url=database_url) as relay:
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            for begin in (b"", b"GET", b"GET /health HTTP/1.1\r\nHost: relay\r\n", REQUEST[:-2]):
                client = await stack.enter_async_context(open_raw(relay))
                await client.send(begin)
                nursery.start_soon(client.read_to_end)
            client = await stack.enter_async_context(open_raw(relay))
            nursery.start_soon(trickle, client)
            nursery.start_soon(client.read_to_end)
        assert (await relay.stats())["endings"]["handshake_timeout"] == 5


async def test_a_body_that_never_comes_is_not_waited_for(relay: RelayProcess) -> None:
    head, _ = await ask(
        relay, b"POST /health HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\n\r\n"
    )
    assert status(head) == 405


# -- while Postgres is away


async def test_not_ready_without_postgres_and_ready_again_by_itself(
    relay: RelayProcess, accounts: Accounts, away: Callable[[], Any]
) -> None:
    token, stream_id = accounts.session(), new_stream_id()

    async def is_ready() -> bool:
        return (await relay.get("/ready")).status == 200

    async with login(relay, token) as phone, login(relay, token) as viewer:
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        async with away():
            answer = await relay.get("/ready")
            assert answer.status == 503
            assert (answer.json()["ready"], answer.json()["database"]) == (False, "unavailable")
            assert (await relay.get("/health")).status == 200

            async with open_peer(relay) as late:
                await late.send({"type": "auth", "token": token})
                (error,), close = await late.hear_end()
                assert error["code"] == "AUTH_UNAVAILABLE"
                assert error["retryAfter"] > 0
                assert close == (4013, "try again later")
            renewal = await phone.authenticate(token)
            assert renewal["code"] == "AUTH_UNAVAILABLE"
            refused = await phone.ask({"type": "register", "streamId": new_stream_id()})
            assert refused["code"] == "STORE_UNAVAILABLE"

            await phone.send_frame(b"live")
            assert (await viewer.receive_type("video-frame"))["streamId"] == stream_id

        await until(is_ready)
        async with login(relay, token):
            pass
        await phone.send_frame(b"and on")
        assert (await viewer.receive_type("video-frame"))["seq"] == 2
