"""A client of a load test, over all its connections: it comes, plays its part, comes back. Floor 6.

What the part is, its kind says: listeners.py, services.py, hostile.py.
"""

from __future__ import annotations

from random import Random
from typing import ClassVar

import trio
from attrs import define, field

from relay.client import DialFailed, ServerError
from relay.closing import Ending
from relay.load.figures import Figures
from relay.load.groups import Group
from relay.load.peer import Heard, Peer
from relay.load.schedule import Presence
from relay.load.stage import Stage, TornOff, was_cut
from relay.transport.dial import ABNORMAL_CLOSURE, Closed

PATIENCE = 15.0
"""Seconds that connecting and authenticating may take; then it has failed."""
UNANSWERED = 2.0
"""Seconds after which it counts as failed also when the run ends first."""
NO_RETURN = 4500
PROMISED = {1000, 1001, 1002, 1007, 1009, ABNORMAL_CLOSURE} | {
    ending.value.code for ending in Ending
}
OWN_CODES = range(4000, 5000)
TORN_OFF = "torn off by the scenario"
NO_ANSWER = "no answer until the end"


@define(eq=False)
class Attempt:
    """One connection, and how far it has come."""

    begun: float = field(factory=trio.current_time)
    peer: Peer | None = None
    authenticated: bool = False
    told: bool = False
    """Whether what ended it is in the figures."""

    @property
    def lasted(self) -> float:
        return trio.current_time() - self.begun


@define(eq=False)
class Actor:
    """One client of a group, over all its connections."""

    stage: Stage
    name: str
    """Of its group."""
    number: int
    presence: Presence
    is_phone: ClassVar[bool] = False
    is_service: ClassVar[bool] = False
    figures: Figures = field(init=False)
    random: Random = field(init=False)
    _retry_after: float = 0.0
    _refused: bool = False

    def __attrs_post_init__(self) -> None:
        self.figures = self.stage.book.group(self.name)
        seed = self.stage.timeline.scenario.seed
        self.random = Random(f"{seed} {self.name} {self.number} actor")  # noqa: S311 (no secret)

    @property
    def group(self) -> Group:
        return self.stage.group(self.name)

    async def live(self) -> None:
        """From joining to leaving. Cancelled, it still says goodbye and hands in what it saw."""
        leave = self.presence.leave
        if leave == self.stage.timeline.end and not self.is_phone:
            leave += self.stage.timeline.scenario.grace
        with trio.CancelScope(deadline=self.stage.epoch + leave):
            due, attempt = self.presence.join, 0
            while True:
                await self.stage.until(due)
                worked = await self._connect_once(due)
                attempt = 0 if worked else attempt + 1
                policy = self.group.reconnect
                if policy is None or self._refused:
                    return
                wait = policy.wait(attempt) * (1 - policy.jitter * self.random.random())
                due = self.stage.now() + max(wait, self._retry_after)
                self.figures.counts["reconnects"] += 1

    async def _connect_once(self, due: float) -> bool:
        """One connection, to its end; whether it was one that worked."""
        self._retry_after = 0.0
        attempt = Attempt()
        waiting = trio.CancelScope(deadline=attempt.begun + PATIENCE)
        try:
            with waiting:
                await self._connect(attempt, due, waiting)
        except (DialFailed, ServerError, Closed) as failure:
            attempt.told = True
            self._note(failure, attempt)
        finally:
            # The end of the run may come first, which is no excuse for a relay that says nothing.
            if not (attempt.told or attempt.authenticated) and attempt.lasted > UNANSWERED:
                self.figures.counts["auth.failed" if attempt.peer else "connect.failed"] += 1
                late = waiting.cancelled_caught
                self.figures.error(f"no answer in {PATIENCE:g} s" if late else NO_ANSWER)
        return attempt.authenticated

    async def _connect(self, attempt: Attempt, due: float, waiting: trio.CancelScope) -> None:
        counts, stage = self.figures.counts, self.stage
        async with stage.connect(
            self.name,
            random=self.random,
            hears=self.hear,
            msgpack=getattr(self.group, "encoding", "json") == "msgpack",
            phone=self.is_phone,
        ) as peer:
            attempt.peer = peer
            counts["connect.done"] += 1
            token = stage.address.token(self.number, service=self.is_service)
            await peer.ask("auth", token=token)
            attempt.authenticated = True
            counts["auth.done"] += 1
            self.figures.time("connect_time").record(stage.now() - due)
            waiting.deadline = float("inf")
            try:
                await self.play(peer)
            finally:
                self.hand_in()
            if peer.socket.closed is not None:
                raise peer.socket.closed

    def _note(self, failure: DialFailed | ServerError | Closed, attempt: Attempt) -> None:
        """Count what ended a connection."""
        counts = self.figures.counts
        match failure:
            case TornOff():
                self.figures.error(TORN_OFF)
            case DialFailed():
                counts["connect.failed"] += 1
                self.figures.error(str(failure))
            case ServerError(code=code, retry_after=retry_after):
                self._refused = self._refused or code == "AUTH_FAILED"
                counts["errors" if attempt.authenticated else "auth.failed"] += 1
                self._retry_after = (retry_after or 0) / 1000
                self.figures.error(str(failure))
            case Closed():
                peer = attempt.peer
                assert peer is not None
                if peer.was_cut or was_cut(peer.socket.stream):
                    self.figures.error(TORN_OFF)
                else:
                    counts["auth.failed"] += not attempt.authenticated
                    self._count_close(failure, peer)

    def _count_close(self, closed: Closed, peer: Peer) -> None:
        counts = self.figures.counts
        counts["closes"] += 1
        self._retry_after = ((peer.goodbye and peer.goodbye.retry_after) or 0) / 1000
        if closed.code >= NO_RETURN:
            self._refused = True
        if closed.code in self.group.expect_closes:
            return
        counts["closes.unexpected"] += 1
        counts["sessions.expired"] += closed.code == Ending.SESSION_EXPIRED.value.code
        if closed.code == ABNORMAL_CLOSURE:
            self.figures.error("connection lost")
            return
        self.figures.error(str(closed))
        if closed.code in OWN_CODES and peer.goodbye is None:
            counts["closes.unannounced"] += 1
        if closed.code not in PROMISED and closed.code not in OWN_CODES:
            self.figures.error(f"close code {closed.code} is in no table")

    async def play(self, peer: Peer) -> None:
        """What it does once it is authenticated; ends by itself when it has done it all."""
        raise NotImplementedError

    def hear(self, heard: Heard, size: int) -> None:  # noqa: ARG002 (for viewers)
        """Take what comes unasked."""
        if heard.type == "error":
            self.figures.counts["errors"] += 1
            self.figures.error(f"{heard.code}: {heard.message}")

    def hand_in(self) -> None:
        """Keep what was seen on the connection that ends now."""
