"""`relay top` on a real terminal, beside a real relay and beside what only looks like one."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trustme

from relay.outgoing.http_client import open_http_client
from relay.top import run
from relay.top.answers import MAX_REPORT_BYTES, NotARelay
from relay.top.run import RelayUnavailable, TokenRefused, Top
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RELAY, RelayProcess, run_relay
from tests.integration.terminal import Terminal, on_terminal
from tests.integration.web_server import (
    Answer,
    Request,
    WebServer,
    drip,
    open_web_server,
    raw,
    says,
    silence,
)
from tests.unit.relay_answers import READY, STATS, STREAM

DISABLED = b"\0" if sys.platform == "linux" else b"\xff"
INTERVAL = ("--interval", "0.5")
BUSY = {"error": {"code": "AUTH_UNAVAILABLE", "message": "try again later"}}


@pytest.fixture(scope="module")
def operator(database_url: str) -> str:
    return Accounts(database_url).service("desk", operate=True)


@contextmanager
def top(url: str, token: str, *arguments: str, **options: object) -> Iterator[Terminal]:
    with on_terminal(
        [*RELAY, "top", url, *INTERVAL, *arguments],
        environment={"RELAY_TOKEN": token},
        **options,  # type: ignore[arg-type]
    ) as terminal:
        yield terminal


async def test_it_shows_a_relay_at_work_and_leaves_the_terminal_as_it_was(
    relay: RelayProcess, accounts: Accounts, operator: str
) -> None:
    stream_id, token = new_stream_id(), accounts.session()
    async with login(relay, token) as phone, login(relay, token) as viewer:
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        async with trio.open_nursery() as nursery:

            async def film() -> None:
                while True:
                    await phone.send_frame(b"picture")
                    await viewer.receive_type("video-frame")
                    await trio.sleep(0.02)

            nursery.start_soon(film)
            with top(relay.url, operator) as terminal:
                await terminal.until(f"relay at {relay.url}")
                await terminal.until("99% below")  # which takes a second look
                await terminal.until(stream_id)
                assert "ready" in terminal.text()
                assert "session-watch" in terminal.text() or "session watch" in terminal.text()
                assert not terminal.is_restored
                before = len(terminal.received)
                terminal.resize(60, 24)
                await terminal.until("q or Ctrl-C quits", since=before)
                before = len(terminal.received)  # that one may have been on its way before
                await terminal.until("q or Ctrl-C quits", since=before)
                assert max(map(len, terminal.text(before).splitlines())) <= 60
                terminal.type(b"xyz q")
                assert await terminal.end() == 0
                assert terminal.is_restored
            nursery.cancel_scope.cancel()


async def test_ctrl_c_leaves_the_terminal_as_it_was_and_ctrl_z_does_nothing(
    relay: RelayProcess, operator: str
) -> None:
    with top(relay.url, operator, "--interval", "60") as terminal:
        await terminal.until("subscriptions")
        # A key that is set to nothing stops nobody.
        assert terminal.attributes[6][termios.VSUSP] == DISABLED
        before = len(terminal.received)
        terminal.resize(90, 24)
        # Drawn at once: the next look is a minute away.
        await terminal.until("q or Ctrl-C quits", since=before)
        terminal.type(b"\x03")
        assert await terminal.end() == 0
        assert terminal.is_restored
        assert "Traceback" not in terminal.text()


async def test_a_signal_ends_it_where_there_is_no_terminal_for_keys(
    relay: RelayProcess, operator: str
) -> None:
    with on_terminal(
        [*RELAY, "top", relay.url, *INTERVAL],
        environment={"RELAY_TOKEN": operator},
        stdin=subprocess.DEVNULL,
    ) as terminal:
        await terminal.until("subscriptions")
        terminal.process.send_signal(signal.SIGTERM)
        assert await terminal.end() == 0
        assert terminal.is_restored


async def test_once_is_one_snapshot_as_it_is_where_nobody_looks(
    relay: RelayProcess, operator: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{operator}\n")
    done = await trio.to_thread.run_sync(run_relay, "top", relay.url, "--token-file", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for words in ("connections", "streams", "frames", "ages", "endings", "database ok"):
        assert words in done.stdout
    assert operator not in done.stdout


async def test_a_token_that_may_not_operate_ends_it_in_one_line(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session()
    with top(relay.url, token) as terminal:
        assert await terminal.end() == 2
        assert terminal.is_restored
        said = " ".join(terminal.text().split())
        assert "refuses the token: This needs a service token that may operate" in said
        assert token not in said
        assert "Traceback" not in said


async def look(url: str, token: str) -> Top:
    async with open_http_client() as http_client:
        seen = Top(url, token, http_client)
        await seen.refresh()
        return seen


async def test_a_token_that_is_none_is_refused_and_not_repeated(relay: RelayProcess) -> None:
    with pytest.raises(TokenRefused, match="refuses the token: Invalid or expired token") as caught:
        await look(relay.url, "5ecret-that-is-none")
    assert "5ecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (says(BUSY, "503 Service RelayUnavailable"), RelayUnavailable, "try again later"),
        (says(BUSY, "429 Too Many Requests"), RelayUnavailable, "try again later"),
        (says(b"", "503 Service RelayUnavailable"), NotARelay, "/figures answers 503"),
        (says(b"", "401 Unauthorized"), NotARelay, "/figures answers 401"),
        (says(b"", "302 Found", "Location: https://elsewhere.test/"), NotARelay, "answers 302"),
        (says(b""), NotARelay, "is not a relay"),
        (raw(b"SSH-2.0-other\r\n"), RelayUnavailable, "the connection broke off"),
        (raw(), RelayUnavailable, "the connection broke off"),
    ],
)
async def test_what_goes_wrong_is_told_apart(
    answer: Answer, error: type[Exception], words: str
) -> None:
    async with open_web_server(answer) as server:
        with pytest.raises(error, match=words):
            await look(server.url, "token")
        assert len(server.requests) == 1


async def test_an_answer_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SNAPSHOT_TIMEOUT", 0.2)
    for answer in (silence, drip):
        async with open_web_server(answer) as server:
            with pytest.raises(RelayUnavailable, match=r"no answer within 0\.2 s"):
                await look(server.url, "token")


async def test_a_certificate_that_is_not_trusted_is_said_to_be_one() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with open_web_server(says({}), tls=context) as server:
        with pytest.raises(RelayUnavailable, match="its certificate is not trusted: "):
            await look(server.url, "token")
    with pytest.raises(RelayUnavailable, match="nobody answers there"):
        await look("http://127.0.0.1:1", "token")


@pytest.fixture
def bodies() -> dict[str, bytes]:
    """What something that may be no relay answers, by path."""
    return {
        "/figures": json.dumps({"streams": [STREAM]}).encode(),
        "/stats": json.dumps(STATS).encode(),
        "/ready": json.dumps(READY).encode(),
    }


@pytest.fixture
async def impostor(bodies: dict[str, bytes]) -> AsyncIterator[WebServer]:
    async def answer(request: Request, client: trio.abc.Stream) -> None:
        await says(bodies[request.line.split()[1]])(request, client)

    async with open_web_server(answer) as server:
        yield server


async def test_while_the_relay_is_away_it_says_so_and_goes_on_asking(
    impostor: WebServer, operator: str
) -> None:
    with top(impostor.url, operator) as terminal:
        await terminal.until("subscriptions")
        impostor.stop()
        await terminal.until("nobody answers there; retrying")
        before = len(terminal.received)
        await impostor.start()
        await terminal.until("   ready", since=before)
        terminal.type(b"q")
        assert await terminal.end() == 0
    headers = [each.headers.get("authorization") for each in impostor.requests[:3]]
    assert headers == [f"Bearer {operator}", None, None]  # only where it is asked for


async def test_garbage_is_no_relay_and_touches_nothing(
    impostor: WebServer, bodies: dict[str, bytes], operator: str
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J"
    bodies["/figures"] = json.dumps({"streams": [{**STREAM, "streamId": hostile}]}).encode()
    with top(impostor.url, operator) as terminal:
        await terminal.until("\\x1b]0;owned\\x07\\x1b[2J")
        assert b"owned\x07" not in terminal.received
        bodies["/figures"] = b"<html>\x1b[31m"
        await terminal.until("the server at /figures is not a relay")
        bodies["/figures"] = b" " * (MAX_REPORT_BYTES + 1)
        await terminal.until("more than")
        terminal.type(b"q")
        assert await terminal.end() == 0
        assert terminal.is_restored
