"""JSON Web Tokens, and attacks with them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OctKey, RSAKey

from relay.auth.methods.jwt import LEEWAY, JsonWebTokens
from relay.auth.methods.keys import StaticKey, fits, import_public, read_public_key, secret_key
from relay.auth.methods.method import Match
from relay.errors import ConfigError
from relay.model.access.identity import User
from relay.settings.tokens import DEFAULT_KEY_ALGORITHMS, KEY_ALGORITHMS, SECRET_ALGORITHMS
from tests.unit.tokens import (
    AUDIENCE,
    EC,
    ED,
    ISSUER,
    RSA,
    Issuer,
    base64url,
    by_hand,
    good_claims,
    public,
)

SECRET = "a secret that is shared, 32 bytes"


def web_tokens(key: Key = EC, *algorithms: str) -> JsonWebTokens:
    pinned = algorithms or DEFAULT_KEY_ALGORITHMS
    known = import_public(public(key)["keys"][0])
    assert known is not None
    return JsonWebTokens(StaticKey(known), ISSUER, AUDIENCE, pinned)


def shared(*algorithms: str) -> JsonWebTokens:
    return JsonWebTokens(secret_key(SECRET), ISSUER, AUDIENCE, algorithms or ("HS256",))


@pytest.mark.parametrize("key", [RSA, EC, ED])
async def test_a_token_of_the_issuer_is_its_subject_until_it_expires(key: Key) -> None:
    expires = int(time.time()) + 60
    user = await web_tokens(key).verify(Issuer(key).token(sub="ann", exp=expires, jti="id-1"))
    assert user == User("ann", "id-1", datetime.fromtimestamp(expires, UTC), source="jwt")


async def test_a_shared_secret_can_be_the_key() -> None:
    token = by_hand({"alg": "HS256"}, good_claims(), secret=SECRET.encode())
    user = await shared().verify(token)
    assert user is not None
    assert user.user_id == "ann"


async def test_the_session_is_what_the_issuer_calls_it_but_never_the_token() -> None:
    async def session(**claims: Any) -> str:
        user = await web_tokens().verify(Issuer().token(**claims))
        assert user is not None
        return user.session_id

    assert await session(sid="s", jti="j") == "s"
    assert await session(jti="j") == "j"
    assert await session(sid=7, jti="j") == "j"
    for unusable in ("", "x" * 256, "a\0b", "\ud800"):
        assert (await session(sid=unusable, jti=unusable)).startswith("jwt-")
    first, second = await session(nonce=1), await session(nonce=2)
    assert first.startswith("jwt-")
    assert first != second
    token = Issuer().token()
    user = await web_tokens().verify(token)
    assert user is not None
    assert not any(part in user.session_id for part in token.split("."))


SOON = int(time.time()) + 3600

WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://id.example.com"},
    "an issuer that begins alike": {"iss": ISSUER + ".evil.example"},
    "an issuer in a list": {"iss": [ISSUER]},
    "no issuer": {"iss": None},
    "another audience": {"aud": "billing"},
    "other audiences": {"aud": ["billing", "relay2"]},
    "no audience": {"aud": None},
    "an empty audience": {"aud": []},
    "an audience beside a number": {"aud": [AUDIENCE, 1]},
    "an audience in a map": {"aud": {AUDIENCE: 1}},
    "no expiry": {"exp": None},
    "an expiry that is past": {"exp": int(time.time()) - 1},
    "an expiry long past": {"exp": 0},
    "a negative expiry": {"exp": -(10**400)},
    "an expiry that is text": {"exp": str(SOON)},
    "an expiry that is true": {"exp": True},
    "an expiry that is a list": {"exp": [SOON]},
    "an expiry that is no number": {"exp": math.nan},
    "an endless expiry": {"exp": math.inf},
    "a beginning to come": {"nbf": SOON},
    "a beginning that is text": {"nbf": "0"},
    "a beginning that is no number": {"nbf": math.nan},
    "made in the future": {"iat": SOON},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 7},
    "a subject that is a list": {"sub": ["ann"]},
    "a subject with U+0000": {"sub": "ann\0"},
    "a subject with half a character": {"sub": "ann\ud800"},
    "a subject that is too long": {"sub": "a" * 256},
}


@pytest.mark.parametrize("claims", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
async def test_a_wrong_claim_makes_a_wrong_token_however_well_signed(
    claims: dict[str, Any],
) -> None:
    signed = by_hand({"alg": "HS256"}, good_claims(**claims), secret=SECRET.encode())
    assert shared().match(signed) is Match.YES
    assert await shared().verify(signed) is None


async def test_a_small_difference_of_clocks_is_forgiven_but_lengthens_no_life() -> None:
    now = int(time.time())
    assert await web_tokens().verify(Issuer().token(nbf=now + LEEWAY - 2, iat=now + LEEWAY - 2))
    assert await web_tokens().verify(Issuer().token(nbf=now + LEEWAY + 30)) is None
    assert await web_tokens().verify(Issuer().token(exp=now - 1)) is None


@pytest.mark.parametrize("exp", [10**11 * 25, 10**18, 10**300, 1e300, 253402214400.0])
async def test_a_huge_expiry_is_the_last_time_there_is(exp: float) -> None:
    signed = by_hand({"alg": "HS256"}, good_claims(exp=exp), secret=SECRET.encode())
    user = await shared().verify(signed)
    assert user is not None
    assert user.expires_at == datetime(9999, 12, 31, tzinfo=UTC)


def forged_with_the_public_key() -> list[str]:
    """The classic attack: HS256 with an encoding of the public key as the secret."""
    pems = [key.as_pem(private=False) for key in (RSA, EC, ED)]
    secrets = [each for pem in pems for each in (pem, pem.strip(), pem + b"\n")]
    secrets += [json.dumps(key.as_dict(private=False)).encode() for key in (RSA, EC, ED)]
    return [
        by_hand({"alg": "HS256", "kid": kid}, good_claims(), secret=secret)
        for secret in secrets
        for kid in ("rsa", "ec", "ed")
    ]


ANOTHER_EC = ECKey.generate_key("P-256", {"kid": "ec"})

ATTACKS: dict[str, Callable[[], list[str]]] = {
    "unsigned": lambda: [
        by_hand({"alg": alg, "kid": "ec"}, good_claims(), signature)
        for alg in ("none", "None", "NONE", "nOnE", "")
        for signature in (b"", b"x" * 64)
    ],
    "the public key as a secret": forged_with_the_public_key,
    "an empty secret": lambda: [by_hand({"alg": "HS256"}, good_claims(), secret=b"\0")],
    "a key in the header": lambda: [
        Issuer(ANOTHER_EC).token(header={"jwk": ANOTHER_EC.as_dict(private=False)}),
        Issuer(ANOTHER_EC).token(header={"jku": "https://evil.example/jwks"}),
    ],
    "another key of the same name": lambda: [Issuer(ANOTHER_EC).token()],
    "a zero signature": lambda: [
        by_hand({"alg": "ES256", "kid": "ec"}, good_claims(), bytes(size)) for size in (0, 63, 64)
    ],
    "what is not understood": lambda: [
        Issuer().token(header={"crit": ["exp"], "exp": 1}),
        by_hand({"alg": "ES256", "kid": "ec", "crit": 5}, good_claims(), b"x" * 64),
        by_hand({"alg": "ES256", "kid": "ec", "crit": [[]]}, good_claims(), b"x" * 64),
        by_hand({"alg": "ES256", "kid": "ec", "b64": False}, good_claims(), key=EC),
    ],
    "another kind of token": lambda: [
        Issuer().token(header={"typ": typ}) for typ in ("logout+jwt", "secevent+jwt", "dpop+jwt")
    ],
    "odd headers": lambda: [
        by_hand({"alg": alg, "kid": kid}, good_claims(), b"x" * 64)
        for alg, kid in (([], "ec"), (None, "ec"), ({}, "ec"), ("ES256", 5), ("ES256", ["ec"]))
    ],
    "no claims": lambda: [
        jwt_of(payload) for payload in (b"[]", b"null", b"1", b"{", b"\xff", b"[" * 4000)
    ],
    "cut and joined": lambda: [
        Issuer().token()[:-4],
        Issuer().token() + "AAAA",
        ".".join([*Issuer().token(sub="eve").split(".")[:2], Issuer().token().split(".")[2]]),
    ],
}


def jwt_of(payload: bytes) -> str:
    """A correctly signed token with any content."""
    return by_hand({"alg": "ES256", "kid": "ec"}, payload, key=EC)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("key", [RSA, EC, ED])
async def test_an_attack_is_a_wrong_token(attack: Callable[[], list[str]], key: Key) -> None:
    for token in attack():
        assert web_tokens(key).match(token) is Match.YES
        assert await web_tokens(key).verify(token) is None
        assert await shared().verify(token) is None


async def test_what_attacks_leave_out_would_be_good() -> None:
    """Shows that the attacks fail for what they change, and for nothing else."""
    assert await web_tokens(EC).verify(Issuer(EC).token(header={"typ": "at+JWT", "custom": 1}))
    assert await web_tokens(EC).verify(Issuer(EC).token(header={"typ": "application/at+jwt"}))
    assert await web_tokens(EC).verify(jwt_of(json.dumps(good_claims()).encode()))


@pytest.mark.parametrize("key", [RSA, EC, ED])
async def test_a_public_key_is_no_secret_whatever_is_pinned(key: Key) -> None:
    """Neither the settings nor the key allow it."""
    careless = web_tokens(key, "HS256", *DEFAULT_KEY_ALGORITHMS)
    for token in forged_with_the_public_key():
        assert await careless.verify(token) is None


async def test_only_pinned_algorithms_count() -> None:
    token = Issuer(RSA).token()
    assert await web_tokens(RSA, "RS256").verify(token)
    assert await web_tokens(RSA, "PS256", "ES256").verify(token) is None
    assert await shared("HS512").verify(by_hand({"alg": "HS256"}, good_claims(),
                                                secret=SECRET.encode())) is None  # fmt: skip


def test_a_key_serves_only_what_it_is_made_for() -> None:
    every = {*SECRET_ALGORITHMS, *KEY_ALGORITHMS}
    rsa = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert {name for name in every if fits(RSA, name)} == rsa
    assert {name for name in every if fits(EC, name)} == {"ES256"}
    assert {name for name in every if fits(ED, name)} == {"EdDSA"}
    assert {name for name in every if fits(OctKey.generate_key(), name)} == {*SECRET_ALGORITHMS}
    assert not fits(RSA, "none")
    for_encryption = RSAKey.import_key({**RSA.as_dict(private=False), "use": "enc"})
    assert not any(fits(for_encryption, name) for name in every)


def test_anything_but_a_public_key_is_rejected() -> None:
    good = public(RSA)["keys"][0]
    bad: list[Any] = [
        None,
        5,
        [],
        {},
        {"kty": []},
        {"kty": "oct", "k": base64url(b"x" * 32)},
        {**good, "use": "enc"},
        {**good, "use": 5},
        {**good, "n": "AQAB"},
        {**good, "n": 5},
        {**good, "e": ""},
        {**good, "kid": 5},
        {**good, "key_ops": 5},
        {"kty": "RSA"},
        {"kty": "RSA", "n": base64url(b"\xff" * 128), "e": "AQAB"},  # 1024 bits
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "\ud800"},
    ]
    assert import_public(good) is not None
    assert [each for each in bad if import_public(each) is not None] == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.sampled_from([RSA, EC, ED]),
    st.dictionaries(
        st.sampled_from(["kty", "n", "e", "d", "crv", "x", "y", "use", "alg", "kid", "key_ops"]),
        json_values,
    ),
)
def test_whatever_stands_in_a_key_set_is_a_key_or_none(key: Key, changes: dict[str, Any]) -> None:
    import_public({**key.as_dict(private=False), **changes})


segments = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1)
HEADER = base64url(b'{"alg":"ES256","kid":"ec"}')
LONG = "x" * (8192 - len(HEADER) - 2)


@given(
    st.text()
    | st.builds("{}.{}.{}".format, segments, segments, segments)
    | st.builds(lambda claims, tail: f"{HEADER}.{claims}.{tail}", segments, segments)
)
@example(f"{HEADER}.{LONG}.")
@example(f"{HEADER}.{LONG[:4000]}.{LONG[4000:]}")
@example("." * 8192)
@example("x" * 8192)
@example(base64url(b"[" * 6000) + ".e30.")
@example(base64url(b'{"alg":' + b"[" * 5000 + b"]" * 5000 + b"}") + ".e30.")
@example(base64url(b'{"alg":"ES256","kid":"' + b"k" * 5000 + b'"}') + ".e30.AAAA")
@example("\ud800.\ud800.\ud800")
@example("\0")
@example(f"{HEADER}.e30.\0")
@example(f" {HEADER}.e30.AAAA")
@example(f"{HEADER}.e30.AAAA\n")
async def test_any_text_that_nobody_signed_is_a_wrong_token(text: str) -> None:
    for each in (web_tokens(), shared()):
        if each.match(text) is not Match.NO:
            assert await each.verify(text) is None


@given(st.dictionaries(st.text(), json_values), json_values)
async def test_any_header_and_claims_that_nobody_signed_are_a_wrong_token(
    header: dict[str, Any], claims: Any
) -> None:
    for changed in (header, {"alg": "ES256", "kid": "ec", **header}):
        assert await web_tokens().verify(by_hand(changed, claims, b"x" * 64)) is None


@given(
    st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "sid"]), json_values
    )
)
async def test_whatever_the_issuer_signs_is_a_user_or_none(claims: dict[str, Any]) -> None:
    signed = by_hand({"alg": "HS256"}, {**good_claims(), **claims}, secret=SECRET.encode())
    user = await shared().verify(signed)
    if user is not None:
        assert user.user_id == claims.get("sub", "ann")
        assert datetime.now(UTC) < user.expires_at


@pytest.mark.parametrize("token", ["abc", "a.b", "a.b.c", "e30.e30", "e30.e30.e30.e30", "e30..e30"])
def test_a_token_of_another_form_is_left_to_other_methods(token: str) -> None:
    assert web_tokens().match(token) is Match.NO


@pytest.mark.parametrize("key", [RSA, EC, ED])
async def test_a_public_key_is_read_from_a_file(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "issuer.pem"
    path.write_bytes(key.as_pem(private=False))  # type: ignore[union-attr]
    keys = read_public_key(path, DEFAULT_KEY_ALGORITHMS)
    assert await JsonWebTokens(keys, ISSUER, AUDIENCE, DEFAULT_KEY_ALGORITHMS).verify(
        Issuer(key).token()
    )
    assert "BEGIN" not in repr(keys)


def test_a_file_without_a_fitting_public_key_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "issuer.pem"

    def refused(content: bytes | None, *algorithms: str) -> str:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_public_key(path, algorithms or DEFAULT_KEY_ALGORITHMS)
        return str(caught.value)

    assert "No such file" in refused(None)
    assert "is a private key" in refused(RSA.as_pem(private=True))
    assert "expected a public key in PEM" in refused(b"")
    assert "expected a public key in PEM" in refused(b"-----BEGIN PUBLIC KEY-----\nx\n")
    assert "EC key, which fits none of jwt_algorithms: RS256" in refused(
        EC.as_pem(private=False), "RS256"
    )


def test_a_public_key_is_no_secret() -> None:
    for key in (RSA, EC, ED):
        with pytest.raises(ConfigError, match="set jwt_public_key instead"):
            secret_key(key.as_pem(private=False).decode())


def test_the_secret_is_in_no_repr() -> None:
    assert "secret" not in repr(shared())
