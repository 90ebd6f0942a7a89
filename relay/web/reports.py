"""What the relay says about itself: readiness and totals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from attrs import frozen

from relay.concurrency.supervisor import Supervisor
from relay.errors import StoreUnavailable
from relay.guard.guard import Guard
from relay.hub.hub import Hub
from relay.metrics import Limit, Metrics
from relay.protocol.reports import ReadyReport, StatsReport

DATABASE_TIMEOUT = 2.0
"""Seconds in which the database has to answer for the relay to be ready."""

MAX_DISPATCH_STALL = 10.0
"""Seconds for which stored alerts may wait since they cannot be read."""


@frozen
class Reports:
    """Gathers the reports of one relay."""

    _metrics: Metrics
    _hub: Hub
    _supervisor: Supervisor
    _guard: Guard
    _profile: str
    _check_database: Callable[[], Awaitable[object]]
    """Raises `StoreUnavailable`."""
    _is_draining: Callable[[], bool]

    async def ready(self) -> ReadyReport:
        """Whether clients can be let in; asks the database."""
        database = "unavailable"
        with suppress(StoreUnavailable), trio.move_on_after(DATABASE_TIMEOUT):
            await self._check_database()
            database = "ok"
        draining = self._is_draining()
        stalled = self._metrics.dispatch_stalled_for() > MAX_DISPATCH_STALL
        services = {name: each.state.value for name, each in self._supervisor.tasks.items()}
        return ReadyReport(
            ready=self._supervisor.ready and not draining and database == "ok" and not stalled,
            draining=draining,
            database=database,
            alerts="stalled" if stalled else "ok",
            services=services,
        )

    def stats(self) -> StatsReport:
        """The totals; nothing in them names a stream, a user or a connection."""
        metrics = self._metrics
        return StatsReport(
            connections=metrics.connections,
            connections_accepted=metrics.connections_accepted,
            authenticated=metrics.authenticated,
            verifications=metrics.verifications,
            verification_queries=metrics.verification_queries,
            frames_accepted=metrics.frames_accepted,
            alerts_stored=metrics.alerts_stored,
            alerts_delivered=metrics.alerts_delivered,
            alerts_removed=metrics.alerts_removed,
            endings={ending.label: count for ending, count in metrics.endings.items()},
            limits_hit={limit.value: metrics.limits_hit[limit] for limit in Limit},
            frame_age=metrics.frame_age.summary(),
            profile=self._profile,
            unauthenticated=self._guard.connections.unauthenticated,
            streams=self._hub.count(),
            frames_to_consumers=self._hub.ledger(),
        )
