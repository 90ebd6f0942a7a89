"""A request that is made again until the relay accepts or refuses it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.connection.messages import Fields
from relay.client.errors import ServerError
from relay.client.reconnect_policy import TRANSIENT_ERRORS, ReconnectPolicy


async def settle(
    request: PendingRequest,
    ask_again: Callable[[ClientConnection], PendingRequest],
    is_wanted: Callable[[], bool],
    policy: ReconnectPolicy,
) -> Fields | None:
    """The answer with which the relay accepts; None once it is not wanted any more.

    Where the relay can neither accept nor refuse now, ask again after a pause. A refusal raises
    `ServerError`.
    """
    while True:
        try:
            answer = await request.answer()
        except ServerError as error:
            if not is_wanted():
                return None
            if error.code not in TRANSIENT_ERRORS:
                raise
            pause = policy.until_retry(error)
        else:
            return answer if is_wanted() else None
        await trio.sleep(pause)
        if not is_wanted():
            return None
        request = ask_again(request.connection)
