"""Where a client gets its token from, each time that it needs one. Floor 2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import field, frozen

from relay.client.manners import Reason
from relay.errors import RelayError


class TokenUnavailable(RelayError):
    """There is no token now, but perhaps later: raise it where a refresh finds no network."""

    def __str__(self) -> str:
        return super().__str__() or "there is no token now"


@frozen
class TokenRequest:
    """Why a token is asked for.

    `connect`: for a new connection; the token that is kept will do. `expiring`: the session ends
    soon; the connection goes on meanwhile. `expired`: it is over. `refused`: the relay does not
    take this one, and only another is of use.
    """

    reason: Reason
    expires_at: int | None = None
    """When the session ends, with `expiring`; ms since the Unix epoch."""
    refused: str | None = field(default=None, repr=False)
    """The token that was refused, with `refused`."""


TokenSource = str | Callable[[TokenRequest], Awaitable[str | None]]
"""A token, or a function that gets one. None: nobody is signed in, and the client ends. It raises
`TokenUnavailable` to be asked again later; what else it raises ends the client with it."""


async def ask_for_token(source: TokenSource, request: TokenRequest, *, within: float) -> str | None:
    """`TokenUnavailable` also when there is none within so many seconds."""
    if isinstance(source, str):
        return source
    with trio.move_on_after(within):
        return await source(request)
    raise TokenUnavailable("the token did not come in time")
