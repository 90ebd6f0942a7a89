"""An actor of a load test, over all its connections: it connects, does its work, reconnects.

Subclasses define the work: phone.py, viewer.py, service.py, hostile.py.
"""

from __future__ import annotations

import math
from random import Random
from typing import ClassVar

import trio
from attrs import define, field

from relay.client import DialFailed, ServerError
from relay.client.errors import Closed
from relay.client.websocket import ABNORMAL_CLOSURE
from relay.load.actors.network.client import IncomingMessage, LoadClient
from relay.load.actors.network.shaped_link import was_cut
from relay.load.actors.run_context import ConnectionCut, RunContext
from relay.load.measures.stats import GroupStats
from relay.load.scenario.groups import Group
from relay.load.scenario.schedule import Pauses, Presence
from relay.protocol.endings import Ending

CONNECT_TIMEOUT = 15.0
"""Seconds that connecting and authenticating may take."""
UNANSWERED_TIMEOUT = 2.0
"""Seconds after which an unanswered attempt counts as failed even if the run ends first."""
FIRST_FINAL_CLOSE_CODE = 4500
DOCUMENTED_CLOSE_CODES = {1000, 1001, 1002, 1007, 1009, ABNORMAL_CLOSURE} | {
    ending.value.code for ending in Ending
}
RELAY_CLOSE_CODES = range(4000, 5000)
CUT_ERROR = "torn off by the scenario"
NO_ANSWER_ERROR = "no answer until the end"


@define(eq=False)
class Attempt:
    """One attempt to connect and to authenticate."""

    begun: float = field(factory=trio.current_time)
    client: LoadClient | None = None
    authenticated: bool = False
    reported: bool = False
    """Whether its failure is counted."""

    @property
    def lasted(self) -> float:
        return trio.current_time() - self.begun


