"""JSON Web Tokens of one issuer, for one audience, by pinned algorithms. Floor 2.

Checked without asking anybody: such a token holds until it expires, whatever becomes of its user
meanwhile. So issuers should make them short.
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

from relay.auth.claims import user_of
from relay.auth.keys import Keys, Pinned
from relay.auth.way import Claim
from relay.model import User

LEEWAY = 10
"""Seconds that the issuer's clock may be ahead of ours. It does not lengthen a token's life."""

TYPES = {"", "jwt", "at+jwt"}
"""An issuer signs other things with the same key, logout tokens among them; they say so."""

_FORM = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class Header(msgspec.Struct):
    """What a token says of itself, none of it trusted."""

    alg: Any = None
    kid: Any = None
    typ: Any = ""
    crit: Any = None


@define(eq=False)
class JsonWebTokens:
    """Checks them."""

    _keys: Keys
    _issuer: str
    _audience: str
    _algorithms: Collection[str]

    def claim(self, token: str) -> Claim:
        return Claim.NOT_MINE if read_header(token) is None else Claim.MINE

    async def verify(self, token: str) -> User | None:
        header = read_header(token)
        if header is None or not self._allows(header):
            return None
        key = await self._keys.find(header.alg, header.kid)
        if key is None:
            return None
        try:
            claims = jwt.decode(token, key, registry=Pinned(header.alg)).claims
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
            and header.typ.lower().removeprefix("application/") in TYPES
            and header.crit is None  # we know no extension
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
    """The header of what has the form of a JSON Web Token; None for anything else."""
    match = _FORM.fullmatch(token)
    if match is None:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(match[1] + "=="), type=Header)
    except (ValueError, RecursionError):
        return None
