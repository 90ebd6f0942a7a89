"""Token introspection: relay asks the issuer about a token (RFC 7662)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote_plus

import msgspec
import structlog
from attrs import define, field

from relay.auth.methods.claims import user_of
from relay.auth.methods.method import Match
from relay.auth.token_cache import TokenAnswers
from relay.model.access.identity import User
from relay.outgoing.http_client import RequestFailed

MAX_ANSWER_BYTES = 64 * 1024

_TOKEN = re.compile(r"[\x20-\x7e]+")  # the characters of a token: RFC 6749, appendix A.12

log = structlog.get_logger()


class HttpPostForm(Protocol):
    """Posts a form, as `relay.outgoing.http_client` does."""

    async def post_form(
        self, url: str, form: Mapping[str, str], *, authorization: str, max_bytes: int
    ) -> bytes:
        """The body of the answer, of at most so many bytes; `RequestFailed`."""


class _Answer(msgspec.Struct):
    active: bool
    sub: str | None = None
    exp: int | float | None = None
    aud: str | list[str] | None = None
    sid: str | None = None
    jti: str | None = None


@define(eq=False)
class Introspection:
    """Asks the issuer, and caches its answers."""

    _http_client: HttpPostForm
    _url: str
    _client_id: str
    _client_secret: str = field(repr=False)
    _audience: str | None
    _cache_seconds: float
    _answers: TokenAnswers = field(init=False)
    _warned: bool = False

    def __attrs_post_init__(self) -> None:
        self._answers = TokenAnswers("introspection", self._request, self._cache_seconds)

    def match(self, token: str) -> Match:
        return Match.MAYBE if _TOKEN.fullmatch(token) else Match.NO

    async def verify(self, token: str) -> User | None:
        return await self._answers.get(token)

    def forget(self, *, user_id: str | None = None, session_id: str | None = None) -> None:
        """Drop the answers about this user or this session; without either, all answers."""
        self._answers.forget(user_id=user_id, session_id=session_id)

    async def _request(self, token: str) -> User | None:
        body = await self._http_client.post_form(
            self._url,
            {"token": token, "token_type_hint": "access_token"},
            authorization=self._authorization,
            max_bytes=MAX_ANSWER_BYTES,
        )
        return self._user(token, _read(body))

    @property
    def _authorization(self) -> str:
        """HTTP Basic, with both parts form-encoded first (RFC 6749, section 2.3.1)."""
        pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret)}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _user(self, token: str, answer: _Answer) -> User | None:
        if not answer.active or not self._has_audience(answer):
            return None
        if answer.exp is None:
            if not self._warned:
                self._warned = True
                log.warning("active tokens are refused: introspection does not say their exp")
            return None
        return user_of(
            token,
            "introspection",
            subject=answer.sub,
            expires=answer.exp,
            ids=(answer.sid, answer.jti),
        )

    def _has_audience(self, answer: _Answer) -> bool:
        if self._audience is None:
            return True
        audiences = answer.aud if isinstance(answer.aud, list) else [answer.aud]
        return self._audience in audiences


def _read(body: bytes) -> _Answer:
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise RequestFailed("something that is not an introspection response (RFC 7662)") from None
