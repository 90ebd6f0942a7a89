"""Who a peer is: its tokens, what may come before the first good one, and the answers. Floor 3."""

from __future__ import annotations

from typing import Protocol

import msgspec
import trio
from attrs import define, field

from relay.closing import Ending
from relay.errors import StoreUnavailable
from relay.guard.address import ClientAddress
from relay.guard.guard import Guard
from relay.metrics import Limit, Metrics
from relay.model import Identity, User, milliseconds
from relay.protocol.messages import (
    AUTH,
    Auth,
    Error,
    ErrorCode,
    RequestId,
    ServerMessage,
    Success,
)

FIRST_MESSAGES = 10
"""So many messages may come before authentication."""
FIRST_MESSAGE_SIZE = 16 * 1024
"""Bytes of such a message."""


class Verifier(Protocol):
    async def verify(self, token: str) -> Identity | None:
        """Whose token it is; `StoreUnavailable` when that cannot be told now."""


class Peer(Protocol):
    """The connection whose peer says who it is."""

    @property
    def address(self) -> ClientAddress: ...

    @property
    def identity(self) -> Identity:
        """Whose the connection is, once it has begun."""

    def begin(self, identity: Identity) -> bool:
        """Be theirs from now on; False when they have too many, and this one has ended."""

    def renew(self, identity: Identity) -> object:
        """Go on as the same user or service, who has proved it again."""

    def tell(self, message: ServerMessage) -> object: ...

    def end(
        self, ending: Ending, *, request_id: RequestId = None, retry_after: int | None = None
    ) -> object: ...

    def audit(
        self, what: str, *, outcome: str, reason: str = "", identity: Identity | None = None
    ) -> object: ...


@define(eq=False)
class Authentication:
    """Of one connection: the first one, which it depends on, and renewals."""

    _peer: Peer
    _verifier: Verifier
    _guard: Guard
    _metrics: Metrics
    _timeout: float
    """Seconds that a verification may take."""
    token: str | None = field(default=None, repr=False)
    """That the peer authenticated with last: to know it again where it does not belong."""
    _verifying: Auth | None = None
    _first_messages: int = 0

    @property
    def done(self) -> bool:
        """Whether it is known who the peer is."""
        return self.token is not None

    def allow_message(self) -> bool:
        """Whether one more message may come before it is known."""
        self._first_messages += 1
        if self._first_messages > FIRST_MESSAGES:
            self._peer.end(Ending.AUTH_FLOOD)
        return self._first_messages <= FIRST_MESSAGES

    def require(self, request_id: RequestId) -> None:
        """Refuse a message that came before it is known."""
        self._peer.tell(
            Error(code=ErrorCode.AUTH_REQUIRED, message="Must authenticate first", id=request_id)
        )

    def run_out(self) -> None:
        """There was no more time for it."""
        if self._verifying is None:
            self._record("timeout")
            self._peer.end(Ending.AUTH_TIMEOUT)
        else:
            self._record("unavailable")
            self._peer.end(Ending.AUTH_UNAVAILABLE, request_id=self._verifying.id)

    async def handle(self, request: Auth) -> None:
        """Find out whose token it is, and go on as they."""
        if self._hold_off(request):
            return
        self._verifying = request
        try:
            # The first one has a deadline that began earlier; a renewal has only this, and what
            # comes behind it waits.
            with trio.fail_after(self._timeout):
                identity = await self._verifier.verify(request.token)
        except (StoreUnavailable, trio.TooSlowError):
            self._not_verified(request)
        else:
            self._go_on(request, identity)
        finally:
            self._verifying = None

    def _go_on(self, request: Auth, identity: Identity | None) -> None:
        """Nothing waits here: whose token it is holds at this moment."""
        self._remember(request, good=identity is not None)
        if identity is None:
            self._record("failed")
            self._peer.end(Ending.AUTH_FAILED, request_id=request.id)
        elif not self.done:
            self._begin(request, identity)
        else:
            self._renew(request, identity)

    def _hold_off(self, request: Auth) -> bool:
        """Whether this token is not even looked up, because too many have failed."""
        attempts = self._guard.attempts
        # Who is in already has proved itself: what its neighbours do is not held against it.
        address = None if self.done else self._peer.address
        wait = None if attempts is None else attempts.wait(address, request.token)
        limit = Limit.FAILED_AUTHS
        if wait is None and self.done and self._guard.renewals is not None:
            wait = self._guard.renewals.hit(self._peer.identity.sender)
            limit = Limit.RENEWALS
        if wait is None:
            return False
        self._metrics.limits_hit[limit] += 1
        if limit is Limit.FAILED_AUTHS:
            self._record("limited")
        retry_after = max(1, round(wait * 1000))
        if self.done:
            text = "Too many attempts to authenticate"
            self._refuse(request, ErrorCode.RATE_LIMITED, text, retry_after)
        else:
            self._peer.end(Ending.RATE_LIMITED, request_id=request.id, retry_after=retry_after)
        return True

    def _remember(self, request: Auth, *, good: bool) -> None:
        attempts = self._guard.attempts
        if attempts is not None:
            note = attempts.succeeded if good else attempts.failed
            note(self._peer.address, request.token)

    def _not_verified(self, request: Auth) -> None:
        self._record("unavailable")
        if self.done:
            goodbye = Ending.AUTH_UNAVAILABLE.value
            code = ErrorCode.AUTH_UNAVAILABLE
            self._refuse(request, code, goodbye.message, goodbye.retry_after)
        else:
            self._peer.end(Ending.AUTH_UNAVAILABLE, request_id=request.id)

    def _begin(self, request: Auth, identity: Identity) -> None:
        self._record("succeeded", identity=identity)
        if self._peer.begin(identity):
            self.token = request.token
            self._welcome(request, identity)

    def _renew(self, request: Auth, identity: Identity) -> None:
        if identity.sender != self._peer.identity.sender:
            self._record("refused", "the connection is another's", identity)
            text = "This connection belongs to somebody else"
            self._refuse(request, ErrorCode.UNAUTHORIZED, text)
            return
        self._peer.renew(identity)
        self.token = request.token
        self._record("succeeded", "renewal")
        self._welcome(request, identity)

    def _refuse(
        self, request: Auth, code: ErrorCode, text: str, retry_after: int | None = None
    ) -> None:
        self._peer.tell(Error(code=code, message=text, id=request.id, retry_after=retry_after))

    def _welcome(self, request: Auth, identity: Identity) -> None:
        welcome = Success(code="AUTHENTICATED", message="Authentication successful", id=request.id)
        if isinstance(identity, User):
            welcome = msgspec.structs.replace(
                welcome,
                user_id=identity.user_id,
                session_id=identity.session_id,
                expires_at=milliseconds(identity.expires_at),
            )
        self._peer.tell(welcome)

    def _record(self, outcome: str, reason: str = "", identity: Identity | None = None) -> None:
        self._metrics.auth_attempts[outcome] += 1
        self._peer.audit(AUTH, outcome=outcome, reason=reason, identity=identity)
