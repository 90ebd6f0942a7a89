"""What is asked over HTTP with a bearer token, well and badly."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.auth.test_verification import sessions_locked
from tests.integration.peers import login, new_stream_id, open_peer
from tests.integration.relay_process import RelayProcess, Response, start_relay

ALERT = {"severity": "low", "message": "m"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def post(relay: RelayProcess, token: str, body: Any) -> Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await relay.get("/alerts", "POST", headers=bearer(token), body=content)


def code(answer: Response) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "AUTH_REQUIRED"),
        ("", "AUTH_REQUIRED"),
        ("Bearer", "AUTH_REQUIRED"),
        ("Bearer ", "AUTH_REQUIRED"),
        ("Basic dXNlcjpwYXNz", "AUTH_REQUIRED"),
        ("Bearer guessed", "AUTH_FAILED"),
        ("bearer relay_service_guessed", "AUTH_FAILED"),
        ("Bearer gu\u00e9ssed", "AUTH_FAILED"),
        ("Bearer " + "x" * 8000, "AUTH_FAILED"),
    ],
)
@pytest.mark.parametrize("path", ["/streams", "/alerts", "/figures"])
async def test_who_does_not_prove_who_they_are_is_told_how(
    relay: RelayProcess, path: str, header: str | None, expected: str
) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = await relay.get(path, headers=headers)
    assert code(answer) == (401, expected)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "x" * 100 not in answer.body.decode()


async def test_a_token_in_the_url_is_refused_here_too(
    relay: RelayProcess, accounts: Accounts
) -> None:
    answer = await relay.get(f"/streams?token={accounts.session()}")
    assert answer.status == 400


async def test_the_list_of_streams_is_that_of_the_message(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id, token = new_stream_id(), accounts.session("lister")
    async with login(relay, token) as phone:
        metadata = {"codec": "jpeg"}
        await phone.ask({"type": "register", "streamId": stream_id, "metadata": metadata})
        said = (await phone.ask({"type": "streams"}))["streams"]
        answer = await relay.get("/streams", headers=bearer(token))
    assert answer.json() == {"streams": said}
    assert said == [{"streamId": stream_id, "status": "online", "metadata": metadata}]


async def test_a_long_list_of_streams_comes_in_pages(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, ids = accounts.session("many"), sorted(new_stream_id() for _ in range(6))
    async with AsyncExitStack() as stack:
        for stream_id in ids:
            phone = await stack.enter_async_context(login(relay, token))
            metadata = {"big": "x" * 60_000}
            await phone.ask({"type": "register", "streamId": stream_id, "metadata": metadata})
        listed: list[str] = []
        more, after = True, ""
        while more:
            answer = await relay.get(f"/streams?limit=5{after}", headers=bearer(token))
            assert len(answer.body) < 300_000
            page = answer.json()
            listed += [each["streamId"] for each in page["streams"]]
            more, after = page.get("more", False), f"&after={listed[-1]}"
        wrong = await relay.get("/streams?limit=0", headers=bearer(token))
    assert listed == ids
    assert wrong.status == 400


async def test_an_alert_is_delivered_like_one_of_a_message_and_its_key_counts(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id, service = new_stream_id(), accounts.service("*")
    async with login(relay, accounts.session()) as phone:
        await phone.register(stream_id)
        body = {**ALERT, "streamId": stream_id, "alertKey": "k", "id": "r", "metadata": {"n": 1}}
        first = await post(relay, service, body)
        assert first.status == 200
        reply = first.json()
        assert (reply["type"], reply["code"], reply["id"]) == ("success", "ALERT_ACCEPTED", "r")
        heard = await phone.receive_type("alert")
        assert (heard["alertId"], heard["metadata"]) == (reply["alertId"], {"n": 1})
        again = await post(relay, service, {"type": "alert", **body})
        assert again.json()["alertId"] == reply["alertId"]
        await phone.ask({"type": "streams"})
        assert not phone.passed_over


async def test_stored_alerts_come_the_newest_first_a_page_at_a_time(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id, token = new_stream_id(), accounts.session("reader")
    async with login(relay, token) as phone:
        await phone.register(stream_id)
        for number in range(5):
            sent = {"type": "alert", **ALERT, "streamId": stream_id, "message": str(number)}
            await phone.ask(sent)
    read, before = [], ""
    while True:
        path = f"/alerts?streamId={stream_id}&limit=2{before}"
        page = (await relay.get(path, headers=bearer(token))).json()
        read += [each["message"] for each in page["alerts"]]
        assert all(each["streamId"] == stream_id for each in page["alerts"])
        if not page["more"]:
            break
        before = f"&before={page['alerts'][-1]['alertId']}"
    assert read == ["4", "3", "2", "1", "0"]


async def test_a_page_of_large_alerts_is_a_short_one(
    relay: RelayProcess, accounts: Accounts
) -> None:
    """Whoever reads slowly makes relay hold all of an answer."""
    stream_id, token = new_stream_id(), accounts.session("hoarder")
    async with login(relay, token) as phone:
        await phone.register(stream_id)
    accounts.execute(
        "select count(*) from generate_series(1, 50) n, relay.store_alerts(array[%s], '{x}',"
        " '{low}', array[n::text], '{1}', array[json_build_object('a', repeat('x', 60000))],"
        " '{null}')",
        stream_id,
    )
    read, before, pages = [], "", 0
    while True:
        path = f"/alerts?streamId={stream_id}&limit=1000{before}"
        answer = await relay.get(path, headers=bearer(token))
        assert len(answer.body) < 2**20 + 2**17
        page, pages = answer.json(), pages + 1
        read += [each["message"] for each in page["alerts"]]
        if not page["more"]:
            break
        before = f"&before={page['alerts'][-1]['alertId']}"
    assert read == [str(number) for number in range(50, 0, -1)]
    assert pages == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"alert"',
        b"\xff\xfe",
        b'{"message": "\xff"}',
        {},
        {**ALERT, "streamId": "a b"},
        {**ALERT, "streamId": "s", "severity": "dire"},
        {**ALERT, "streamId": "s", "type": "auth", "token": "t"},
        {**ALERT, "streamId": "s", "type": "nonsense"},
        {**ALERT, "streamId": "s", "message": "a\0b"},
        {**ALERT, "streamId": "s", "metadata": {"deep": [[[[]]]] * 2, "n": 1e400}},
        b'{"streamId": "s", "severity": "low", "message": "m", "metadata": ' + b"[" * 9000,
    ],
)
async def test_a_body_that_is_no_alert_is_refused_with_the_reason(
    relay: RelayProcess, accounts: Accounts, body: Any
) -> None:
    status, said = code(await post(relay, accounts.service("*"), body))
    assert (status, said in {"INVALID_MESSAGE", "UNKNOWN_MESSAGE_TYPE"}) == (400, True)


async def test_a_body_that_is_too_big_is_refused(relay: RelayProcess, accounts: Accounts) -> None:
    body = {**ALERT, "streamId": "s", "metadata": {"x": "x" * 65_536}}
    assert code(await post(relay, accounts.service("*"), body)) == (413, "MESSAGE_TOO_BIG")


@pytest.mark.parametrize("megabytes", [1, 12])
async def test_an_answer_to_a_large_body_reaches_a_client_that_sends_all_of_it(
    relay: RelayProcess, accounts: Accounts, megabytes: int
) -> None:
    """Closing with unread bytes would reset the connection, and the answer would be lost."""
    body = b"x" * (megabytes << 20)
    assert code(await post(relay, accounts.service("*"), body)) == (413, "MESSAGE_TOO_BIG")
    assert code(await post(relay, "of-nobody", body)) == (401, "AUTH_FAILED")
    assert (await relay.get("/nothing", "PUT", body=body)).status == 404


async def test_an_alert_whose_token_is_revoked_while_it_is_sent_is_refused(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id, token = new_stream_id(), accounts.service("*")
    async with login(relay, accounts.session()) as phone:
        await phone.register(stream_id)
    name = f"service-{token[-8:]}"
    body = json.dumps({**ALERT, "streamId": stream_id}).encode()
    head = f"POST /alerts HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
        await stream.send_all(head.encode() + body[:5])
        await relay.until_logged(name)
        accounts.execute("delete from relay.service_tokens where name = %s", name)
        await stream.send_all(body[5:])
        answer = b"".join([piece async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"AUTH_FAILED" in answer
    stored = "select from relay.alerts where stream_id = %s"
    assert accounts.execute(stored, stream_id) == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=many", "before=0", "before=-1", "streamId=a%20b", "x=1"],
)
async def test_a_query_that_makes_no_sense_is_refused(
    relay: RelayProcess, accounts: Accounts, query: str
) -> None:
    answer = await relay.get(f"/alerts?{query}", headers=bearer(accounts.session()))
    assert code(answer) == (400, "INVALID_MESSAGE")
    assert "regex" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/streams"),
        ("GET", "/alerts"),
        ("POST", "/alerts"),
        ("POST", "/revocations"),
        ("GET", "/figures"),
        ("GET", "/operate/streams"),
        ("POST", "/operate/streams/free"),
        ("POST", "/operate/connections/end"),
    ],
)
async def test_a_parameter_that_nobody_knows_is_named(
    relay: RelayProcess, accounts: Accounts, method: str, path: str
) -> None:
    answer = await relay.get(
        f"{path}?limt=1", method, headers=bearer(accounts.service(operate=True))
    )
    assert code(answer) == (400, "INVALID_MESSAGE")
    assert "limt" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/stats", "/metrics", "/", "/page/page.js"])
async def test_what_monitoring_and_browsers_ask_for_ignores_parameters(
    relay: RelayProcess, path: str
) -> None:
    assert (await relay.get(f"{path}?probe=1&probe=2&v=")).status == 200


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/alerts"), ("POST", "/streams")])
async def test_other_methods_are_refused(relay: RelayProcess, method: str, path: str) -> None:
    assert (await relay.get(path, method)).status == 405


async def test_with_the_store_away_it_is_unavailable_and_not_wrong(accounts: Accounts) -> None:
    token = accounts.session()
    with start_relay("--auth-timeout", "1", database_url=accounts.url) as relay:
        with sessions_locked(accounts):
            answer = await relay.get("/streams", headers=bearer(token))
        assert code(answer) == (503, "AUTH_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await relay.get("/streams", headers=bearer(token))).status == 200


async def test_figures_tell_operators_of_streams_and_their_consumers(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id, token = new_stream_id(), accounts.session()
    async with login(relay, token) as phone, login(relay, token) as viewer:
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        await phone.send_frame(b"a picture")
        await viewer.receive_type("video-frame")
        operator = accounts.service(operate=True)
        streams = (await relay.get("/figures", headers=bearer(operator))).json()["streams"]
    (stream,) = [each for each in streams if each["streamId"] == stream_id]
    (consumer,) = stream["consumers"]
    assert (stream["frames"], consumer["frames"], consumer["written"]) == (1, 1, 1)
    assert consumer["connection"] > stream["producer"]


async def test_guesses_over_http_count_like_those_of_websockets(
    database_url: str, accounts: Accounts
) -> None:
    token = accounts.session()
    with start_relay("--failed-auth-rate", "3/hour", database_url=database_url) as relay:
        for guess in range(3):
            answer = await relay.get("/streams", headers=bearer(f"guess-{guess}"))
            assert code(answer) == (401, "AUTH_FAILED")
        answer = await relay.get("/streams", headers=bearer(token))
        assert code(answer) == (429, "RATE_LIMITED")
        assert int(answer.headers["Retry-After"]) > 0
        async with open_peer(relay) as peer:
            await peer.send({"type": "auth", "token": token})
            assert (await peer.receive())["code"] == "RATE_LIMITED"


async def test_requests_are_counted_for_their_sender(accounts: Accounts, database_url: str) -> None:
    ada, bob = bearer(accounts.session()), bearer(accounts.session("bob"))
    with start_relay("--request-rate", "3/hour", database_url=database_url) as relay:
        for path in ("/streams", "/alerts", "/streams"):
            assert (await relay.get(path, headers=ada)).status == 200
        for path in ("/streams", "/alerts", "/figures"):
            answer = await relay.get(path, headers=ada)
            assert code(answer) == (429, "RATE_LIMITED")
            assert int(answer.headers["Retry-After"]) > 0
        assert (await relay.get("/alerts", headers=bob)).status == 200


async def test_alerts_over_http_count_with_those_of_messages(
    database_url: str, accounts: Accounts
) -> None:
    sentry = accounts.service("*")
    with start_relay("--alert-rate", "2/hour", database_url=database_url) as relay:
        stream_id = new_stream_id()
        async with login(relay, accounts.session()) as phone:
            await phone.ask({"type": "register", "streamId": stream_id})
            assert (await post(relay, sentry, {**ALERT, "streamId": stream_id})).status == 200
            async with login(relay, sentry) as peer:
                alert = {"type": "alert", "streamId": stream_id, **ALERT}
                assert (await peer.ask(alert))["code"] == "ALERT_ACCEPTED"
                assert (await peer.ask(alert))["code"] == "RATE_LIMITED"
            answer = await post(relay, sentry, {**ALERT, "streamId": stream_id})
            assert code(answer) == (429, "RATE_LIMITED")
