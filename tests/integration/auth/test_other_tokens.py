"""JWTs, introspected tokens and signed cookies, with real servers behind a real relay."""

from __future__ import annotations

import base64
import json
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from relay.auth.methods import jwks
from relay.errors import StoreUnavailable
from relay.outgoing.http_client import open_http_client
from tests.integration.accounts import Accounts
from tests.integration.node import run_script
from tests.integration.peers import Message, login, new_stream_id, open_peer
from tests.integration.relay_process import RelayProcess, run_relay, start_relay, until
from tests.integration.web_server import (
    Answer,
    by_form,
    drip,
    flood,
    open_web_server,
    raw,
    says,
    silence,
)
from tests.unit.tokens import AUDIENCE, EC, ED, ISSUER, RSA, Issuer, by_hand, good_claims, public

SECRET = "5ecret-of-this-issuer-and-of-relay"
PINS = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
CREDENTIALS = ("--introspection-client-id", "relay", "--introspection-client-secret", SECRET)

AWAY = ("AUTH_UNAVAILABLE", 4013)
WRONG = ("AUTH_FAILED", 1008)


async def refusal(relay: RelayProcess, token: str) -> tuple[str, int | None]:
    """The code and the close that a token gets."""
    async with open_peer(relay) as peer:
        await peer.send({"type": "auth", "token": token})
        heard, (code, _) = await peer.hear_end()
        return heard[-1]["code"], code


async def is_accepted(relay: RelayProcess, token: str) -> bool:
    async with open_peer(relay) as peer:
        await peer.send({"type": "auth", "token": token})
        return bool((await peer.receive())["type"] == "success")


async def accepted(relay: RelayProcess, token: str) -> Message:
    async with login(relay, token), open_peer(relay) as peer:
        return await peer.authenticate(token)


async def test_a_phone_with_a_jwt_streams_to_a_viewer_with_a_session(accounts: Accounts) -> None:
    async with open_web_server(says(public(EC, RSA, ED))) as issuer:
        with start_relay(
            "--jwt-jwks-url", f"{issuer.url}/jwks", *PINS, database_url=accounts.url
        ) as relay:
            expires = int(time.time()) + 300
            stream_id = new_stream_id()
            async with open_peer(relay) as phone, login(relay, accounts.session("ann")) as viewer:
                reply = await phone.authenticate(Issuer(EC).token(sub="ann", exp=expires, sid="s"))
                assert (reply["userId"], reply["sessionId"]) == ("ann", "s")
                assert reply["expiresAt"] == expires * 1000
                await phone.register(stream_id)
                await viewer.subscribe(stream_id)
                await phone.send_frame(b"a picture")
                frame = await viewer.receive_type("video-frame")
                assert base64.b64decode(frame["data"]) == b"a picture"
                # Renewed with another token of the same user, by another key.
                renewed = await phone.authenticate(Issuer(ED).token(sub="ann", exp=expires + 60))
                assert renewed["expiresAt"] == (expires + 60) * 1000
                other = await phone.authenticate(Issuer(RSA).token(sub="bob"))
                assert other["code"] == "UNAUTHORIZED"
            for wrong in (
                by_hand({"alg": "none", "kid": "ec"}, good_claims()),
                by_hand({"alg": "HS256", "kid": "ec"}, good_claims(), secret=EC.as_pem()),
                Issuer(EC).token(iss="https://evil.example"),
                Issuer(EC).token(exp=int(time.time()) - 5),
                Issuer(EC).token()[:-2],
            ):
                assert await refusal(relay, wrong) == WRONG
            assert len(issuer.requests) <= 2
            ready = (await relay.get("/ready")).json()
            assert ready["services"]["jwt-keys"] == "running"


async def test_a_key_can_be_a_file_or_a_secret(accounts: Accounts, tmp_path: Path) -> None:
    path = tmp_path / "issuer.pem"
    path.write_bytes(RSA.as_pem(private=False))
    with start_relay("--jwt-public-key", str(path), *PINS, database_url=accounts.url) as relay:
        assert (await accepted(relay, Issuer(RSA).token()))["userId"] == "ann"
        assert await refusal(relay, Issuer(EC).token()) == WRONG
    with start_relay("--jwt-secret", SECRET, *PINS, database_url=accounts.url) as relay:
        good = by_hand({"alg": "HS256"}, good_claims(), secret=SECRET.encode())
        assert (await accepted(relay, good))["userId"] == "ann"
        assert await refusal(relay, Issuer(RSA).token()) == WRONG


