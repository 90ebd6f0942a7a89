"""Authenticates a peer: with its first message, and again to renew its session."""

from __future__ import annotations

import msgspec
from attrs import define, field, frozen

from relay.auth.login import Limited, Login, Rejected, Unavailable, Verified
from relay.connection.peer import Peer
from relay.metrics import Limit, Metrics
from relay.model.access.identity import Identity, User
from relay.protocol.endings import Ending
from relay.protocol.messages import AUTH, Auth, Error, ErrorCode, RequestId, Success, milliseconds
from relay.protocol.states import State

MAX_FIRST_MESSAGES = 10
"""Messages that may come before authentication."""
MAX_FIRST_MESSAGE_BYTES = 16 * 1024


@frozen
class Granted:
    """The peer is who its token says."""

    identity: Identity
    token: str = field(repr=False)
    welcome: Success
    """The reply to the peer."""


@frozen
class Declined:
    """The peer was told why not, and may go on as before."""


@frozen
class Ended:
    """The connection was ended."""


Outcome = Granted | Declined | Ended


@define(eq=False, repr=False)
class Authentication:
    """Authenticates one peer, at first and for renewals."""

    _peer: Peer
    _login: Login
    _metrics: Metrics
    _verifying: Auth | None = None
    """What is being verified, or was when that was cancelled."""
    _first_messages: int = 0

    def allow_message(self) -> bool:
        """Whether one more message may come before authentication; if not, the connection ends."""
        self._first_messages += 1
        if self._first_messages > MAX_FIRST_MESSAGES:
            self._peer.end(Ending.AUTH_FLOOD)
        return self._first_messages <= MAX_FIRST_MESSAGES

    def require(self, request_id: RequestId) -> None:
        """Refuse a message that came before authentication."""
        self._peer.tell(
            Error(code=ErrorCode.AUTH_REQUIRED, message="Must authenticate first", id=request_id)
        )

    def run_out(self) -> None:
        """End the connection: the time to authenticate is over."""
        if self._verifying is None:
            self.record("timeout")
            self._peer.end(Ending.AUTH_TIMEOUT)
        else:
            self.record("unavailable")
            self._peer.end(Ending.AUTH_UNAVAILABLE, request_id=self._verifying.id)

    async def answer(self, request: Auth) -> Outcome:
        """Verify a token, and say what follows; only success leaves the reply to the caller."""
        self._verifying = request
        # The first attempt has a deadline that began earlier; a renewal has only the login's.
        current = self._peer.identity
        outcome = await self._login.attempt(
            request.token, self._peer.address, current=current, has_deadline=current is None
        )
        if isinstance(outcome, Verified) and self._peer.is_ending:
            return Ended()  # the answer came too late
        self._verifying = None
        match outcome:
            case Verified(identity):
                return self._verified(request, identity)
            case Rejected():
                self.record("failed")
                return self._end(request, Ending.AUTH_FAILED)
            case Limited(limit, wait):
                return self._limited(request, limit, max(1, round(wait * 1000)))
            case Unavailable():
                self.record("unavailable")
                if self._peer.state is State.OPEN:
                    return self._end(request, Ending.AUTH_UNAVAILABLE)
                later = Ending.AUTH_UNAVAILABLE.value
                code = ErrorCode.AUTH_UNAVAILABLE
                return self._decline(request, code, later.message, later.retry_after)

    def record(self, outcome: str, reason: str = "", identity: Identity | None = None) -> None:
        """Count an attempt, and record it in the audit log."""
        self._metrics.auth_attempts[outcome] += 1
        self._peer.record(AUTH, outcome=outcome, reason=reason, identity=identity)

    def _verified(self, request: Auth, identity: Identity) -> Outcome:
        known = self._peer.identity
        if known is None:
            self.record("succeeded", identity=identity)
        elif identity.sender != known.sender:
            self.record("refused", "the connection is another's", identity)
            text = "This connection belongs to somebody else"
            return self._decline(request, ErrorCode.UNAUTHORIZED, text)
        else:
            self.record("succeeded", "renewal", identity)
        return Granted(identity, request.token, _welcome(request, identity))

    def _limited(self, request: Auth, limit: Limit, retry_after: int) -> Outcome:
        if limit is not Limit.RENEWALS:
            self.record("limited")
        if self._peer.state is State.OPEN:
            return self._end(request, Ending.RATE_LIMITED, retry_after)
        text = "Too many attempts to authenticate"
        return self._decline(request, ErrorCode.RATE_LIMITED, text, retry_after)

    def _end(self, request: Auth, ending: Ending, retry_after: int | None = None) -> Ended:
        self._peer.end(ending, request_id=request.id, retry_after=retry_after)
        return Ended()

    def _decline(
        self, request: Auth, code: ErrorCode, text: str, retry_after: int | None = None
    ) -> Declined:
        self._peer.tell(Error(code=code, message=text, id=request.id, retry_after=retry_after))
        return Declined()


def _welcome(request: Auth, identity: Identity) -> Success:
    welcome = Success(code="AUTHENTICATED", message="Authentication successful", id=request.id)
    if isinstance(identity, User):
        welcome = msgspec.structs.replace(
            welcome,
            user_id=identity.user_id,
            session_id=identity.session_id,
            expires_at=milliseconds(identity.expires_at),
        )
    return welcome
