"""How a request or a connection of a client fails. Floor 2."""

from __future__ import annotations

from attrs import define

from relay.errors import RelayError


@define(eq=False)
class ServerError(RelayError):
    """The server said no."""

    code: str
    message: str
    retry_after: int | None = None
    """A minimum, ms."""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@define(eq=False)
class Disconnected(RelayError):
    """The connection has ended.

    `error` is the server's goodbye: it came right before the close, which only echoes it.
    """

    code: int
    reason: str | None = None
    error: ServerError | None = None

    def __str__(self) -> str:
        close = f"closed with {self.code}{f' ({self.reason})' if self.reason else ''}"
        return f"{self.error}; {close}" if self.error else close


@define(eq=False)
class ClientClosed(RelayError):
    """A `RelayClient` has ended, and does not come back.

    `code` is that of the server's last error, or NO_TOKEN, CLOSED or DISCONNECTED.
    """

    code: str
    message: str
    close_code: int | None = None
    """Of the WebSocket, where one was seen."""

    @classmethod
    def after(cls, code: int | None, reason: str | None, error: ServerError | None) -> ClientClosed:
        if error is not None:
            return cls(error.code, error.message, code)
        return cls("DISCONNECTED", reason or "the connection was lost", code)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
