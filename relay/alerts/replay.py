"""Replays stored alerts to one connection, and holds live ones back until then."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from attrs import define, field

from relay.alerts.event import page_of
from relay.model.alerts.alert import History
from relay.protocol.messages import AlertEvent

MAX_PAGE_ALERTS = 500
MAX_HELD_LIVE_ALERTS, MAX_HELD_BYTES = 256, 1 << 20
"""Live alerts that may be held back. With a page before them they still fit the connection's
mailbox."""
NEXT_PAGE_TIMEOUT = 30.0
"""Seconds after a page in which a client has to ask for the next one; then the replay ends."""
MAX_OPEN_REPLAYS = 100
MAX_REPLAY_POSITIONS = 1000
"""Replays of one connection that may be open, and whose positions are remembered."""

Scope = str | None
"""The stream that is replayed; None: all streams that the reader may watch."""


@define(eq=False, repr=False)
class OpenReplay:
    """A replay in progress: live alerts of its streams are held back."""

    reading: bool = True
    """Whether a page is being read now."""
    deadline: float = math.inf
    """Until when the client has to ask for the next page, by Trio's clock."""
    cut: bool = False
    """Whether live alerts were discarded while a page was read, so that it cannot be the last."""
    sent: bool = False
    """Whether a page was sent, or promised."""
    promised: bool = False
    """Whether its first page is promised, and was not begun yet."""
    left: bool = False
    """Whether the reader left the stream while a page was read, and will ask for no other."""


@define(eq=False, repr=False)
class Replays:
    """Holds live alerts back while earlier ones of their streams are replayed.

    A replay is open from the request for its first page to the end of its last one. A live alert
    arrives after it was stored, in the order of ids; one that a page has contained is not sent
    again, however late it arrives.
    """

    _send: Callable[[AlertEvent], object]
    _size: Callable[[AlertEvent], int]
    """Bytes of an alert as it is sent."""
    _may_watch: Callable[[str, str], bool]
    """Whether the reader may watch a stream now, by its id and its owner."""
    _start_soon: Callable[[Callable[[], Awaitable[NoReturn]]], object]
    """Starts a task that ends with the connection."""
    _open: dict[Scope, OpenReplay] = field(factory=dict)
    _positions: dict[Scope, int] = field(factory=dict)
    """The last alert that each replay has sent, while live ones up to it may still arrive."""
    _held: list[tuple[AlertEvent, str]] = field(factory=list)
    """Live alerts, each with the owner of its stream."""
    _held_bytes: int = 0
    _changed: trio.Event | None = None
    """Set when a replay begins to wait for its next page; None before the first time."""

    async def _end_abandoned(self) -> NoReturn:
        """End replays whose next page the client does not ask for in time."""
        while True:
            self._changed = trio.Event()
            deadline = min((each.deadline for each in self._open.values()), default=math.inf)
            with trio.move_on_at(deadline):
                await self._changed.wait()
            now = trio.current_time()
            self._close([scope for scope, each in self._open.items() if each.deadline <= now])

    def deliver(self, alert: AlertEvent, owner_id: str) -> None:
        """Send a live alert, hold it back, or drop it when a replay has sent it."""
        if (
            max(self._positions.get(scope, 0) for scope in (None, alert.stream_id))
            >= alert.alert_id
        ):
            return
        if None in self._open or alert.stream_id in self._open:
            self._hold(alert, owner_id)
            return
        # All later live alerts have greater ids, so the positions are no longer needed.
        for scope in (None, alert.stream_id):
            self._positions.pop(scope, None)
        self._send(alert)

    def begin(self, scope: Scope, *, promised: bool = False) -> None:
        """Open a replay before its page is read. `promised`: the client was told that no live
        alert comes before the page, so the replay stays open when it cannot be read."""
        replay = self._open.setdefault(scope, OpenReplay())
        replay.reading, replay.deadline = True, math.inf
        if promised or not replay.promised:
            replay.left = False  # else the reader may have left before its page's turn came
        replay.promised = promised
        replay.sent = replay.sent or promised
        if len(self._open) > MAX_OPEN_REPLAYS:
            self._close([next(iter(self._open))])

    def fail(self, scope: Scope) -> None:
        """Note that a page could not be read. The client may ask for it again, unless it is the
        first."""
        replay = self._open[scope]
        if replay.sent and not replay.left:
            self._await_next(scope)
        else:
            self._close([scope])

    def leave(self, stream_id: str) -> None:
        """Note that the reader gets no more of this stream, and will not ask for its next page."""
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
        """Close a replay whose page does not exist."""
        self._close([scope])

    def send_page(self, scope: Scope, page: History, after: int) -> bool:
        """Send a page, cut to `MAX_PAGE_BYTES`; after the last one also the live alerts that were
        held back. Returns whether there is another page to ask for."""
        events = page_of(page.alerts[:MAX_PAGE_ALERTS], self._size)
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
        if len(self._held) > MAX_HELD_LIVE_ALERTS or self._held_bytes > MAX_HELD_BYTES:
            self._make_room()

    def _remember(self, scope: Scope, position: int) -> None:
        position = max(position, self._positions.pop(scope, 0))
        if position:
            self._positions[scope] = position
        if len(self._positions) > MAX_REPLAY_POSITIONS:
            del self._positions[next(iter(self._positions))]

    def _await_next(self, scope: Scope) -> None:
        self._open[scope] = OpenReplay(
            reading=False, deadline=trio.current_time() + NEXT_PAGE_TIMEOUT, sent=True
        )
        if self._changed is None:
            self._changed = trio.Event()
            self._start_soon(self._end_abandoned)
        else:
            self._changed.set()

    def _close(self, scopes: list[Scope]) -> None:
        """Close replays, and deliver the live alerts that no other replay holds back."""
        for scope in scopes:
            self._open.pop(scope, None)
        held, self._held, self._held_bytes = self._held, [], 0
        for alert, owner_id in held:
            if self._may_watch(alert.stream_id, owner_id):
                self.deliver(alert, owner_id)

    def _make_room(self) -> None:
        """Make room: close the replays that wait for the client. If there are none, discard the
        live alerts; each open replay then has another page, which contains them."""
        waiting = [scope for scope, each in self._open.items() if not each.reading]
        if waiting:
            self._close(waiting)
            return
        self._held.clear()
        self._held_bytes = 0
        for each in self._open.values():
            each.cut = True
