"""Tokens that their issuer is asked about, by RFC 7662. Floor 2.

Answers are remembered for seconds, those about good tokens apart from those about wrong ones:
whoever guesses tokens must not push out what is known of good ones. Wrong ones are remembered
since what costs most is the client that comes back with an expired token again and again, and
since what is not active now will not become so.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import quote_plus

import msgspec
import structlog
import trio
from attrs import define, field

from relay.auth.claims import digest, user_of
from relay.auth.memory import Memory, Remembered
from relay.auth.way import Claim
from relay.errors import StoreUnavailable
from relay.model import User
from relay.outbound import Condition, Outbound, Unanswered

AT_ONCE = 16
"""Questions under way together."""
PATIENCE = 5.0
"""Seconds for one answer."""
LARGEST = 64 * 1024
MOST_REMEMBERED = 10_000
"""Answers of each kind."""

_ASKABLE = re.compile(r"[\x20-\x7e]+")  # RFC 6749, appendix A.12: no other text is a token

log = structlog.get_logger()


class _Answer(msgspec.Struct):
    active: bool
    sub: str | None = None
    exp: int | float | None = None
    aud: str | list[str] | None = None
    sid: str | None = None
    jti: str | None = None


@define(eq=False)
class Introspection:
    """Asks, and remembers."""

    _outbound: Outbound
    _url: str
    _client_id: str
    _client_secret: str = field(repr=False)
    _audience: str | None
    _remember_for: float
    """Seconds."""
    _good: Memory = field(init=False)
    _wrong: Memory = field(init=False)
    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(AT_ONCE))
    _condition: Condition = field(factory=lambda: Condition("introspection"))
    _complained: bool = False

    def __attrs_post_init__(self) -> None:
        self._good = Memory(self._remember_for, MOST_REMEMBERED)
        self._wrong = Memory(self._remember_for, MOST_REMEMBERED)

    def claim(self, token: str) -> Claim:
        return Claim.PERHAPS if _ASKABLE.fullmatch(token) else Claim.NOT_MINE

    async def verify(self, token: str) -> User | None:
        key = digest(token)
        known = self._recall(key)
        if known is None:
            async with self._limiter:
                # Meanwhile another may have asked the same.
                known = self._recall(key)
                if known is None:
                    return await self._ask_and_remember(key, token)
        return known.user

    def forget(self, *, user_id: str | None = None, session_id: str | None = None) -> None:
        """Ask anew about the tokens of this user, or of this session; of neither, about all."""
        self._good.forget(user_id=user_id, session_id=session_id)
        if user_id is None and session_id is None:
            self._wrong.forget()

    def _recall(self, key: bytes) -> Remembered | None:
        return self._good.recall(key) or self._wrong.recall(key)

    async def _ask_and_remember(self, key: bytes, token: str) -> User | None:
        changes = self._good.changes
        user = await self._ask(token)
        if user is None:
            self._wrong.keep(key, None)
        elif self._good.changes == changes:
            self._good.keep(key, user)
        return user

    async def _ask(self, token: str) -> User | None:
        try:
            with trio.fail_after(PATIENCE):
                body = await self._outbound.post_form(
                    self._url,
                    {"token": token, "token_type_hint": "access_token"},
                    authorization=self._authorization,
                    most=LARGEST,
                )
            answer = _read(body)
        except trio.TooSlowError:
            self._condition.fails("too slow")
            raise StoreUnavailable from None
        except Unanswered as unanswered:
            self._condition.fails(str(unanswered))
            raise
        self._condition.answers()
        return self._judge(token, answer)

    @property
    def _authorization(self) -> str:
        """RFC 6749, section 2.3.1: each part is encoded like a form before they are joined."""
        pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret)}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _judge(self, token: str, answer: _Answer) -> User | None:
        if not answer.active or not self._is_for_us(answer):
            return None
        if answer.exp is None:
            if not self._complained:
                self._complained = True
                log.warning("active tokens are refused: introspection does not say their exp")
            return None
        return user_of(
            token,
            "introspection",
            subject=answer.sub,
            expires=answer.exp,
            ids=(answer.sid, answer.jti),
        )

    def _is_for_us(self, answer: _Answer) -> bool:
        if self._audience is None:
            return True
        audiences = answer.aud if isinstance(answer.aud, list) else [answer.aud]
        return self._audience in audiences


def _read(body: bytes) -> _Answer:
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise Unanswered("something that is no answer of RFC 7662") from None