async def test_a_key_file_that_is_none_is_explained(accounts: Accounts, tmp_path: Path) -> None:
    path = tmp_path / "issuer.pem"
    path.write_bytes(RSA.as_pem(private=True))
    done = run_relay(
        "serve", "--bind", "127.0.0.1:0", "--jwt-public-key", str(path), *PINS,
        database_url=accounts.url,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"relay: jwt_public_key {path} is a private key, which relay should not have\n"
    )


async def test_keys_that_cannot_be_had_make_no_token_wrong(accounts: Accounts) -> None:
    token = Issuer(EC).token()
    async with open_web_server(says(public(EC))) as issuer:
        url = issuer.url
        issuer.stop()
        hasty = (sys.executable, "-m", "tests.integration.auth.hasty_relay", "serve")
        with start_relay(
            "--jwt-jwks-url", url, *PINS, database_url=accounts.url, command=hasty
        ) as relay:
            assert await refusal(relay, token) == AWAY
            async with login(relay, accounts.session()):
                pass
            issuer.answer = says(b"no", "500 Internal Server Error")
            await issuer.start()
            await until(lambda: len(issuer.requests) > 0)
            assert await refusal(relay, token) == AWAY
            issuer.answer = says(public(EC))
            await until(partial(is_accepted, relay, token))
            assert (await accepted(relay, token))["userId"] == "ann"
            issuer.stop()
            assert await refusal(relay, Issuer(RSA).token()) == AWAY  # after a look in vain
            assert (await accepted(relay, token))["userId"] == "ann"
            assert "status 500" in relay.log


RUDE = {
    "an error": says(b"no", "500 Internal Server Error"),
    "a redirect": says(b"", "302 Found", "Location: http://127.0.0.1:9/"),
    "a page": says(b"<html>"),
    "garbage": raw(b"garbage"),
    "a flood": flood,
}


@pytest.mark.parametrize("rude", RUDE.values(), ids=RUDE)
async def test_an_issuer_that_answers_rudely_is_as_good_as_away(
    rude: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "JWKS_MIN_INTERVAL", 0.05)
    async with (
        open_web_server(rude) as issuer,
        open_http_client() as http_client,
        trio.open_nursery() as nursery,
    ):
        keys = jwks.KeySet(http_client, issuer.url)
        await nursery.start(keys.run)
        with pytest.raises(StoreUnavailable):
            await keys.find("ES256", EC.kid)
        assert issuer.requests
        issuer.answer = says(public(EC))

        async def is_there() -> bool:
            with suppress(StoreUnavailable):  # until the next look has ended
                return await keys.find("ES256", EC.kid) is not None
            return False

        await until(is_there)
        nursery.cancel_scope.cancel()


def introspected(form: dict[str, str]) -> dict[str, Any]:
    if form["token"].startswith("good"):
        return {"active": True, "sub": "ann", "exp": int(time.time()) + 600, "jti": "grant-1"}
    return {"active": False}


