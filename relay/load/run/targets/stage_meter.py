"""What the relays under test use and do in each stage of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import trio
from attrs import define, field, frozen

from relay.load.measures.process_usage import ProcessUsage
from relay.load.measures.results import UsedInStage
from relay.load.run.targets.target_reports import TargetFailed
from relay.load.run.targets.targets import Targets
from relay.load.scenario.scenario import Scenario


@frozen
class _Reading:
    usage: Mapping[str, ProcessUsage]
    """By target, of those of which it is known."""
    queries: int | None
    """Queries to verify tokens, of all targets; None if one does not say."""


@define(eq=False)
class StageMeter:
    """Reads what all targets used so far, whenever a stage begins or ends."""

    scenario: Scenario
    targets: Targets
    used: dict[str, UsedInStage] = field(factory=dict)
    """By the name of the stage, of those that have ended."""

    async def run(self, begun: float) -> None:
        """Measure all stages; `begun` is Trio's time at the start of the run."""
        at, before = begun, await self._read(begun)
        for stage in self.scenario.stages:
            at += stage.duration
            after = await self._read(at)
            self.used[stage.name] = _difference(before, after)
            before = after

    async def _read(self, at: float) -> _Reading:
        await trio.sleep_until(at)
        usage = self.targets.usage()
        queries: int | None = 0
        for each in self.targets.by_name.values():
            asked = None
            with suppress(TargetFailed):
                asked = await each.reports.verification_queries()
            queries = None if queries is None or asked is None else queries + asked
        return _Reading(usage, queries)


def _difference(before: _Reading, after: _Reading) -> UsedInStage:
    known = before.usage.keys() & after.usage.keys()
    cpu = [after.usage[name].cpu_seconds - before.usage[name].cpu_seconds for name in known]
    queries = None
    if before.queries is not None and after.queries is not None:
        queries = max(0, after.queries - before.queries)  # a relay that was restarted counts anew
    return UsedInStage(
        cpu=max(0.0, sum(cpu)) if known else None,
        memory=sum(each.resident for each in after.usage.values()) if after.usage else None,
        queries=queries,
    )
