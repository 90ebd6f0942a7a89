"""Signed session tokens, as in Better Auth's cookie. Other tests run the real Better Auth."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from attrs import define, field
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay.auth.methods.method import Match
from relay.auth.methods.signed_cookie import SignedCookies, sign, split
from relay.errors import StoreUnavailable
from relay.model.access.identity import Identity
from tests.unit.memory import user

SECRET = "better-auth-secret-1234567890abcd"
TOKEN = "yH9zKqV3mX7pR2tB8wN4cF6jL1gD5sA0"


@define(eq=False)
class DatabaseTokens:
    """Knows one token, and records the tokens it was asked for."""

    asked: list[str] = field(factory=list)
    away: bool = False

    def match(self, token: str) -> Match:
        return Match.MAYBE

    async def verify(self, token: str) -> Identity | None:
        self.asked.append(token)
        if self.away:
            raise StoreUnavailable
        return user("ann") if token == TOKEN else None


def cookie(token: str = TOKEN, secret: str = SECRET) -> str:
    return f"{token}.{sign(token, secret)}"


def test_the_signature_is_the_one_that_better_auth_makes() -> None:
    # Made with serializeSignedCookie of better-call 1.4.5.
    made = f"{TOKEN}.DpWQ5Sh1SL%2Ffh8QHXQTKY%2F7mwUwZ9bal7pj3tH3Zf2E%3D"
    assert quote(cookie(), safe="") == made


@pytest.mark.parametrize("form", [cookie(), quote(cookie(), safe=""), quote(cookie())])
async def test_a_signed_token_is_verified_without_its_signature(form: str) -> None:
    database_tokens = DatabaseTokens()
    method = SignedCookies(SECRET, database_tokens)
    assert method.match(form) is Match.YES
    identity = await method.verify(form)
    assert identity is not None
    assert identity.sender == "user:ann"
    assert database_tokens.asked == [TOKEN]


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@given(st.integers(0, 42), st.sampled_from(ALPHABET))
async def test_no_other_signature_will_do(place: int, letter: str) -> None:
    signature = sign(TOKEN, SECRET)
    changed = signature[:place] + letter + signature[place + 1 :]
    database_tokens = DatabaseTokens()
    known = await SignedCookies(SECRET, database_tokens).verify(f"{TOKEN}.{changed}")
    assert (known is not None) == (changed == signature)
    assert database_tokens.asked == ([TOKEN] if changed == signature else [])


async def test_the_unused_bits_of_the_last_letter_are_no_second_signature() -> None:
    """Three other texts decode to the same 32 bytes."""
    signature = sign(TOKEN, SECRET)
    last = ALPHABET.index(signature[42])
    for twin in ALPHABET[last - last % 4 : last - last % 4 + 4]:
        other = f"{signature[:42]}{twin}="
        assert base64.b64decode(other) == base64.b64decode(signature)
        known = await SignedCookies(SECRET, DatabaseTokens()).verify(f"{TOKEN}.{other}")
        assert (known is not None) == (other == signature)


@pytest.mark.parametrize(
    "token", [cookie("eve"), cookie(secret="another"), f"{TOKEN}.{sign('eve', SECRET)}"]
)
async def test_a_wrong_or_unknown_signed_token_is_wrong(token: str) -> None:
    assert await SignedCookies(SECRET, DatabaseTokens()).verify(token) is None


async def test_without_the_secret_the_form_is_refused_and_said_once() -> None:
    database_tokens = DatabaseTokens()
    method = SignedCookies(None, database_tokens)
    with capture_logs() as logs:
        for _ in range(3):
            assert method.match(cookie()) is Match.YES
            assert await method.verify(cookie()) is None
    assert database_tokens.asked == []
    assert [line["event"] for line in logs] == [
        "signed tokens are refused: set auth_secret to Better Auth's secret"
    ]


async def test_rows_that_cannot_be_read_are_no_wrong_token() -> None:
    with pytest.raises(StoreUnavailable):
        await SignedCookies(SECRET, DatabaseTokens(away=True)).verify(cookie())


@pytest.mark.parametrize(
    "token",
    [
        TOKEN,
        f".{sign('', SECRET)}",
        f"{TOKEN}.{sign(TOKEN, SECRET)[:-1]}",
        f"{TOKEN}.{sign(TOKEN, SECRET)}=",
        f"{TOKEN}.{sign(TOKEN, SECRET)}\n",
        f"{TOKEN}.{'é' * 43}=",
        f"{TOKEN}%ff.{sign(TOKEN, SECRET)}",
        "%",
        ".",
    ],
)
def test_what_has_not_the_form_is_left_to_others(token: str) -> None:
    assert SignedCookies(SECRET, DatabaseTokens()).match(token) is Match.NO


@given(st.text())
@example("\ud800." + "A" * 43 + "=")
@example("\0." + "A" * 43 + "=")
@example("x" * 8147 + "." + "A" * 43 + "=")
@example("%" * 8192)
@example("%00." + "A" * 43 + "%3D")
async def test_any_text_is_not_mine_or_wrong(token: str) -> None:
    method = SignedCookies(SECRET, DatabaseTokens())
    if method.match(token) is Match.YES:
        assert await method.verify(token) is None


@given(st.text(min_size=1))
def test_what_is_signed_is_found_again(value: str) -> None:
    assert split(f"{value}.{sign(value, SECRET)}") == (value, sign(value, SECRET)) or "%" in value


def test_the_secret_is_in_no_repr() -> None:
    assert "1234567890" not in repr(SignedCookies(SECRET, DatabaseTokens()))
