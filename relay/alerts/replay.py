"""The history of alerts, replayed to one connection. Floor 2."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from attrs import define, field

from relay.alerts.event import page_of
from relay.postgres.alerts import History
from relay.protocol.messages import AlertEvent

MOST_IN_PAGE = 500
"""Alerts."""
MOST_HELD, HELD_BYTES = 256, 1 << 20
"""Live alerts that may wait for the end of replays. With a page before them they still fit the
connection's mailbox."""
PATIENCE = 30.0
"""Seconds after a page in which a client asks for the next one, or the replay counts as ended."""
MOST_OPEN = 100
MOST_POSITIONS = 1000
"""Replays that may be open, and that are remembered, of one connection."""

Scope = str | None
"""The stream that is replayed; None for all that the reader may see."""


@define(eq=False)
class Replay:
    """One that is open: live alerts of its streams wait."""

    reading: bool = True
    """Whether a page is being read now."""
    deadline: float = math.inf
    """By Trio's clock; when the next page has to be asked for."""
    cut: bool = False
    """Whether live alerts were thrown away while a page was read: it cannot be the last one."""
    sent: bool = False
    """Whether there was a page before, or as good as one."""
    left: bool = False
    """Whether the reader left the stream while a page was read: nobody will ask for another."""


@define(eq=False)
class Replays:
    """Holds live alerts back while earlier ones of their streams are replayed.

    A replay is open from the request for its first page to the end of its last one. Live alerts
    come later than they are stored, in the order of their ids: one that a page had already is not
    sent again, however late it comes.
    """

    _send: Callable[[AlertEvent], object]
    _size: Callable[[AlertEvent], int]
    """Bytes of an alert as it is sent."""
    _may_watch: Callable[[str, str], bool]
    """Whether the reader may see a stream, by its id and its owner, now."""
    _start_soon: Callable[[Callable[[], Awaitable[NoReturn]]], object]
    """Starts a task that ends with the connection."""
    _open: dict[Scope, Replay] = field(factory=dict)
    _positions: dict[Scope, int] = field(factory=dict)
    """The last alert that each replay has sent, as long as live ones up to there may come."""
    _held: list[tuple[AlertEvent, str]] = field(factory=list)
    """With the owners of their streams."""
    _held_bytes: int = 0
    _changed: trio.Event | None = None
    """Set when a replay waits for its next page; None before the first one does."""

    async def _end_in_time(self) -> NoReturn:
        """End replays that are not continued."""
        while True:
            self._changed = trio.Event()
            deadline = min((each.deadline for each in self._open.values()), default=math.inf)
            with trio.move_on_at(deadline):
                await self._changed.wait()
            now = trio.current_time()
            self._close([scope for scope, each in self._open.items() if each.deadline <= now])

    def deliver(self, alert: AlertEvent, owner_id: str) -> None:
        """Send a live alert, hold it back, or drop it when a replay has had it."""
        if (
            max(self._positions.get(scope, 0) for scope in (None, alert.stream_id))
            >= alert.alert_id
        ):
            return
        if None in self._open or alert.stream_id in self._open:
            self._hold(alert, owner_id)
            return
        # Live alerts yet to come are later than this one: what is remembered has served.
        for scope in (None, alert.stream_id):
            self._positions.pop(scope, None)
        self._send(alert)

    def begin(self, scope: Scope, *, promised: bool = False) -> None:
        """Before a page is read. Where it was promised that no live alert comes before it, they
        wait for another try when it cannot be read."""
        replay = self._open.setdefault(scope, Replay())
        replay.reading, replay.deadline, replay.left = True, math.inf, False
        replay.sent = replay.sent or promised
        if len(self._open) > MOST_OPEN:
            self._close([next(iter(self._open))])

    def fail(self, scope: Scope) -> None:
        """A page could not be read. Where there were some before it, it may be asked for again."""
        replay = self._open[scope]
        if replay.sent and not replay.left:
            self._await_next(scope)
        else:
            self._close([scope])

    def leave(self, stream_id: str) -> None:
        """The reader is told no more of this stream: nobody will ask for the next page."""
        others = [each for each in self._held if each[0].stream_id != stream_id]
        if len(others) < len(self._held):
            self._held = others
            self._held_bytes = sum(self._size(alert) for alert, _ in others)
        replay = self._open.get(stream_id)
        if replay is not None:
            replay.left = True
            if not replay.reading:
                self._close([stream_id])

    def refuse(self, scope: Scope) -> None:
        """There is no such page."""
        self._close([scope])

    def send_page(self, scope: Scope, page: History, after: int) -> bool:
        """Send a page, or as much of it as one may have, and after the last one also the live
        alerts that waited; returns whether there is more to ask for."""
        events = page_of(page.alerts[:MOST_IN_PAGE], self._size)
        replay = self._open[scope]
        more = page.more or replay.cut or len(events) < len(page.alerts)
        for event in events:
            self._send(event)
        position = events[-1].alert_id if events else after
        self._remember(scope, position)
        if more and not replay.left:
            self._await_next(scope)
        else:
            self._close([scope])
        return more

    def _hold(self, alert: AlertEvent, owner_id: str) -> None:
        self._held.append((alert, owner_id))
        self._held_bytes += self._size(alert)
        if len(self._held) > MOST_HELD or self._held_bytes > HELD_BYTES:
            self._relieve()

    def _remember(self, scope: Scope, position: int) -> None:
        position = max(position, self._positions.pop(scope, 0))
        if position:
            self._positions[scope] = position
        if len(self._positions) > MOST_POSITIONS:
            del self._positions[next(iter(self._positions))]

    def _await_next(self, scope: Scope) -> None:
        self._open[scope] = Replay(
            reading=False, deadline=trio.current_time() + PATIENCE, sent=True
        )
        if self._changed is None:
            self._changed = trio.Event()
            self._start_soon(self._end_in_time)
        else:
            self._changed.set()

    def _close(self, scopes: list[Scope]) -> None:
        """Go on with the live alerts of these, as far as no other replay has them wait."""
        for scope in scopes:
            self._open.pop(scope, None)
        held, self._held, self._held_bytes = self._held, [], 0
        for alert, owner_id in held:
            if self._may_watch(alert.stream_id, owner_id):
                self.deliver(alert, owner_id)

    def _relieve(self) -> None:
        """Hold less: replays that nobody continues have ended, and one whose page is being read
        will have another page, with what is thrown away here."""
        waiting = [scope for scope, each in self._open.items() if not each.reading]
        if waiting:
            self._close(waiting)
            return
        self._held.clear()
        self._held_bytes = 0
        for each in self._open.values():
            each.cut = True
