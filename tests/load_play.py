"""Runs a scenario in the test's own process and returns its statistics."""

from __future__ import annotations

from pathlib import Path

import trio

from relay.load.actors.engine import Share, StatsUpdate, play, prepare
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.measures.reconciliation.observations import Observations
from relay.load.measures.reconciliation.reconcile import reconcile
from relay.load.measures.stats import RunStats
from relay.load.run.run_state import stats_of
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Timeline


async def play_toml(
    source: str, endpoint: Endpoint, *, run: str = "abcd1234", folder: Path = Path()
) -> tuple[RunStats, Observations]:
    """Run a scenario against a relay; the statistics are not reconciled yet."""
    scenario = parse_scenario(source, "test.toml", folder)
    run_stats, observations = stats_of(scenario), Observations()

    async def add(update: StatsUpdate) -> None:
        run_stats.add(update.groups, update.stage)
        observations.add(update.observations)

    context = RunContext(Timeline(scenario), endpoint, run)
    actors = await prepare(context, Share())
    context.epoch = trio.current_time()
    await play(context, Share(), actors, add)
    return run_stats, observations


async def play_and_reconcile(source: str, url: str) -> RunStats:
    """Run a scenario against the server at `url`; the statistics include what never arrived."""
    scenario = parse_scenario(source, "test.toml", Path())
    run_stats, observations = await play_toml(source, Endpoint(url, ("a-token",)))
    reconcile(run_stats, observations, end=scenario.length, grace=scenario.grace)
    return run_stats