@define(eq=False)
class Actor:
    """One member of a group."""

    context: RunContext
    name: str
    """Name of the group."""
    number: int
    presence: Presence
    is_phone: ClassVar[bool] = False
    is_service: ClassVar[bool] = False
    stats: GroupStats = field(init=False)
    random: Random = field(init=False)
    target: str = field(init=False)
    """The name of the target of the current connection, or of the last one."""
    pauses: Pauses = field(init=False)
    """When its app pauses."""
    _retry_after: float = 0.0
    _refused: bool = False

    def __attrs_post_init__(self) -> None:
        endpoint = self.context.endpoint
        self.go_to(self.group_target or endpoint.target(self.place()))
        self.pauses = self.context.timeline.pauses(self.name, self.number)
        seed = self.context.timeline.scenario.seed
        self.random = Random(f"{seed} {self.name} {self.number} actor")  # noqa: S311 (no secret)

    @property
    def group(self) -> Group:
        return self.context.group(self.name)

    @property
    def group_target(self) -> str | None:
        """The target that its group names."""
        return self.context.timeline.scenario.groups[self.name].target

    def place(self) -> int:
        """Which of the targets it uses first, unless its group says so."""
        return self.number

    def go_to(self, target: str) -> None:
        """Connect to this target from now on, and count what happens there."""
        self.target, self.stats = target, self.context.stats(self.name, target)

    async def live(self) -> None:
        """Take part from joining to leaving. When cancelled, say goodbye and keep what was seen."""
        leave = self.presence.leave
        if leave == self.context.timeline.end and not self.is_phone:
            leave += self.context.timeline.scenario.grace
        with trio.CancelScope(deadline=self.context.epoch + leave):
            due, attempt = self.presence.join, 0
            while True:
                due = self.pauses.resumed(due)
                await self.context.until(due)
                with self._until_pause() as awake:
                    worked = await self._connect_once(due)
                if awake.cancelled_caught:
                    due, attempt = self.context.now(), 0
                    continue
                attempt = 0 if worked else attempt + 1
                policy = self.group.reconnect
                if policy is None or self._refused:
                    return
                wait = policy.wait(attempt) * (1 - policy.jitter * self.random.random())
                due = self.context.now() + max(wait, self._retry_after)
                if policy.target == "next":
                    endpoint = self.context.endpoint
                    self.go_to(endpoint.target(endpoint.index(self.target) + 1))
                self.stats.counts["reconnects"] += 1

    def _until_pause(self) -> trio.CancelScope:
        """Ends when the app pauses, if it closes its connection then."""
        pauses, deadline = self.group.pauses, math.inf
        if pauses is not None and pauses.connection == "closes":
            deadline = self.context.epoch + self.pauses.next_change(self.context.now())
        return trio.CancelScope(deadline=deadline)

    def main_stream(self) -> str | None:
        """The stream that its connections are for, if there is one."""
        return None

    async def _connect_once(self, due: float) -> bool:
        """Use one connection to its end; returns whether it was authenticated."""
        self._retry_after = 0.0
        attempt = Attempt()
        waiting = trio.CancelScope(deadline=attempt.begun + CONNECT_TIMEOUT)
        try:
            with waiting:
                await self._connect(attempt, due, waiting)
        except (DialFailed, ServerError, Closed) as failure:
            attempt.reported = True
            self._count_failure(failure, attempt)
        finally:
            # A silent relay is a failure even if the run ends before the timeout.
            if (
                not (attempt.reported or attempt.authenticated)
                and attempt.lasted > UNANSWERED_TIMEOUT
            ):
                self.stats.counts["auth.failed" if attempt.client else "connect.failed"] += 1
                late = waiting.cancelled_caught
                self.stats.error(f"no answer in {CONNECT_TIMEOUT:g} s" if late else NO_ANSWER_ERROR)
        return attempt.authenticated

    async def _connect(self, attempt: Attempt, due: float, waiting: trio.CancelScope) -> None:
        counts, context = self.stats.counts, self.context
        async with context.connect(
            self.name,
            self.target,
            number=self.number,
            random=self.random,
            on_message=self.receive,
            msgpack=getattr(self.group, "encoding", "json") == "msgpack",
            phone=self.is_phone,
            stream_id=self.main_stream(),
        ) as client:
            attempt.client = client
            counts["connect.done"] += 1
            token = context.endpoint.token(self.number, service=self.is_service)
            await client.request("auth", token=token)
            attempt.authenticated = True
            counts["auth.done"] += 1
            self.stats.time("connect_time").record(context.now() - due)
            waiting.deadline = float("inf")
            try:
                await self.play(client)
            finally:
                self.end_connection()
            if client.socket.closed is not None:
                raise client.socket.closed

    def _count_failure(self, failure: DialFailed | ServerError | Closed, attempt: Attempt) -> None:
        """Count the error that ended a connection."""
        counts = self.stats.counts
        match failure:
            case ConnectionCut():
                self.stats.error(CUT_ERROR)
            case DialFailed():
                counts["connect.failed"] += 1
                self.stats.error(str(failure))
            case ServerError(code=code, retry_after=retry_after):
                self._refused = self._refused or code == "AUTH_FAILED"
                counts["errors" if attempt.authenticated else "auth.failed"] += 1
                self._retry_after = (retry_after or 0) / 1000
                self.stats.error(str(failure))
            case Closed():
                client = attempt.client
                assert client is not None
                if client.was_cut or was_cut(client.socket.stream):
                    self.stats.error(CUT_ERROR)
                else:
                    counts["auth.failed"] += not attempt.authenticated
                    self._count_close(failure, client)

    def _count_close(self, closed: Closed, client: LoadClient) -> None:
        counts = self.stats.counts
        counts["closes"] += 1
        self._retry_after = ((client.goodbye and client.goodbye.retry_after) or 0) / 1000
        if closed.code >= FIRST_FINAL_CLOSE_CODE:
            self._refused = True
        if closed.code in self.group.expect_closes:
            return
        counts["closes.unexpected"] += 1
        counts["sessions.expired"] += closed.code == Ending.SESSION_EXPIRED.value.code
        if closed.code == ABNORMAL_CLOSURE:
            self.stats.error("connection lost")
            return
        self.stats.error(str(closed))
        if closed.code in RELAY_CLOSE_CODES and client.goodbye is None:
            counts["closes.unannounced"] += 1
        if closed.code not in DOCUMENTED_CLOSE_CODES and closed.code not in RELAY_CLOSE_CODES:
            self.stats.error(f"close code {closed.code} is unknown")

    async def play(self, client: LoadClient) -> None:
        """Do the actor's work on an authenticated connection, until it ends or the work is done."""
        raise NotImplementedError  # each kind of actor has its own work

    def receive(self, incoming: IncomingMessage, size: int) -> None:  # noqa: ARG002 (subclasses use it)
        """Handle a message that answers no request."""
        if incoming.type == "error":
            self.stats.counts["errors"] += 1
            self.stats.error(f"{incoming.code}: {incoming.message}")

    def end_connection(self) -> None:
        """Keep what was seen on a connection that ends now."""
