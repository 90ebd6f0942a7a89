"""Sessions that are not rows: relay asks the real Better Auth about tokens, in two versions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import trio

from relay.doctor.application import ApplicationChecks
from relay.doctor.checks import Finding, Outcome
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.auth.sessions_elsewhere import (
    OLDER,
    PACKAGES,
    SignedIn,
    better_auth,
    storage_options,
)
from tests.integration.peers import Peer, login, new_stream_id, open_peer
from tests.integration.relay_process import RelayProcess, run_relay, start_relay
from tests.integration.web_server import Answer, drip, flood, open_web_server, raw, says, silence

AWAY = ("AUTH_UNAVAILABLE", 4013)
WRONG = ("AUTH_FAILED", 1008)
REVOKED = ("SESSION_REVOKED", 4501)


def asking(url: str, *, recheck: float = 60, cache: float = 0) -> tuple[str, ...]:
    return (
        *("--auth-session-url", url, "--auth-session-recheck", str(recheck)),
        *("--auth-session-cache", str(cache)),
    )


async def refusal(relay: RelayProcess, token: str) -> tuple[str, int | None]:
    async with open_peer(relay) as peer:
        await peer.send({"type": "auth", "token": token})
        return await end(peer)


async def end(peer: Peer) -> tuple[str, int | None]:
    heard, (code, _) = await peer.hear_end()
    return heard[-1]["code"], code


async def revoke(relay: RelayProcess, token: str, body: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    answer = await relay.get("/revocations", "POST", headers=headers, body=body.encode())
    return answer.status, answer.json()


NOWHERE = ("--auth-session-url", "https://app.example/api/auth/get-session")


def service(url: str, *scopes: str) -> str:
    name = f"app{len(scopes)}"
    made = run_relay("token", "service", name, *scopes, *NOWHERE, database_url=url)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


each_package = pytest.mark.parametrize(
    "package", [pytest.param(OLDER, marks=pytest.mark.slow), PACKAGES[-1]]
)


@pytest.fixture
def bare_url(empty_postgres_url: str) -> str:
    """A database with relay's tables and none of Better Auth's."""
    done = run_relay("db", "migrate", database_url=empty_postgres_url)
    assert done.returncode == 0, done.stderr
    return empty_postgres_url


@pytest.mark.parametrize("storage", [pytest.param("map", marks=pytest.mark.slow), "redis"])
@each_package
async def test_who_signs_in_is_let_in_and_who_signs_out_is_out(
    node: str, bare_url: str, package: str, storage: str
) -> None:
    with storage_options(storage) as options:
        async with better_auth(node, package, **options) as application:
            phone_session = await application.sign("Up", "ann@example.org")
            viewer_session = await application.sign("In", "ann@example.org")
            arguments = asking(application.url, recheck=0.5)
            with start_relay(*arguments, database_url=bare_url) as relay:
                stream_id = new_stream_id()
                async with open_peer(relay) as phone, login(relay, viewer_session.signed) as viewer:
                    welcome = await phone.authenticate(phone_session.token)
                    assert welcome["userId"] == phone_session.user_id
                    assert welcome["sessionId"] == phone_session.session_id
                    await phone.register(stream_id)
                    await viewer.subscribe(stream_id)
                    await phone.send_frame(b"a picture")
                    assert (await viewer.receive_type("video-frame"))["seq"] == 1
                    await application.do("signOut", viewer_session.token)
                    assert await end(viewer) == REVOKED
                    assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"
                assert await refusal(relay, viewer_session.token) == WRONG
                assert await refusal(relay, "a-made-up-token") == WRONG
            (asked,) = (await application.do("asked")).values()
            assert all("disableRefresh=true&disableCookieCache=true" in url for url in asked)
            assert not any(viewer_session.token in url for url in asked)


@pytest.mark.slow
@each_package
async def test_asking_keeps_no_session_alive(node: str, bare_url: str, package: str) -> None:
    lasting = {"expiresIn": 5, "updateAge": 0}  # each use extends a session
    async with better_auth(node, package, session=lasting) as application:
        arguments = asking(application.url, recheck=0.2)
        with start_relay(*arguments, database_url=bare_url) as relay:
            quiet = await application.sign("Up", "ann@example.org")
            used = await application.sign("In", "ann@example.org")
            expiry, before = [await application.expiry(each.token) for each in (quiet, used)]
            async with login(relay, quiet.token) as peer, login(relay, used.token) as other:
                ended: list[tuple[str, int | None]] = []

                async def wait_for_end() -> None:
                    ended.append(await end(peer))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_for_end)
                    while not ended:
                        await application.do("use", used.token)
                        await trio.sleep(0.1)
                assert ended == [("SESSION_EXPIRED", 4001)]
                # relay follows a session that its owner extends.
                assert (await other.ask({"type": "streams"}))["code"] == "STREAMS"
                assert await application.expiry(used.token) > before
                assert await application.expiry(quiet.token) in {expiry, ""}
            (asked,) = (await application.do("asked")).values()
            assert len(asked) > 10


async def test_the_application_tells_what_has_ended(node: str, bare_url: str) -> None:
    teller, other = service(bare_url, "--revoke"), service(bare_url, "--operate", "--alerts")

    def by_session(signed: SignedIn) -> str:
        return f'{{"sessionId": "{signed.session_id}"}}'

    def by_user(signed: SignedIn) -> str:
        return f'{{"userId": "{signed.user_id}"}}'

    def by_token(signed: SignedIn) -> str:
        return f'{{"tokenSha256": "{hashlib.sha256(signed.token.encode()).hexdigest()}"}}'

    ways: tuple[Callable[[SignedIn], str], ...] = (by_session, by_user, by_token)
    async with better_auth(node, "better-auth") as application:
        with start_relay(*asking(application.url, cache=300), database_url=bare_url) as relay:
            stays = await application.sign("Up", "bob@example.org")
            async with login(relay, stays.token) as bystander:
                for number, way in enumerate(ways):
                    signed = await application.sign("Up", f"ann{number}@example.org")
                    assert (await revoke(relay, other, way(signed)))[0] == 403
                    assert (await revoke(relay, stays.token, way(signed)))[0] == 403
                    async with (
                        login(relay, signed.token) as one,
                        login(relay, signed.signed) as two,
                    ):
                        assert await revoke(relay, teller, way(signed)) == (200, {"connections": 2})
                        assert await end(one) == await end(two) == REVOKED
                    if way is not by_user:  # though the application still knows it
                        assert await refusal(relay, signed.token) == WRONG
                        assert await refusal(relay, signed.signed) == WRONG
                    else:
                        async with login(relay, signed.token):
                            pass
                assert (await bystander.ask({"type": "streams"}))["code"] == "STREAMS"
            for wrong in ("", "[]", "{}", '{"user": "ann"}', '{"tokenSha256": "abc"}', "{" * 9000):
                status, answer = await revoke(relay, teller, wrong)
                assert (status, answer["error"]["code"]) == (400, "INVALID_MESSAGE")
            assert (await relay.get("/revocations", "POST", body=b"{}")).status == 401


@each_package
async def test_better_auth_tells_relay_of_what_it_deletes(
    node: str, bare_url: str, package: str
) -> None:
    teller = service(bare_url, "--revoke")
    async with better_auth(node, package) as application:
        with start_relay(*asking(application.url), database_url=bare_url) as relay:
            await application.do("tell", relay.url, teller)
            first = await application.sign("Up", "ann@example.org")
            second = await application.sign("In", "ann@example.org")
            async with login(relay, first.token) as one, login(relay, second.token) as two:
                await application.do("signOut", first.token)
                assert await end(one) == REVOKED
                assert (await two.ask({"type": "streams"}))["code"] == "STREAMS"
                await application.do("revokeAll", second.token)
                assert await end(two) == REVOKED


TROUBLE = {
    "limited": says({"message": "Too many requests"}, "429 Too Many Requests"),
    "broken": says({"message": "Oh"}, "500 Internal Server Error"),
    "forbidden": says(None, "403 Forbidden"),
    "moved": says(None, "302 Found", "Location: http://127.0.0.1:1/"),
    "a page": says(b"<!doctype html><p>Log in</p>"),
    "empty": says(b""),
    "other": says({"ok": True, "session": {"id": "1"}}),
    "compressed": says(b"\x1f\x8b\x08", "200 OK", "Content-Encoding: gzip"),
    "endless": flood,
    "no HTTP": raw(b"hello"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_trouble_of_the_application_is_no_fault_of_a_client(
    bare_url: str, trouble: str
) -> None:
    async with open_web_server(TROUBLE[trouble]) as server:
        arguments = (*asking(f"{server.url}/api/auth/get-session"), "--failed-token-rate", "1/hour")
        with start_relay(*arguments, database_url=bare_url) as relay:
            for _ in range(3):
                assert await refusal(relay, "a-t0ken-of-somebody") == AWAY
            assert "another server gives no answer" in relay.log
            assert "a-t0ken" not in relay.log
            assert (await relay.get("/ready")).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("answer", [silence, drip])
async def test_an_application_that_does_not_answer_is_given_up(
    bare_url: str, answer: Answer
) -> None:
    async with open_web_server(answer) as server:
        with start_relay(*asking(server.url), database_url=bare_url) as relay:
            assert await refusal(relay, "a-token") == AWAY


@pytest.mark.slow
async def test_without_the_bearer_plugin_no_token_is_wrong(node: str, bare_url: str) -> None:
    for package in PACKAGES:
        async with better_auth(node, package, bearer=False) as application:
            signed = await application.sign("Up", "ann@example.org")
            finding = await doctor(application.url)
            assert finding.outcome is Outcome.FAIL
            assert "bearer()" in finding.do
            with start_relay(*asking(application.url), database_url=bare_url) as relay:
                assert await refusal(relay, signed.token) == AWAY
                assert "needs the bearer plugin" in relay.log


async def doctor(url: str) -> Finding:
    (check,) = ApplicationChecks(Settings(auth_session_url=url)).checks()
    return await check.look()


async def test_doctor_asks_the_application(node: str) -> None:
    for package in PACKAGES:
        async with better_auth(node, package) as application:
            finding = await doctor(application.url)
            assert finding.outcome is Outcome.OK, finding
            missing = await doctor(application.url.replace("get-session", "session"))
            assert missing.outcome is Outcome.FAIL
            assert "the whole URL" in missing.do
    for answer, hint in (
        (TROUBLE["moved"], "redirect"),
        (TROUBLE["limited"], "rate limit"),
        (TROUBLE["a page"], "login page"),
    ):
        async with open_web_server(answer) as server:
            finding = await doctor(server.url)
            assert finding.outcome is Outcome.FAIL
            assert hint in finding.do
    assert (await doctor("http://127.0.0.1:1/")).outcome is Outcome.FAIL


@pytest.mark.slow
async def test_better_auths_own_rate_limit_is_trouble_too(node: str, bare_url: str) -> None:
    limit = {"enabled": True, "window": 60, "max": 2, "storage": "memory"}
    async with better_auth(node, "better-auth", rateLimit=limit) as application:
        signed = await application.sign("Up", "ann@example.org")
        with start_relay(*asking(application.url), database_url=bare_url) as relay:
            async with login(relay, signed.token):
                pass
            for _ in range(2):
                async with open_peer(relay) as peer:
                    await peer.authenticate(signed.token)
            assert await refusal(relay, signed.token) == AWAY
            assert "status 429" in relay.log
    exempt = {**limit, "customRules": {"/get-session": False}}
    async with better_auth(node, "better-auth", rateLimit=exempt) as application:
        signed = await application.sign("Up", "ann@example.org")
        with start_relay(*asking(application.url), database_url=bare_url) as relay:
            for _ in range(5):
                async with login(relay, signed.token):
                    pass


@pytest.mark.slow
@each_package
async def test_rows_of_ended_sessions_let_nobody_in(
    node: str, empty_postgres_url: str, package: str
) -> None:
    url = empty_postgres_url
    kept = {"storeSessionInDatabase": True, "preserveSessionInDatabase": True}
    async with better_auth(node, package, rows=url, session=kept) as application:
        assert run_relay("db", "migrate", database_url=url).returncode == 0
        signed = await application.sign("Up", "ann@example.org")
        await application.do("signOut", signed.token)
        rows = Accounts(url).execute(
            'select "expiresAt" > now() from session where token = %s', signed.token
        )
        # Before 1.7, the row looks like that of any session.
        assert rows == [(package == "better-auth-1.6",)]
        with start_relay(*asking(application.url), database_url=url) as relay:
            assert await refusal(relay, signed.token) == WRONG
            async with login(relay, (await application.sign("In", "ann@example.org")).token):
                pass
        if package == "better-auth":
            with start_relay(database_url=url) as relay:
                assert await refusal(relay, signed.token) == WRONG


async def test_commands_do_without_better_auths_tables(bare_url: str) -> None:
    granted = run_relay("grant", "user-7", "porch", *NOWHERE, database_url=bare_url)
    assert granted.returncode == 0, granted.stderr
    assert "user-7" in run_relay("grants", *NOWHERE, database_url=bare_url).stdout
    unknown = run_relay("grant", "ann@example.org", "porch", *NOWHERE, database_url=bare_url)
    assert "give an id" in unknown.stderr
