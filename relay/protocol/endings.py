"""How a connection may end: one table of endings.

Each ending is one value: it is what the code ends a connection with, the `error` that says goodbye,
the close code and reason that echo it, and the name in the log and the metrics. Codes from 4000 to
4499 ask the client to come back, those from 4500 tell it not to (section 5 of the protocol).
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from relay.protocol.messages import ErrorCode


@frozen
class Goodbye:
    """What the peer is told at the end."""

    code: int | None
    """The close code; None where there is nobody left to tell."""
    reason: str
    error: ErrorCode | None = None
    message: str = ""
    retry_after: int | None = None
    """Milliseconds."""


class Ending(Enum):
    """Every way in which a connection ends."""

    CLIENT_CLOSED = Goodbye(None, "closed by the client")
    CLIENT_GONE = Goodbye(None, "connection lost")
    HTTP_ANSWERED = Goodbye(None, "a plain HTTP request was answered")
    NOT_FOUND = Goodbye(None, "no such path")
    HANDSHAKE_REFUSED = Goodbye(None, "handshake refused")
    HANDSHAKE_TIMEOUT = Goodbye(None, "no complete handshake in time")
    SHUTDOWN = Goodbye(None, "stopped at once")

    AUTH_FAILED = Goodbye(
        1008, "Authentication failed", ErrorCode.AUTH_FAILED, "Invalid or expired token"
    )
    AUTH_TIMEOUT = Goodbye(
        4004, "authentication timeout", ErrorCode.AUTH_TIMEOUT, "Not authenticated in time"
    )
    AUTH_UNAVAILABLE = Goodbye(
        4013,
        "try again later",
        ErrorCode.AUTH_UNAVAILABLE,
        "The token cannot be verified now; try again later",
        retry_after=2000,
    )
    SESSION_EXPIRED = Goodbye(
        4001, "session expired", ErrorCode.SESSION_EXPIRED, "The session has expired"
    )
    SESSION_REVOKED = Goodbye(
        4501, "session revoked", ErrorCode.SESSION_REVOKED, "The session was ended"
    )
    AUTH_FLOOD = Goodbye(
        1008, "policy", ErrorCode.AUTH_REQUIRED, "Too many messages before authentication"
    )
    INVALID_MESSAGES = Goodbye(
        1008, "policy", ErrorCode.INVALID_MESSAGE, "Too many invalid messages"
    )
    PROTOCOL_ERROR = Goodbye(
        1002, "protocol error", ErrorCode.INVALID_MESSAGE, "The WebSocket protocol was broken"
    )
    NOT_UTF8 = Goodbye(1007, "not UTF-8", ErrorCode.INVALID_MESSAGE, "A text message is not UTF-8")
    MESSAGE_TOO_BIG = Goodbye(
        1009, "message too big", ErrorCode.MESSAGE_TOO_BIG, "The message is too big"
    )
    OVERLOADED = Goodbye(
        4013,
        "try again later",
        ErrorCode.MESSAGE_TOO_BIG,
        "The server holds too much that is half received; try again later",
        retry_after=2000,
    )
    INTERNAL_ERROR = Goodbye(
        1011, "internal error", ErrorCode.INTERNAL_ERROR, "Something went wrong in the server"
    )
    TOO_SLOW = Goodbye(
        4002, "too slow", ErrorCode.TOO_SLOW, "Messages are not read as fast as they come"
    )
    IDLE_TIMEOUT = Goodbye(
        4003, "idle or unreachable", ErrorCode.IDLE_TIMEOUT, "Nothing was heard for too long"
    )
    SERVER_RESTARTING = Goodbye(4012, "server restarting")
    FORBIDDEN = Goodbye(None, "may not come from there")
    RATE_LIMITED = Goodbye(
        4008, "rate limited", ErrorCode.RATE_LIMITED, "Too much in too short a time"
    )
    TOO_MANY_CONNECTIONS = Goodbye(
        4013,
        "try again later",
        ErrorCode.TOO_MANY_CONNECTIONS,
        "There are too many connections",
        retry_after=5000,
    )
    SUPERSEDED = Goodbye(
        4502,
        "superseded by a newer connection",
        ErrorCode.SUPERSEDED,
        "A newer connection of yours registered this stream",
    )
    ENDED_BY_OPERATOR = Goodbye(
        4010,
        "ended by an operator",
        ErrorCode.ENDED_BY_OPERATOR,
        "An operator ended this connection",
    )
    STREAM_LOST = Goodbye(
        4009,
        "stream has another owner",
        ErrorCode.UNAUTHORIZED,
        "Your stream belongs to another user, or to nobody, from now on",
    )

    @property
    def label(self) -> str:
        """The name in log events and metrics."""
        return self.name.lower()
