"""Where a client gets its tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import field, frozen

from relay.client.reconnect_policy import TokenReason
from relay.errors import RelayError


class TokenUnavailable(RelayError):
    """There is no token now, but perhaps later. Raise this if a refresh finds no network."""

    def __str__(self) -> str:
        return super().__str__() or "there is no token now"


@frozen
class TokenRequest:
    """Why a token is needed.

    `connect`: for a new connection; a stored token is good enough. `expiring`: the session ends
    soon; the connection stays open meanwhile. `expired`: the session is over. `refused`: the relay
    did not accept the token: return another one.
    """

    reason: TokenReason
    expires_at: int | None = None
    """When the session ends, with `expiring`; ms since the Unix epoch."""
    refused: str | None = field(default=None, repr=False)
    """The token that was refused, with `refused`."""


TokenSource = str | Callable[[TokenRequest], Awaitable[str | None]]
"""A token, or a function that gets one.

The function returns None if nobody is signed in, which ends the client. It raises
`TokenUnavailable` to be asked again later; any other exception ends the client.
"""


async def get_token(source: TokenSource, request: TokenRequest) -> str | None:
    return source if isinstance(source, str) else await source(request)
