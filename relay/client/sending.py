"""Alerts that a client sends, again after each loss of the connection, until they are stored.
Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from relay.client.errors import ServerError
from relay.client.events import AlertAccepted
from relay.client.link import Answer, Link
from relay.client.manners import PASSING, Manners
from relay.client.messages import read
from relay.errors import RelayError

MOST_ALERTS_WAITING = 1000


@define(eq=False)
class PendingAlert:
    """One that is not stored yet, as far as we know."""

    stream_id: str
    fields: dict[str, object]
    """The rest of the message. It has a key, so that nobody gets the alert twice."""
    link: Link | None = None
    """By which it was sent."""
    _outcome: AlertAccepted | RelayError | None = None
    _settled: trio.Event = field(factory=trio.Event)

    async def stored(self) -> AlertAccepted:
        """Wait until it is; raises why it is not."""
        await self._settled.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, RelayError):
            raise self._outcome
        return self._outcome

    def settle(self, outcome: AlertAccepted | RelayError) -> None:
        self._outcome = outcome
        self._settled.set()


@define(eq=False)
class AlertsToSend:
    _manners: Manners
    _pending: dict[PendingAlert, None] = field(factory=dict)
    """In the order in which they were raised."""

    @contextmanager
    def add(self, pending: PendingAlert, send: Callable[[], None]) -> Iterator[None]:
        """It is one of them as long as the block lasts; `send` is called at once."""
        if len(self._pending) >= MOST_ALERTS_WAITING:
            raise ServerError("RATE_LIMITED", "Too many alerts wait for the relay")
        self._pending[pending] = None
        try:
            send()
            yield
        finally:
            del self._pending[pending]

    def send(self, link: Link, *, but_of: str | None) -> None:
        """Send what this connection was not given yet."""
        for pending in self._pending:
            if pending.link is not link and pending.stream_id != but_of:
                pending.link = link
                self._send(link, pending)

    def fail(self, error: RelayError) -> None:
        for pending in self._pending:
            pending.settle(error)

    def _send(self, link: Link, pending: PendingAlert) -> None:
        def turn(answer: Answer) -> None:
            if not isinstance(answer, ServerError):
                pending.settle(read(AlertAccepted, answer))
            elif answer.code in PASSING:
                link.later(self._manners.until_retry(answer), lambda: self._send(link, pending))
            else:
                pending.settle(answer)

        if pending in self._pending:
            link.ask("alert", turn, stream_id=pending.stream_id, **pending.fields)
