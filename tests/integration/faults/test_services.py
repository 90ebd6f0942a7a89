"""A service that raises, hangs, or raises for ever is started again; streams do not notice, alerts
are late and none is lost."""

from __future__ import annotations

import pytest

from tests.integration.accounts import Accounts
from tests.integration.faults.scene import open_scene
from tests.integration.faults.services import TURN, breakable_relay
from tests.integration.relay_process import until

SOON = 1.0
RESTARTS = 'relay_service_restarts_total{service="alert-dispatch"}'


def state(name: str) -> str:
    return f'relay_service_state{{service="alert-dispatch",state="{name}"}}'


async def test_one_that_raises_and_goes_on_raising_holds_up_alerts_only(
    database_url: str, accounts: Accounts
) -> None:
    with breakable_relay(database_url) as faults:
        async with open_scene(faults.relay, accounts) as scene:
            seen = await scene.through(faults.there_is("crashes"), seconds=2)
        assert set(seen.answers["phone"].counts) == {"AUTHENTICATED"}
        assert set(seen.answers["alert"].counts) == {"ALERT_ACCEPTED"}
        assert "503, alert-dispatch not running" in seen.answers["ready"].counts
        assert seen.longest_gap < SOON
        # Ever more slowly, so that a fault that stays fills no log.
        assert 2 <= await faults.figure(RESTARTS) <= 6
        assert faults.relay.log.count("RuntimeError: a bug in the dispatch") <= 6


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "deaf"])
async def test_one_that_gets_nowhere_is_noticed_and_started_again(
    fault: str, database_url: str, accounts: Accounts
) -> None:
    with breakable_relay(database_url) as faults:
        async with open_scene(faults.relay, accounts) as scene:
            # So long that it was started a few times, and waits for the next for most of a second.
            seen = await scene.through(faults.there_is(fault), seconds=6 * TURN)
        assert set(seen.answers["alert"].counts) == {"ALERT_ACCEPTED"}
        assert "503, alert-dispatch not running" in seen.answers["ready"].counts
        assert seen.longest_gap < SOON
        assert await faults.figure(RESTARTS) >= 1

        async def is_running() -> bool:
            return await faults.figure(state("running")) == 1

        await until(is_running)
        assert "service is stuck" in faults.relay.log


async def test_relay_says_that_it_listens_when_all_run(database_url: str) -> None:
    # A busy machine is not to be taken for a service that is stuck.
    with breakable_relay(database_url, "starts-late", turn=60) as faults:
        assert (await faults.relay.get("/ready")).status == 200


@pytest.mark.slow
async def test_one_that_never_becomes_ready_is_tried_again(
    database_url: str, accounts: Accounts
) -> None:
    with breakable_relay(database_url, "never-starts") as faults:
        assert (await faults.relay.get("/ready")).status == 503
        async with open_scene(faults.relay, accounts) as scene:
            await scene.send_alert("early")
            await faults.relay.until_logged("service is stuck")
            (faults.folder / "never-starts").unlink()

            async def is_ready() -> bool:
                return await scene.ask_ready() == "200"

            await until(is_ready)
            await scene.send_alert("late")
            await until(lambda: scene.delivered["late"] == 1)
