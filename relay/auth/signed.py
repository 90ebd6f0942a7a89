"""The signed form of a session token, as Better Auth's cookie has it. Floor 2.

`token.signature`: an HMAC-SHA256 of the token under Better Auth's secret, in padded base64. All of
it may be URL-encoded, as it is in the cookie and in the bearer plugin's `set-auth-token` header.
Without the secret the form is refused: to cut the signature off unseen would make of a forged
cookie one that is as good as the token in it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from urllib.parse import unquote

import structlog
from attrs import define, field

from relay.auth.way import Claim, Way
from relay.model import Identity

_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{43}=")  # 32 bytes

log = structlog.get_logger()


@define(eq=False)
class SignedTokens:
    """Checks the signature, then has the token itself verified."""

    _secret: str | None = field(repr=False)
    _rows: Way
    _refused_before: bool = False

    def claim(self, token: str) -> Claim:
        return Claim.NOT_MINE if split(token) is None else Claim.MINE

    async def verify(self, token: str) -> Identity | None:
        parts = split(token)
        if parts is None:
            return None
        if self._secret is None:
            self._say_what_is_missing()
            return None
        value, signature = parts
        if not hmac.compare_digest(sign(value, self._secret), signature):
            return None
        if self._rows.claim(value) is Claim.MINE:  # Better Auth signs sessions and nothing else
            return None
        return await self._rows.verify(value)

    def _say_what_is_missing(self) -> None:
        if not self._refused_before:
            self._refused_before = True
            log.warning("signed tokens are refused: set auth_secret to Better Auth's secret")


def split(token: str) -> tuple[str, str] | None:
    """The value and its signature; None when the text has not this form."""
    if "%" in token:
        try:
            token = unquote(token, errors="strict")
        except UnicodeError:
            return None
    value, _, signature = token.rpartition(".")
    return (value, signature) if value and _SIGNATURE.fullmatch(signature) else None


def sign(value: str, secret: str) -> str:
    """The signature that belongs to a value."""
    message = value.encode("utf-8", "surrogatepass")
    digest = hmac.new(secret.encode(), message, hashlib.sha256).digest()
    return base64.b64encode(digest).decode()
