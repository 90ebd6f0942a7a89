"""Alerts, from a relay to servers that others run, well and badly."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from signal import SIGKILL
from typing import Any, NoReturn

import httpcore2
import pytest
import trio
import trustme
from attrs import define, evolve, field

from relay.alerts.targets.webhook_message import new_secret, sign
from relay.model.targets.alert_target import NewTarget
from relay.outgoing.webhook_client import Undelivered, open_webhook_client
from relay.postgres.database import open_database
from relay.postgres.tables.alert_targets import AlertTargetTable
from tests.dead_listener import open_dead_listener
from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import PATIENCE, RelayProcess, start_relay, until
from tests.integration.web_server import (
    Answer,
    Request,
    WebServer,
    flood,
    open_web_server,
    raw,
    says,
    silence,
)

LOOPBACK = ("--webhook-networks", "127.0.0.0/8")
MOVED = "Location: http://127.0.0.1:9/"


@define(eq=False)
class Receiver:
    """A server that checks signatures and notes what it has taken."""

    server: WebServer
    secret: str = ""
    webhook_id: str = ""
    taken: list[str] = field(factory=list)
    """The messages of alerts, each once."""
    _ids: set[str] = field(factory=set)

    def take(self, request: Request) -> None:
        headers, body = request.headers, request.body
        message_id, timestamp = headers["webhook-id"], int(headers["webhook-timestamp"])
        assert headers["webhook-signature"] == sign(self.secret, message_id, timestamp, body)
        assert headers["content-type"] == "application/json"
        if message_id not in self._ids:
            self._ids.add(message_id)
            self.taken.append(json.loads(body)["data"]["message"])


@asynccontextmanager
async def open_receiver(
    accounts: Accounts, *whose: str, answers: Callable[[int], Answer] = lambda _: says(b"")
) -> AsyncIterator[Receiver]:
    """One with a webhook for these options of `relay webhook add`; `answers` gives that to the
    request of a number, from 0."""

    async def answer(request: Request, stream: trio.abc.Stream) -> None:
        chosen = answers(len(server.requests) - 1)
        if getattr(chosen, "takes", True):
            receiver.take(request)
        await chosen(request, stream)

    async with open_web_server(answer) as server:
        receiver = Receiver(server)
        await add(accounts, receiver, *whose)
        yield receiver


async def add(accounts: Accounts, receiver: Receiver, *whose: str) -> None:
    url = f"{receiver.server.url}/alerts?key=s3same"
    receiver.secret = new_secret()
    new = NewTarget(url, receiver.secret)
    if whose[0] == "--stream":
        new = evolve(new, stream_id=whose[1])
    else:
        new = evolve(new, owner_id=whose[1])
    async with open_database(accounts.url) as database:
        webhook_id = await AlertTargetTable(database).add(new)
    receiver.webhook_id = webhook_id


async def command(accounts: Accounts, *arguments: str, code: int = 0) -> str:
    call = partial(call_relay, "webhook", *arguments, database_url=accounts.url)
    ended, out, err = await trio.to_thread.run_sync(call)
    assert ended == code, err
    return out if code == 0 else err


def refusing(answer: Answer) -> Answer:
    """An answer by which nothing is taken."""

    async def refuse(request: Request, stream: trio.abc.Stream) -> None:
        await answer(request, stream)

    refuse.takes = False  # type: ignore[attr-defined]
    return refuse


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*LOOPBACK, database_url=database_url) as relay:
        yield relay


@pytest.fixture
def stream_id(accounts: Accounts) -> str:
    stream_id = new_stream_id()
    claim = "insert into relay.streams (stream_id, owner_id) values (%s, %s)"
    accounts.execute(claim, stream_id, f"owner of {stream_id}")
    return stream_id


def raise_alert(accounts: Accounts, stream_id: str, message: str) -> None:
    accounts.execute("select relay.raise_alert(%s, %s)", stream_id, message)


def hurry(accounts: Accounts) -> None:
    """Do not wait for the next attempt, or for the lease of a relay that was killed."""
    accounts.execute("update relay.webhooks set try_again_at = now() where failures > 0")
    accounts.execute("notify relay_alerts, 'webhooks'")


async def test_alerts_of_a_stream_and_of_an_owner_are_posted_in_order(
    relay: RelayProcess, accounts: Accounts, stream_id: str
) -> None:
    accounts.session(f"owner of {stream_id}")
    raise_alert(accounts, stream_id, "before there was a webhook")
    async with (
        open_receiver(accounts, "--stream", stream_id) as of_stream,
        open_receiver(accounts, "--owner", f"owner of {stream_id}") as of_owner,
        open_receiver(accounts, "--stream", "another") as of_another,
    ):
        messages = [str(number) for number in range(25)]
        for message in messages:
            raise_alert(accounts, stream_id, message)
        await until(lambda: of_stream.taken == messages and of_owner.taken == messages)
        assert of_another.taken == []
        [first, *_] = of_stream.server.requests
        assert first.line == "POST /alerts?key=s3same HTTP/1.1"
        assert first.headers["host"] == of_stream.server.url.removeprefix("http://")
        for secret in (of_stream.secret, of_owner.secret, "s3same"):
            assert secret not in relay.log


BAD: dict[str, tuple[Answer, str]] = {
    "an error": (says(b"no", "500 Internal Server Error"), "status 500"),
    "a refusal": (says(b"no", "403 Forbidden"), "status 403"),
    "a redirect": (says(b"", "302 Found", MOVED), "status 302"),
    "a redirect that keeps the method": (says(b"", "308 Permanent Redirect", MOVED), "status 308"),
    "garbage": (raw(b"\x00\xff" * 1000), "RemoteProtocolError"),
    "a head without end": (raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000), "RemoteProtocolE"),
    "patience without end": (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000), "ReadError"),
    "nothing": (raw(), "RemoteProtocolError"),
}


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD)
async def test_what_was_not_taken_is_posted_again(
    relay: RelayProcess, accounts: Accounts, stream_id: str, bad: Answer, why: str
) -> None:
    good = False

    def answers(_number: int) -> Answer:
        return says(b"") if good else refusing(bad)

    async with open_receiver(accounts, "--stream", stream_id, answers=answers) as receiver:
        raise_alert(accounts, stream_id, "first")
        raise_alert(accounts, stream_id, "second")
        error = "select last_error from relay.webhooks where webhook_id = %s"

        def has_failed() -> bool:
            return why in str(accounts.execute(error, receiver.webhook_id)[0][0])

        await until(has_failed)
        assert receiver.taken == []
        good = True
        hurry(accounts)
        await until(lambda: receiver.taken == ["first", "second"])
        assert accounts.execute(error, receiver.webhook_id) == [(None,)]


@pytest.mark.parametrize("answer", [flood, says(b"x" * 1_000_000)], ids=["endless", "large"])
async def test_of_a_huge_answer_only_the_status_counts(
    relay: RelayProcess, accounts: Accounts, stream_id: str, answer: Answer
) -> None:
    async with open_receiver(accounts, "--stream", stream_id, answers=lambda _: answer) as receiver:
        raise_alert(accounts, stream_id, "first")
        raise_alert(accounts, stream_id, "second")
        await until(lambda: receiver.taken == ["first", "second"])


async def test_one_that_hangs_holds_up_no_other(
    relay: RelayProcess, accounts: Accounts, stream_id: str
) -> None:
    async with (
        open_receiver(
            accounts, "--stream", stream_id, answers=lambda _: refusing(silence)
        ) as hanging,
        open_receiver(accounts, "--stream", stream_id) as other,
    ):
        for message in ("first", "second", "third"):
            raise_alert(accounts, stream_id, message)
        await until(lambda: other.taken == ["first", "second", "third"])
        assert hanging.taken == []
        assert len(hanging.server.requests) == 1


async def test_one_that_was_given_up_is_shown_and_goes_on_after_a_test(
    relay: RelayProcess, accounts: Accounts, stream_id: str
) -> None:
    gone = True

    def answers(_number: int) -> Answer:
        return refusing(says(b"", "410 Gone")) if gone else says(b"")

    async with open_receiver(accounts, "--stream", stream_id, answers=answers) as receiver:
        raise_alert(accounts, stream_id, "first")
        raise_alert(accounts, stream_id, "second")
        await relay.until_logged(f"webhook={receiver.webhook_id}")
        assert "webhook given up" in relay.log
        shown = await command(accounts, "list")
        (line,) = [each for each in shown.splitlines() if receiver.webhook_id in each]
        assert f"stream={stream_id}" in line
        assert "given up" in line
        assert "waiting=2" in line
        assert "status 410" in line
        assert receiver.secret not in shown
        refused = await command(accounts, "test", receiver.webhook_id, *LOOPBACK, code=2)
        assert "status 410" in refused
        gone = False
        said = await command(accounts, "test", receiver.webhook_id, *LOOPBACK)
        assert "deliveries resume" in said
        raise_alert(accounts, stream_id, "third")
        await until(lambda: receiver.taken[1:] == ["first", "second", "third"])
        assert "removed" in await command(accounts, "remove", receiver.webhook_id)
        raise_alert(accounts, stream_id, "fourth")
        left = "select from relay.webhooks where webhook_id = %s"
        assert accounts.execute(left, receiver.webhook_id) == []
        kinds = "select what, reason from relay.audit where what = 'webhook' and reason like %s"
        rows = accounts.execute(kinds, f"%{receiver.webhook_id}")
        assert [reason.split()[0] for _, reason in rows] == ["made", "removed"]


async def test_a_webhook_that_was_added_by_command_works(
    relay: RelayProcess, accounts: Accounts, stream_id: str
) -> None:
    user_id = f"owner of {stream_id}"
    accounts.session(user_id)
    async with open_web_server(says(b"")) as server:
        out = await command(accounts, "add", server.url, "--owner", user_id, *LOOPBACK)
        webhook_id, secret = out.split()
        receiver = Receiver(server, secret, webhook_id)
        raise_alert(accounts, stream_id, "first")
        await until(lambda: len(server.requests) == 1)
        receiver.take(server.requests[0])
        assert receiver.taken == ["first"]


async def test_without_the_setting_nothing_on_this_machine_is_called(
    postgres_url: str,
) -> None:
    accounts, stream_id = Accounts(postgres_url), "porch"
    accounts.execute("insert into relay.streams (stream_id, owner_id) values ('porch', 'ann')")
    async with open_receiver(accounts, "--stream", stream_id) as receiver:
        # https, to a name that leads here, is no way round.
        accounts.execute(
            "insert into relay.webhooks (webhook_id, url, secret, stream_id, position)"
            " values ('wh_tls', %s, 'whsec_AAAA', 'porch', 0)",
            f"https://localhost:{receiver.server.port}/",
        )
        with start_relay(database_url=postgres_url) as relay:
            raise_alert(accounts, stream_id, "first")
            await relay.until_logged(f"webhook={receiver.webhook_id}")
            await relay.until_logged("webhook=wh_tls")
            errors = accounts.execute("select distinct last_error from relay.webhooks")
            assert errors == [("relay may not call its address: it is not in webhook_networks",)]
            assert receiver.server.requests == []


async def test_a_relay_that_is_killed_in_the_middle_loses_none(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    accounts.execute("insert into relay.streams (stream_id, owner_id) values ('porch', 'ann')")
    messages = [str(number) for number in range(12)]
    doomed: list[RelayProcess] = []

    def answers(number: int) -> Answer:
        async def kill(request: Request, stream: trio.abc.Stream) -> None:
            doomed.pop().signal(SIGKILL)  # when it has been taken, and not been answered
            await stream.receive_some()

        return kill if number in {3, 7} else says(b"")

    async with open_receiver(accounts, "--stream", "porch", answers=answers) as receiver:
        for message in messages:
            raise_alert(accounts, "porch", message)
        for _ in range(2):
            with start_relay(*LOOPBACK, database_url=postgres_url) as relay:
                doomed.append(relay)
                await relay.ended()
            accounts.execute("update relay.webhooks set leased_until = now()")
            accounts.execute("notify relay_alerts, 'webhooks'")
        with start_relay(*LOOPBACK, database_url=postgres_url):
            await until(lambda: receiver.taken == messages)
        # Those that were under way came twice, with the same id.
        assert len(receiver.server.requests) == len(messages) + 2


async def test_a_name_is_judged_by_where_it_leads_at_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS that answers with a public address first and with a private one later, or with both."""
    answers: list[list[str]] = []

    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> list[Any]:
        if host != "rebinding.example.org":
            return real(host, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in answers.pop(0)]

    async with open_web_server(says(b"")) as server:
        url = f"http://rebinding.example.org:{server.port}/"
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with open_webhook_client(["127.0.0.1/32"]) as webhook_client:
            with trio.fail_after(PATIENCE):
                answers += [["127.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["10.0.0.1"], []]
                for _ in range(2):
                    await webhook_client.post(url, b"{}", {})
                for _ in range(2):
                    with pytest.raises(Undelivered, match="may not call its address"):
                        await webhook_client.post(url, b"{}", {})
    assert len(server.requests) == 2


@pytest.mark.parametrize("count", [1, 3])
async def test_an_address_that_does_not_answer_does_not_keep_the_next_from_it(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Of the addresses that passed the check; the others are not tried, however fast they are."""
    real = socket.getaddrinfo
    dead = [f"127.0.0.{2 + number}" for number in range(count)]

    def getaddrinfo(host: str, *args: Any, **options: Any) -> list[Any]:
        if host != "app.example.org":
            return real(host, *args, **options)
        ips = ["127.0.0.99", *dead, "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ips]

    async with open_web_server(says(b"")) as server:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with ExitStack() as listeners:
            for ip in dead:
                listeners.enter_context(open_dead_listener(ip, server.port))
            forbidden = listeners.enter_context(socket.socket())
            forbidden.bind(("127.0.0.99", server.port))
            forbidden.listen()
            forbidden.setblocking(False)
            with trio.fail_after(PATIENCE):
                async with open_webhook_client(["127.0.0.0/28"]) as webhook_client:
                    await webhook_client.post(f"http://app.example.org:{server.port}/", b"{}", {})
            with pytest.raises(BlockingIOError):
                forbidden.accept()
    assert len(server.requests) == 1


async def test_when_no_address_answers_the_deadline_of_the_caller_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.getaddrinfo
    with open_dead_listener("127.0.0.2") as (ip, port):

        def getaddrinfo(host: str, *args: Any, **options: Any) -> list[Any]:
            if host != "app.example.org":
                return real(host, *args, **options)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0))] * 100

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with open_webhook_client(["127.0.0.0/28"]) as webhook_client:
            with trio.move_on_after(0.5) as waiting:
                await webhook_client.post(f"http://app.example.org:{port}/", b"{}", {})
    assert waiting.cancelled_caught


async def test_over_tls_the_receiver_has_to_be_who_it_says_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with open_web_server(says(b""), tls=context) as server:
        url = f"https://localhost:{server.port}/"
        async with open_webhook_client(["127.0.0.1/32"]) as webhook_client:
            with pytest.raises(Undelivered, match="ConnectError"):
                await webhook_client.post(url, b"{}", {})
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        async with open_webhook_client(["127.0.0.1/32"]) as webhook_client:
            await webhook_client.post(url, b"{}", {})
            with pytest.raises(Undelivered, match="ConnectError"):
                await webhook_client.post(url.replace("localhost", "127.0.0.1"), b"{}", {})
    assert [request.body for request in server.requests] == [b"{}"]


async def test_the_scheme_may_be_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `relay webhook add` takes is posted to; over https that is the public internet."""
    looked_up: list[str] = []

    def getaddrinfo(host: str, *_args: Any, **_options: Any) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 0))]

    async def refuse(*_args: Any, **_options: Any) -> NoReturn:
        raise httpcore2.ConnectError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(httpcore2.TrioBackend, "connect_tcp", refuse)
    async with open_webhook_client([]) as webhook_client:
        with pytest.raises(Undelivered, match="ConnectError"):
            await webhook_client.post("HTTPS://Example.org/", b"{}", {})
    assert looked_up == ["example.org"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("add", "https://x"), "give either --stream"),
        (("add", "https://x", "--stream", "a", "--owner", "b"), "give either --stream"),
        (("add", "http://x", "--stream", "a"), "must begin with https"),
        (("add", "ftp://x", "--stream", "a"), "must begin with https"),
        (("add", "https://x", "--stream", "a b"), "is not a stream id"),
        (("add", "https://x", "--owner", "nobody@example.org"), "nobody@example.org"),
        (("test", "wh_0"), "there is no webhook"),
        (("remove", "wh_0"), "there is no webhook"),
    ],
)
async def test_a_command_says_what_is_wrong(
    accounts: Accounts, arguments: tuple[str, ...], why: str
) -> None:
    assert why in await command(accounts, *arguments, code=2)