async def test_the_issuer_is_asked_about_tokens_that_are_no_sessions(accounts: Accounts) -> None:
    async with open_web_server(by_form(introspected)) as issuer:
        with start_relay(
            "--introspection-url", f"{issuer.url}/introspect", *CREDENTIALS,
            database_url=accounts.url,
        ) as relay:  # fmt: skip
            await relay.until_logged("sessions are watched")
            reply = await accepted(relay, "good")
            assert (reply["userId"], reply["sessionId"]) == ("ann", "grant-1")
            # Once, or again where the watch had begun anew meanwhile.
            assert {request.form["token"] for request in issuer.requests} == {"good"}
            pair = base64.b64encode(f"relay:{SECRET}".encode()).decode()
            assert issuer.requests[0].headers["authorization"] == f"Basic {pair}"
            assert await refusal(relay, "bad") == WRONG
            session = accounts.session()
            await accepted(relay, session)
            assert session not in [request.form["token"] for request in issuer.requests]
            for number, rude in enumerate(
                (
                    says({"active": True}, "500 Internal Server Error"),
                    says({"active": True}, "401 Unauthorized"),
                    says(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:9/"),
                    says(b"<html>"),
                    says({"active": "true", "sub": "ann"}),
                    raw(b"garbage"),
                    flood,
                )
            ):
                issuer.answer = rude
                assert await refusal(relay, f"good-{number}") == AWAY
                await accepted(relay, session)
            issuer.stop()
            assert await refusal(relay, "good-again") == AWAY
            issuer.answer = by_form(introspected)
            await issuer.start()
            assert (await accepted(relay, "good-again"))["userId"] == "ann"


@pytest.mark.parametrize("slow", [silence, drip])
async def test_a_slow_issuer_holds_no_session_back(accounts: Accounts, slow: Any) -> None:
    async with open_web_server(slow) as issuer:
        with start_relay(
            "--introspection-url", issuer.url, *CREDENTIALS, "--auth-timeout", "60",
            database_url=accounts.url,
        ) as relay:  # fmt: skip
            refused: list[tuple[str, int | None]] = []

            async def refuse(number: int) -> None:
                refused.append(await refusal(relay, f"good-{number}"))

            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(refuse, number)
                await until(lambda: len(issuer.requests) == 16)
                session = accounts.session()
                logins = 0
                while not refused and logins < 20:
                    await accepted(relay, session)
                    logins += 1
                # Had the first one waited behind the issuer, it would have been the only one.
                assert logins > 2
            assert refused == [AWAY] * 16


async def test_no_secret_and_no_token_is_ever_written(accounts: Accounts) -> None:
    flags = ("--auth-secret", SECRET, "--jwt-secret", SECRET, *PINS, *CREDENTIALS)
    async with open_web_server(by_form(introspected)) as issuer:
        url = ("--introspection-url", issuer.url)
        with start_relay(*flags, *url, "--log-level", "debug", database_url=accounts.url) as relay:
            tokens = [
                "good-t0ken",
                "bad-t0ken",
                by_hand({"alg": "HS256"}, good_claims(), secret=SECRET.encode()),
                Issuer(EC).token(),
                f"t0ken.{'A' * 43}=",
            ]
            for token in tokens:
                async with open_peer(relay) as peer:
                    await peer.authenticate(token)
            issuer.answer = raw(b"good-t0ken")
            assert await refusal(relay, "good-t0ken-2") == AWAY
            relay.signal(signal.SIGTERM)
            assert await relay.ended() == 0
            everything = relay.output
        shown = run_relay("config", "show", *flags, *url)
    assert shown.returncode == 0
    for hidden in (SECRET, "t0ken", *(part for token in tokens[2:4] for part in token.split("."))):
        assert hidden not in everything + shown.stdout + shown.stderr


async def test_what_the_real_better_auth_gives_is_accepted_in_each_form(
    node: str, accounts: Accounts
) -> None:
    secret = "better-auth-5ecret-1234567890abcd"
    async with run_script(node, None, secret, "better_auth.js") as better_auth:
        given = json.loads(await better_auth.line("given:"))
        user_id = given["userId"]
        # Its memory is not our database, but the token is one of a session there, too.
        stored = accounts.session(user_id)
        accounts.execute("update session set token = %s where token = %s", given["token"], stored)
        base = given["baseURL"]
        pins = ("--jwt-issuer", base, "--jwt-audience", base)
        with start_relay(
            "--auth-secret", secret, "--jwt-jwks-url", f"{base}/api/auth/jwks", *pins,
            database_url=accounts.url,
        ) as relay:  # fmt: skip
            for form in ("token", "cookie", "bearer", "jwt"):
                assert (await accepted(relay, given[form]))["userId"] == user_id, form
            for form in ("cookie", "bearer"):
                signed = given[form]
                assert await refusal(relay, "x" + signed) == WRONG
                middle = signed.index(".") + 5
                twin = "B" if signed[middle] == "A" else "A"
                assert await refusal(relay, signed[:middle] + twin + signed[middle + 1 :]) == WRONG
            assert await refusal(relay, given["jwt"][:-3] + "AAA") == WRONG
        with start_relay("--auth-secret", "another", database_url=accounts.url) as relay:
            assert await refusal(relay, given["cookie"]) == WRONG
            assert (await accepted(relay, given["token"]))["userId"] == user_id
        with start_relay(database_url=accounts.url) as relay:
            assert await refusal(relay, given["cookie"]) == WRONG
            assert await refusal(relay, given["jwt"]) == WRONG
            assert "set auth_secret to Better Auth's secret" in relay.log
