"""Sessions outside the database: relay asks the application about a token.

The application is Better Auth's `get-session` with the bearer plugin. Better Auth keeps sessions
elsewhere with `secondaryStorage`, and before 1.7 keeps rows of ended sessions that look valid
(`preserveSessionInDatabase`). The request says that it does not use the session, so it does not
extend it. Only the answer `null` makes a token wrong: everything else is a problem of the
application, not of the client.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
import trio
from attrs import define, field

from relay.auth.methods.claims import MAX_ID_LENGTH
from relay.auth.methods.method import Match
from relay.auth.token_cache import MAX_REQUESTS, TokenAnswers
from relay.model.access.identity import User
from relay.model.access.token_digest import token_digest
from relay.model.text import is_storable
from relay.outgoing.http_client import HttpResponse, RequestFailed

MAX_SESSION_BYTES = 64 * 1024
MAX_BEARER_LENGTH = 4096
"""Characters; a longer one does not fit into the header of a request everywhere."""
QUERY = "disableRefresh=true&disableCookieCache=true"
"""Do not extend the session, and do not trust a cached cookie."""

_BEARER = re.compile(rf"[\x21-\x7e]{{1,{MAX_BEARER_LENGTH}}}")


class BearerGet(Protocol):
    """Gets with a bearer token, as `relay.outgoing.http_client` does."""

    async def get_any(self, url: str, *, token: str | None, max_bytes: int) -> HttpResponse:
        """The response, whatever its status; `RequestFailed`."""


class _Session(msgspec.Struct, rename="camel"):
    id: str | int
    user_id: str | int
    expires_at: datetime | int | float
    token: str | None = None


class _User(msgspec.Struct, rename="camel"):
    id: str | int | None = None
    banned: bool | None = None
    ban_expires: datetime | int | float | None = None


class _SessionAnswer(msgspec.Struct):
    session: _Session | None = None
    user: _User | None = None


@define(eq=False)
class ApplicationSessions:
    """Asks the application about session tokens, and caches its answers."""

    _http_client: BearerGet
    _url: str
    _cache_seconds: float
    _answers: TokenAnswers = field(init=False)
    _again: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS))
    """For sessions of open connections, however many unknown tokens wait."""
    _reads_tokens: bool = False
    """Whether the application has shown that it reads bearer tokens."""

    def __attrs_post_init__(self) -> None:
        self._answers = TokenAnswers("application", self._request, self._cache_seconds)

    def match(self, token: str) -> Match:
        return Match.MAYBE if _BEARER.fullmatch(token) else Match.NO

    async def verify(self, token: str) -> User | None:
        return await self._answers.get(token)

    async def ask_again(self, user: User) -> User | None:
        """What the application says now about a session that it knew; None if it has ended."""
        assert user.token is not None
        async with self._again:
            return await self._answers.renew(user.token)

    def forget(self, *, user_id: str | None = None, session_id: str | None = None) -> None:
        """Drop the answers about this user or this session; without either, all answers."""
        self._answers.forget(user_id=user_id, session_id=session_id)

    async def _request(self, token: str) -> User | None:
        response = await request_session(self._http_client, self._url, token)
        user = read_answer(token, response)
        self._reads_tokens |= reads_tokens(response)
        if not self._reads_tokens:
            raise RequestFailed(
                "null, as if it did not read the token: Better Auth needs the bearer plugin"
            )
        return user


async def request_session(http_client: BearerGet, url: str, token: str) -> HttpResponse:
    """Ask about a token once; `RequestFailed` if the application does not answer."""
    return await http_client.get_any(f"{url}?{QUERY}", token=token, max_bytes=MAX_SESSION_BYTES)


def reads_tokens(response: HttpResponse) -> bool:
    """Whether a good answer shows that the application has read the token. Better Auth removes the
    cookie of a wrong one, but without the bearer plugin it sees no token at all. A cookie that is
    set says nothing: load balancers do that."""
    return response.removes_cookie or response.body.strip() != b"null"


def read_answer(token: str, response: HttpResponse) -> User | None:
    """The user that an answer is about; None if the token is wrong, `RequestFailed` if the answer
    does not tell."""
    if response.status != 200:
        raise RequestFailed(f"status {response.status}")
    try:
        answer = msgspec.json.decode(response.body, type=_SessionAnswer | None)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise RequestFailed("something that is not a session of Better Auth") from None
    if answer is None or answer.session is None:
        return None
    session, user = answer.session, answer.user or _User()
    unsigned = unquote(token).partition(".")[0]
    if session.token not in {None, token, unsigned} or not _is_of(session, user):
        raise RequestFailed("the session of another token: is there a cache in front of it?")
    plain = session.token or unsigned
    hashed = token_digest(plain).hex()
    session_id = _id(session.id)
    if session_id in {token, plain}:  # relay shows ids
        session_id = f"application-{hashed[:32]}"
    expires_at = _instant(session.expires_at)
    if expires_at <= datetime.now(UTC) or _is_banned(user):
        return None
    return User(
        _id(session.user_id),
        session_id,
        expires_at,
        source="application",
        token=token,
        token_hash=hashed,
    )


def _is_of(session: _Session, user: _User) -> bool:
    # Numeric ids may be text in one place and numbers in another.
    return user.id is None or str(user.id) == str(session.user_id)


def _id(value: str | int) -> str:
    text = str(value)
    if not 0 < len(text) <= MAX_ID_LENGTH or not is_storable(text):
        raise RequestFailed("an id that relay cannot store")
    return text


def _instant(value: Any) -> datetime:
    """A time as JSON has it: text with a time zone, or milliseconds."""
    if isinstance(value, datetime) and value.tzinfo is None:
        raise RequestFailed("a time without a time zone")
    try:
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise RequestFailed("a time that relay cannot read") from None


def _is_banned(user: _User) -> bool:
    if not user.banned:
        return False
    return user.ban_expires is None or _instant(user.ban_expires) > datetime.now(UTC)
