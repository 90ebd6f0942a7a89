"""The alerts of one stream, each once and in order, whatever became of the connection. Floor 2.

After `subscribe` comes `alerts-since` with the last alert that was seen. Until its last page all
alerts are held, since live ones may come before it, and again in it. When the application leaves
too many unread, no more are taken: the relay's store has them, and is asked once there is room.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, evolve

from relay.client.errors import ServerError
from relay.client.events import Alert, Problem
from relay.client.link import Answer, Link
from relay.client.manners import PASSING, Manners
from relay.client.unread import Unread

PAGE = 500
"""Alerts that are asked for at once; the relay gives no more."""
MOST_HELD = 1000
"""Live ones during a replay. What comes beyond is asked for afterwards."""


@define(eq=False)
class AlertFeed:
    stream_id: str
    _unread: Unread
    _manners: Manners
    history: int = 0
    """Alerts from before the first connection that the application wants, too."""
    last: int | None = None
    """The last alert that it was given; None before the first answer."""
    _link: Link | None = None
    _held: dict[int, Alert] | None = None
    """Until a replay has ended; None: there is none."""
    _overflown: bool = False
    """Whether some were not held that would have been."""
    _behind: bool = False
    """Whether alerts are left in the store until there is room."""
    _newest: int = 0
    _question: object = None
    """The one whose answer counts: what was asked before another took its place is over."""

    def resume(self, link: Link, subscribe: Callable[[], None]) -> None:
        """Go on from where it was, around the request that makes alerts come."""
        if self._link is link and self.last is None and self._question is not None:
            subscribe()  # where to begin is being asked already
            return
        self._link, self._behind = link, False
        self._held, self._overflown = {}, False
        if self.last is not None:
            subscribe()
            self._catch_up()
        else:
            # Before there was any alert: what is the newest now marks where to begin.
            self._mark()
            subscribe()

    def begin_new(self, link: Link | None) -> None:
        """The stream is new: there was no alert before."""
        self._link, self.last = link, 0

    def end(self) -> None:
        """Nobody wants its alerts any more: what is still to be answered is nobody's."""
        self._link = self._question = self._held = None
        self._behind = False

    def offer(self, alert: Alert) -> None:
        """One that came, live or of a page."""
        if self._behind:
            return
        self._newest = alert.alert_id
        if self._held is None:
            self._pass(alert)
        elif len(self._held) < MOST_HELD:
            self._held[alert.alert_id] = alert
        else:
            self._overflown = True

    def go_on(self) -> None:
        """There is room again."""
        if self._behind:
            self._catch_up()

    def _ask(self, on_answer: Callable[[Answer], None], **which: int) -> None:
        self._question = question = object()

        def turn(answer: Answer) -> None:
            if self._question is question:
                on_answer(answer)

        if self._link is not None:
            self._link.ask("alerts-since", turn, stream_id=self.stream_id, **which)

    def _mark(self) -> None:
        def begin(answer: Answer) -> None:
            if isinstance(answer, ServerError):
                self._retry(answer, self._mark)
                return
            held, self._held = self._held or {}, {}
            self.last = self._newest
            if self.history and held:
                self.last = min(held) - 1
                for alert_id in sorted(held):
                    self._pass(evolve(held[alert_id], replayed=True))
            if not self._behind:
                self._catch_up()

        if self._held and not self.history:
            # Some came live before this question could be answered: they are where to begin.
            self.last = min(self._held) - 1
            self._catch_up()
            return
        self._newest = 0
        self._ask(begin, last=max(1, self.history))

    def _catch_up(self, *, known: bool = True) -> None:
        """Ask for what is after the last one, or for all of late if that is no longer kept."""
        after = self.last or 0

        def turn(answer: Answer) -> None:
            if not isinstance(answer, ServerError):
                # Replayed alerts come right before their answer: the newest is how far they went.
                self._end_page(max(after, self._newest), more=bool(answer.get("more")))
            elif answer.code == "INVALID_MESSAGE" and known:
                self._catch_up(known=False)
            else:
                self._retry(answer, lambda: self._catch_up(known=known))

        room = self._unread.room
        if not room:
            self._fall_behind()
            return
        if self._held is None:
            self._held = {}
        self._behind = False
        self._newest = after
        limit = min(PAGE, room)
        self._ask(turn, **({"after": after, "limit": limit} if known else {"last": PAGE}))

    def _end_page(self, position: int, *, more: bool) -> None:
        if self._overflown:  # perhaps of this page, too: once more, with nothing held
            self._held, self._overflown = {}, False
            self._catch_up()
            return
        self._release(position if more else None)
        if self._behind:
            return
        if more:
            self._catch_up()
        else:
            self._held = None

    def _release(self, position: int | None) -> None:
        for alert_id in sorted(self._held or ()):
            if self._held is None or (position is not None and alert_id > position):
                return
            self._pass(evolve(self._held.pop(alert_id), replayed=True))

    def _pass(self, alert: Alert) -> None:
        if self._behind or alert.alert_id <= (self.last or 0):
            return
        if not self._unread.room:
            self._fall_behind()
            return
        self.last = alert.alert_id
        self._unread.put(alert)

    def _fall_behind(self) -> None:
        self._behind, self._held, self._overflown = True, None, False

    def _retry(self, error: ServerError, work: Callable[[], None]) -> None:
        link = self._link
        if link is None or link.ended:
            return
        if error.code in PASSING:
            again = self._manners.until_retry(error)
            question = self._question
            link.later(again, lambda: work() if question is self._question else None)
            return
        self.last = self.last or 0
        self._release(None)
        self._held = None
        self._unread.put(Problem(error.code, error.message, self.stream_id, error.retry_after))
