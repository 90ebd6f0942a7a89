"""The issuer of JWTs, where its keys are fetched from. Floor 6."""

from __future__ import annotations

import json

from attrs import frozen

from relay.auth.keys import import_public
from relay.doctor.checks import Check, Finding, fail, ok
from relay.outbound import Unanswered, open_outbound
from relay.settings import Settings

LARGEST = 1 << 20
"""Bytes."""


@frozen
class IssuerChecks:
    """The check of an issuer, where the settings name one."""

    _settings: Settings

    def checks(self) -> list[Check]:
        return [Check("jwks", self._jwks, ("jwt_jwks_url",))] if self._settings.jwt_jwks_url else []

    async def _jwks(self) -> Finding:
        url = self._settings.jwt_jwks_url
        assert url is not None
        try:
            async with open_outbound() as outbound:
                listed = json.loads(await outbound.get(url, most=LARGEST))["keys"]
                keys = [key for jwk in listed if (key := import_public(jwk)) is not None]
        except Unanswered as why:
            do = "see that this machine reaches it; SSL_CERT_FILE names authorities of your own"
            return fail(f"the issuer's keys cannot be fetched from {url}: {why}", do)
        except (ValueError, KeyError, TypeError, RecursionError):
            keys = []
        if not keys:
            return fail(
                f"what {url} answers has no key for JWTs", "let jwt_jwks_url name a JWK set"
            )
        return ok(f"the issuer publishes {len(keys)} keys for JWTs")
