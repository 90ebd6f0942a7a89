"""No alert that was acknowledged is lost, doubled or out of order when relays are killed."""

from __future__ import annotations

from tests.integration.kill_scenario import play

ROUNDS = 4


async def test_killed_at_any_moment_no_acknowledged_alert_is_lost_or_doubled(
    postgres_url: str,
) -> None:
    tally = await play(postgres_url, rounds=ROUNDS, seed="the suite")
    assert tally.flawless, str(tally)
    assert (tally.rounds, tally.between) == (ROUNDS, ROUNDS // 2)
    # Those rounds ended where they were meant to, with alerts that had to be sent again.
    assert tally.unheard >= ROUNDS // 2, str(tally)
