"""Alerts that a client sends, again on each new connection, until they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio
from attrs import define, field

from relay.client.connection.connection import ClientConnection, PendingRequest
from relay.client.connection.messages import Unreadable, read
from relay.client.errors import Disconnected, ServerError
from relay.client.events import AlertAccepted
from relay.client.reconnect_policy import TRANSIENT_ERRORS, ReconnectPolicy
from relay.errors import RelayError

MAX_PENDING_ALERTS = 1000


@define(eq=False)
class PendingAlert:
    """An alert that is not known to be stored."""

    stream_id: str
    fields: dict[str, object]
    """The rest of the message, with a key: the same alert is not delivered twice."""
    request: PendingRequest | None = None
    """The last time that it was sent."""
    _error: RelayError | None = None
    _changed: trio.Event = field(factory=trio.Event)

    def send(self, connection: ClientConnection) -> None:
        self.request = connection.ask("alert", stream_id=self.stream_id, **self.fields)
        self._tell()

    def fail(self, error: RelayError) -> None:
        """It will not be sent any more."""
        self._error = error
        self._tell()

    async def stored(self, policy: ReconnectPolicy) -> AlertAccepted:
        """Wait until the relay has stored it; raises why it never will."""
        while True:
            request = await self._sent()
            try:
                return read(AlertAccepted, await request.answer())
            except ServerError as error:
                if error.code not in TRANSIENT_ERRORS:
                    raise
                pause = policy.until_retry(error)
            except Unreadable as problem:
                request.connection.leave_unreadable(problem)
                pause = 0.0
            except Disconnected:
                pause = 0.0
            # A new connection sends it at once, and the end of the client is an answer, too.
            with trio.move_on_after(pause):
                await self._changed.wait()
            if self._error is not None:
                raise self._error
            if self.request is request:
                self._send_again(request)

    def _send_again(self, request: PendingRequest) -> None:
        """Send it on the same connection; if that has ended, the next one does."""
        self.request = None
        with suppress(Disconnected):
            self.send(request.connection)

    async def _sent(self) -> PendingRequest:
        while self.request is None:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        return self.request

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@define(eq=False)
class AlertOutbox:
    """The pending alerts, in the order in which they were raised."""

    _pending: dict[PendingAlert, None] = field(factory=dict)

    @contextmanager
    def holding(self, pending: PendingAlert) -> Iterator[None]:
        """Keep an alert as long as the block lasts; `ServerError` if there are too many."""
        if len(self._pending) >= MAX_PENDING_ALERTS:
            raise ServerError("RATE_LIMITED", "Too many alerts wait for the relay")
        self._pending[pending] = None
        try:
            yield
        finally:
            del self._pending[pending]

    def send(self, connection: ClientConnection, *, except_of: str | None) -> None:
        """Send those that this connection was not given yet, except alerts of this stream."""
        for pending in self._pending:
            sent = pending.request is not None and pending.request.connection is connection
            if not sent and pending.stream_id != except_of:
                pending.send(connection)

    def fail(self, error: RelayError) -> None:
        for pending in self._pending:
            pending.fail(error)
