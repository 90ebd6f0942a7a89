"""One attempt to authenticate, whichever way it came: over a WebSocket or with an HTTP request."""

from __future__ import annotations

import trio
from attrs import define, frozen

from relay.auth.verifier import Verifier
from relay.errors import StoreUnavailable
from relay.guard.client_address import ClientAddress
from relay.guard.failed_auths import FailedAuths
from relay.guard.rates import RateLimiter
from relay.metrics import Limit, Metrics
from relay.model.access.identity import Identity


@frozen
class Verified:
    """The token is valid."""

    identity: Identity


@frozen
class Rejected:
    """The token is unknown, or has expired."""


@frozen
class Limited:
    """The token was not looked up: there were too many attempts before it."""

    limit: Limit
    wait: float
    """Seconds."""


@frozen
class Unavailable:
    """Nobody could tell in time whether the token is valid."""


Outcome = Verified | Rejected | Limited | Unavailable


@define(eq=False, repr=False)
class Login:
    """Verifies tokens, within the limits on attempts."""

    _verifier: Verifier
    _failures: FailedAuths | None
    """The attempts that failed, and the bans that follow; None for no limit."""
    _renewals: RateLimiter | None
    """Of one sender; None for no limit."""
    _metrics: Metrics
    _timeout: float
    """Seconds for one verification."""

    async def attempt(
        self,
        token: str,
        address: ClientAddress,
        *,
        current: Identity | None = None,
        has_deadline: bool = False,
    ) -> Outcome:
        """Verify a token, and remember for later attempts what came of it.

        `current` is who the connection has authenticated as already. They have proved themselves,
        so that what their neighbours do is not held against them. `has_deadline`: the caller has
        one that is no later than that of a verification.
        """
        limited = self._limit(token, address, current)
        if limited is not None:
            self._metrics.limits_hit[limited.limit] += 1
            return limited
        try:
            if has_deadline:
                identity = await self._verifier.verify(token)
            else:
                with trio.fail_after(self._timeout):
                    identity = await self._verifier.verify(token)
        except (StoreUnavailable, trio.TooSlowError):
            return Unavailable()
        # Nothing waits from here on: whose token it is holds at this moment.
        if self._failures is not None:
            note = self._failures.failed if identity is None else self._failures.succeeded
            note(address, token)
        return Rejected() if identity is None else Verified(identity)

    def _limit(
        self, token: str, address: ClientAddress, current: Identity | None
    ) -> Limited | None:
        if self._failures is not None:
            own = address if current is None else None
            wait = self._failures.wait(own, token)
            if wait is not None:
                return Limited(Limit.FAILED_AUTHS, wait)
            wait = None if own is None else self._failures.begin(own, token)
            if wait is not None:
                return Limited(Limit.UNKNOWN_TOKENS, wait)
        if current is not None and self._renewals is not None:
            wait = self._renewals.hit(current.sender)
            if wait is not None:
                return Limited(Limit.RENEWALS, wait)
        return None
