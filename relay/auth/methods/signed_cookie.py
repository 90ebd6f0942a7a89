"""Session tokens in the signed form of Better Auth's cookie.

The form is `token.signature`: an HMAC-SHA256 of the token under Better Auth's secret, in padded
base64. All of it may be URL-encoded, as in the cookie and in the bearer plugin's `set-auth-token`
header. Without the secret such tokens are refused: ignoring the signature would make a forged
cookie as good as the token in it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from urllib.parse import unquote

import structlog
from attrs import define, field

from relay.auth.methods.method import Match, Method
from relay.model.access.identity import Identity

_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{43}=")  # 32 bytes

log = structlog.get_logger()


@define(eq=False, repr=False)
class SignedCookies:
    """Checks the signature, then looks up the session token."""

    _secret: str | None = field(repr=False)
    _sessions: Method
    _warned: bool = False

    def match(self, token: str) -> Match:
        return Match.NO if split(token) is None else Match.YES

    async def verify(self, token: str) -> Identity | None:
        parts = split(token)
        if parts is None:
            return None
        if self._secret is None:
            self._warn_once()
            return None
        value, signature = parts
        if not hmac.compare_digest(sign(value, self._secret), signature):
            return None
        if self._sessions.match(value) is Match.YES:  # Better Auth signs sessions and nothing else
            return None
        return await self._sessions.verify(value)

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("signed tokens are refused: set auth_secret to Better Auth's secret")


def split(token: str) -> tuple[str, str] | None:
    """The token and its signature; None if the text does not have this form."""
    if "%" in token:
        try:
            token = unquote(token, errors="strict")
        except UnicodeError:
            return None
    value, _, signature = token.rpartition(".")
    return (value, signature) if value and _SIGNATURE.fullmatch(signature) else None


def unsigned(token: str) -> str:
    """The session token in a token of either form."""
    parts = split(token)
    return token if parts is None else parts[0]


def sign(value: str, secret: str) -> str:
    """The signature of a token."""
    message = value.encode("utf-8", "surrogatepass")
    digest = hmac.new(secret.encode(), message, hashlib.sha256).digest()
    return base64.b64encode(digest).decode()
