"""Finds out that nobody is at the other end of a connection any more."""

from __future__ import annotations

from contextlib import suppress

import trio

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.errors import ServerError
from relay.client.reconnect_policy import ReconnectPolicy

MAX_MESSAGES_IN_FLIGHT, MAX_BYTES_IN_FLIGHT = 16, 4 << 20
"""What may be on its way here when something is asked; the answer comes behind it."""


async def watch_liveness(connection: ClientConnection, policy: ReconnectPolicy) -> None:
    """End the connection when the relay is gone.

    Silence is one sign of that. Another is that nothing is answered: much may be heard where
    nothing gets through to the relay.
    """
    silence = policy.silence_timeout
    # The last answer, and the bytes that had come when one was first demanded after it.
    answered_at, bytes_first = connection.answered_at, 0
    while True:
        heard, answered = connection.socket.heard_at, connection.answered_at
        await trio.sleep_until(min(heard + silence, answered + 3 * silence))
        now = trio.current_time()
        unanswered = now >= connection.answered_at + 3 * silence
        if not unanswered and now < connection.socket.heard_at + silence:
            continue
        asked_at, bytes_before = trio.current_time(), connection.socket.bytes_in
        if connection.answered_at > answered_at or not unanswered or not bytes_first:
            answered_at, bytes_first = connection.answered_at, bytes_before
        ping = connection.ping()
        queued = connection.bytes_queued
        patience = 2 * policy.ping_timeout if unanswered else policy.ping_timeout
        if await _is_answered(connection, policy, ping, asked_at + patience):
            continue
        now = trio.current_time()
        if now >= max(asked_at, connection.socket.heard_at + silence) + policy.ping_timeout:
            alive = False
        elif unanswered:
            # Unless the ping still waits behind something large that moves, or its answer does.
            waits = connection.bytes_queued - connection.bytes_unsent < queued
            ahead = min(MAX_MESSAGES_IN_FLIGHT * connection.largest_message, MAX_BYTES_IN_FLIGHT)
            comes = bytes_before < connection.socket.bytes_in < bytes_first + ahead
            moves = waits and connection.socket.moved_at > asked_at
            alive = moves or comes or connection.answered_at > asked_at
        else:
            alive = connection.socket.heard_at > asked_at
        if not alive:
            connection.leave("nothing is heard from the relay")
            return


async def _is_answered(
    connection: ClientConnection, policy: ReconnectPolicy, ping: PendingRequest, deadline: float
) -> bool:
    """Wait for an answer, until the deadline or until nothing at all was heard for too long."""
    asked_at = trio.current_time()
    while (now := trio.current_time()) < deadline:
        silent_from = max(asked_at, connection.socket.heard_at + policy.silence_timeout)
        if now >= silent_from + policy.ping_timeout:
            return False
        with trio.move_on_at(min(deadline, silent_from + policy.ping_timeout)):
            with suppress(ServerError):
                await ping.answer()
            return True
    return False
