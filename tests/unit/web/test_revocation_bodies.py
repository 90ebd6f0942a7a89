"""The body of `POST /revocations`."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.access.change import Change
from relay.web.revocations import revocation_in

DIGEST = hashlib.sha256(b"t0ken").digest()
BASE64, URLSAFE = base64.b64encode(DIGEST), base64.urlsafe_b64encode(DIGEST)
SPELLINGS = (
    *(DIGEST.hex(), DIGEST.hex().upper(), BASE64.decode(), URLSAFE.decode()),
    *(BASE64.decode().rstrip("="), URLSAFE.decode().rstrip("=")),
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_body_names_what_has_ended(spelling: str) -> None:
    body = f'{{"tokenSha256": "{spelling}", "userId": "ann", "sessionId": "s-1"}}'
    assert revocation_in(body.encode()) == [
        Change("session", "s-1"),
        Change("user", "ann"),
        Change("token", DIGEST.hex()),
    ]


def test_ids_may_be_numbers() -> None:
    assert revocation_in(b'{"userId": 7, "sessionId": -9223372036854775808}') == [
        Change("session", "-9223372036854775808"),
        Change("user", "7"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        *("", "null", "[]", "{}", '"s-1"', '{"sessionId": null}', '{"sessionId": ""}'),
        *('{"sessionId": 7.5}', '{"userId": "' + "a" * 256 + '"}', '{"token": "t0ken"}'),
        *('{"tokenSha256": ""}', '{"tokenSha256": "t0ken"}', '{"tokenSha256": "' + "g" * 64 + '"}'),
        "[" * 100_000,
    ],
)
def test_anything_else_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        revocation_in(body.encode())
    assert "t0ken" not in str(refused.value).replace("tokenSha256", "")


@given(st.binary(max_size=200))
def test_no_body_is_an_error_of_relay(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        revocation_in(body)
