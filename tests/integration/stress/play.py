"""Rounds of random clients against a real relay; each checks what it gets, and all the ledger.

In a round some phones send frames of all sizes, and viewers of all manners watch: fast ones, slow
ones, some that stall, that read a byte at a time, that ping without end, that subscribe again on
other terms, in both encodings. In a polite round all of them take leave, so that what they saw is
exactly what the relay counts as written. In a rough one they vanish in many ways, phones too.
"""

from __future__ import annotations

from random import Random
from typing import Any

import trio
from attrs import frozen

from tests.integration.relay_process import RelayProcess, until
from tests.integration.stress.client import Plan, Round, patience
from tests.integration.stress.frame_checks import Failed
from tests.integration.stress.phone import Phone
from tests.integration.stress.viewer import Viewer


@frozen
class Outcome:
    """What a round did, as its clients and the relay counted it."""

    seen: int
    written: int
    dropped: int
    too_slow: int
    """Viewers that the relay gave up."""


async def run_round(relay: RelayProcess, token: str, plan: Plan) -> Outcome:
    """Play one round; `Failed` when somebody saw what must not be."""
    before = await relay.stats()
    played = Round(relay, token, plan)
    random = Random(plan.name)
    async with trio.open_nursery() as nursery:
        for stream in range(plan.streams):
            nursery.start_soon(Phone(played, Random(random.random()), stream=stream).run)
        for _ in range(plan.clients):
            nursery.start_soon(Viewer(played, Random(random.random())).run)
        with patience("all clients to begin"):
            await played.all_came.wait()
        await trio.sleep(plan.seconds)
        played.over.set()
    return await _settle(played, before)


async def _settle(played: Round, before: dict[str, Any]) -> Outcome:
    """Wait until the relay has noticed that all are gone, and look at its books."""

    async def forgotten() -> bool:
        return not (await played.relay.stats())["connections"]

    await until(forgotten)
    after = await played.relay.stats()
    frames, dropped = after["frames_to_consumers"], after["frames_to_consumers"]["dropped"]
    written = frames["written"] - before["frames_to_consumers"]["written"]
    if after["streams"]["consumers"] or frames["waiting"]:
        raise Failed(f"left behind: {after['streams']}, {frames}")
    if frames["accepted"] != frames["written"] + sum(dropped.values()):
        raise Failed(f"the ledger is out: {frames}")
    for ending in ("internal_error", "idle_timeout", "overloaded"):
        if after["endings"].get(ending):
            raise Failed(f"connections ended with {ending}: {after['endings']}")
    seen = played.record.frames
    exact = not played.plan.rough and not played.too_slow
    if seen > written or (exact and seen != written):
        raise Failed(f"{seen} frames were seen, and {written} written")
    accepted = after["frames_accepted"] - before["frames_accepted"]
    if accepted > played.sent or (not played.plan.rough and accepted != played.sent):
        raise Failed(f"{played.sent} frames were sent, and {accepted} accepted")
    drops = sum(dropped.values()) - sum(before["frames_to_consumers"]["dropped"].values())
    return Outcome(seen, written, drops, played.too_slow)
