"""The check of the URL that has the keys for JWTs."""

from __future__ import annotations

import json

from attrs import frozen

from relay.auth.methods.keys import import_public
from relay.doctor.checks import DoctorCheck, Finding, fail, ok
from relay.outgoing.http_client import RequestFailed, open_http_client
from relay.settings.settings import Settings

MAX_KEY_SET_BYTES = 1 << 20


@frozen
class IssuerChecks:
    """Fetches the keys of the issuer, if `jwt_jwks_url` is set."""

    _settings: Settings

    def checks(self) -> list[DoctorCheck]:
        return (
            [DoctorCheck("jwks", self._jwks, ("jwt_jwks_url",))]
            if self._settings.jwt_jwks_url
            else []
        )

    async def _jwks(self) -> Finding:
        url = self._settings.jwt_jwks_url
        assert url is not None
        try:
            async with open_http_client() as http_client:
                listed = json.loads(await http_client.get(url, max_bytes=MAX_KEY_SET_BYTES))["keys"]
                keys = [key for jwk in listed if (key := import_public(jwk)) is not None]
        except RequestFailed as why:
            do = "check that this machine can reach it; set SSL_CERT_FILE to use a private CA"
            return fail(f"cannot fetch the keys of the issuer from {url}: {why}", do)
        except (ValueError, KeyError, TypeError, RecursionError):
            keys = []
        if not keys:
            return fail(f"{url} has no key for JWTs", "set jwt_jwks_url to the URL of a JWK set")
        return ok(f"the issuer publishes {len(keys)} keys for JWTs")
