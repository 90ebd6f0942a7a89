"""How a connection or a request of a client fails."""

from __future__ import annotations

from attrs import define

from relay.errors import RelayError


class DialFailed(RelayError):
    """There is no WebSocket at this address, or it refuses this client."""


@define(eq=False)
class Closed(RelayError):
    """The WebSocket is closed; `code` is 1006 when it broke without a Close."""

    code: int
    reason: str | None = None

    def __str__(self) -> str:
        return f"closed with {self.code}{f' ({self.reason})' if self.reason else ''}"


@define(eq=False)
class ServerError(RelayError):
    """The relay answered a request with an error."""

    code: str
    message: str
    retry_after: int | None = None
    """A minimum, ms."""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@define(eq=False)
class Disconnected(RelayError):
    """The connection has ended.

    `error` is the last message of the relay, if that was an error; the close code means the same.
    """

    code: int
    reason: str | None = None
    error: ServerError | None = None

    def __str__(self) -> str:
        close = f"closed with {self.code}{f' ({self.reason})' if self.reason else ''}"
        return f"{self.error}; {close}" if self.error else close


@define(eq=False)
class ClientClosed(RelayError):
    """A `RelayClient` has ended and does not reconnect.

    `code` is that of the relay's last error, or NO_TOKEN, CLOSED or DISCONNECTED.
    """

    code: str
    message: str
    close_code: int | None = None
    """The code of the Close, where one was seen."""

    @classmethod
    def after(cls, code: int | None, reason: str | None, error: ServerError | None) -> ClientClosed:
        if error is not None:
            return cls(error.code, error.message, code)
        return cls("DISCONNECTED", reason or "the connection was lost", code)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
