"""The check of the application that is asked about sessions."""

from __future__ import annotations

import secrets

from attrs import frozen

from relay.auth.methods.application import read_answer, reads_tokens, request_session
from relay.auth.methods.signed_cookie import sign
from relay.doctor.checks import DoctorCheck, Finding, fail, ok
from relay.outgoing.http_client import HttpResponse, RequestFailed, open_http_client
from relay.settings.settings import Settings

REDIRECTS = range(300, 400)
NOT_FOUND, TOO_MANY_REQUESTS = 404, 429


@frozen
class ApplicationChecks:
    """Asks about a made-up token, if `auth_session_url` is set."""

    _settings: Settings

    def checks(self) -> list[DoctorCheck]:
        return (
            [DoctorCheck("application", self._look, ("auth_session_url",))]
            if self._settings.auth_session_url
            else []
        )

    async def _look(self) -> Finding:
        url, secret = self._settings.auth_session_url, self._settings.auth_secret
        assert url is not None
        token = secrets.token_hex(16)
        try:
            response = await _ask(url, token)
            if secret is not None and not reads_tokens(response):
                response = await _ask(url, f"{token}.{sign(token, secret)}")
        except RequestFailed as why:
            do = "check that this machine can reach it; set SSL_CERT_FILE to use a private CA"
            return fail(f"cannot ask {url} about sessions: {why}", do)
        try:
            user = read_answer(token, response)
        except RequestFailed as why:
            return fail(f"{url} answers {why}", _what_to_do(response.status))
        if user is not None:
            do = "set auth_session_url to Better Auth itself: this would let everybody in"
            return fail(f"{url} accepts a made-up token", do)
        if not reads_tokens(response):
            return fail(
                f"{url} answers, but does not read bearer tokens",
                "add the plugin bearer() to Better Auth; if it is there with requireSignature, set"
                " auth_secret for this check, and let clients send the signed token",
            )
        return ok(f"{url} answers, and reads bearer tokens")


async def _ask(url: str, token: str) -> HttpResponse:
    async with open_http_client() as http_client:
        return await request_session(http_client, url, token)


def _what_to_do(status: int) -> str:
    if status in REDIRECTS:
        return "set auth_session_url to the target of the redirect, which relay does not follow"
    if status == TOO_MANY_REQUESTS:
        return "exempt relay from Better Auth's rate limit: see docs/operations.md"
    if status == NOT_FOUND:
        return "set auth_session_url to the whole URL, such as https://…/api/auth/get-session"
    return "set auth_session_url to Better Auth's get-session, without a login page in front of it"
