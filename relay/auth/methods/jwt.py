"""JSON Web Tokens of one issuer, for one audience, with pinned algorithms.

They are verified offline, so a token is valid until it expires, even if its user is signed out
before. Issuers should keep their lifetimes short.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from typing import Any

import msgspec
from attrs import define
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry

from relay.auth.methods.claims import user_of
from relay.auth.methods.keys import KeySource, PinnedAlgorithms
from relay.auth.methods.method import Match
from relay.model.access.identity import User

LEEWAY = 10
"""Seconds that the issuer's clock may be ahead of ours. Expiry gets no leeway."""

TOKEN_TYPES = {"", "jwt", "at+jwt"}
"""Accepted values of `typ`. Issuers sign other things with the same key, such as logout tokens."""

_FORM = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class Header(msgspec.Struct):
    """The unverified header of a token."""

    alg: Any = None
    kid: Any = None
    typ: Any = ""
    crit: Any = None


@define(eq=False)
class JsonWebTokens:
    """Verifies signatures and claims."""

    _keys: KeySource
    _issuer: str
    _audience: str
    _algorithms: Collection[str]

    def match(self, token: str) -> Match:
        return Match.NO if read_header(token) is None else Match.YES

    async def verify(self, token: str) -> User | None:
        header = read_header(token)
        if header is None or not self._allows(header):
            return None
        key = await self._keys.find(header.alg, header.kid)
        if key is None:
            return None
        try:
            claims = jwt.decode(token, key, registry=PinnedAlgorithms(header.alg)).claims
            self._rules().validate(claims)
        except (JoseError, ValueError, RecursionError):
            return None
        return user_of(
            token,
            "jwt",
            subject=claims["sub"],
            expires=claims["exp"],
            ids=(claims.get("sid"), claims.get("jti")),
        )

    def _allows(self, header: Header) -> bool:
        return (
            isinstance(header.alg, str)
            and header.alg in self._algorithms
            and isinstance(header.kid, str | None)
            and isinstance(header.typ, str)
            and header.typ.lower().removeprefix("application/") in TOKEN_TYPES
            and header.crit is None  # relay supports no extension
        )

    def _rules(self) -> JWTClaimsRegistry:
        return JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._audience},
            exp={"essential": True},
            sub={"essential": True},
        )


def read_header(token: str) -> Header | None:
    """The header of a token; None if it does not have the form of a JSON Web Token."""
    match = _FORM.fullmatch(token)
    if match is None:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(match[1] + "=="), type=Header)
    except (ValueError, RecursionError):
        return None
