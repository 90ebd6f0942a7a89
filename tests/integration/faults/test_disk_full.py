"""The disk of the embedded Postgres is full: nothing is said to be stored that is not, streams go
on, and all is well again when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.postgres.embedded.folder import DataFolder
from tests.integration.accounts import Accounts
from tests.integration.faults import disk
from tests.integration.faults.postgres import own_place
from tests.integration.faults.scene import open_scene
from tests.integration.relay_process import start_relay

SOON = 1.0
SETTINGS = ("--statement-timeout", "1", "--connect-timeout", "1")


def accounts_of(folder: Path) -> Accounts:
    url = DataFolder.open(folder).announced()
    assert url is not None
    return Accounts(url)


@pytest.mark.skipif(not disk.can_mount, reason="platform: only root mounts, as on Linux")
async def test_a_full_disk_takes_no_alerts_and_lets_everybody_in() -> None:
    with (
        disk.small_disk() as small,
        start_relay(*SETTINGS, "--data-dir", str(small / "data")) as relay,
    ):
        async with open_scene(relay, accounts_of(small / "data")) as scene:
            scene.padding = disk.PADDING
            seen = await scene.through(disk.full(small), seconds=2)
        assert "No space left on device" in relay.log
    assert set(seen.answers["phone"].counts) == {"AUTHENTICATED"}
    assert set(seen.answers["renewal"].counts) == {"AUTHENTICATED"}
    assert "STORE_UNAVAILABLE" in seen.answers["alert"].counts
    assert seen.longest_gap < SOON
    assert max(seen.recovery.values()) < 5


@pytest.mark.slow
async def test_a_postgres_that_cannot_write_at_all_is_started_again_until_it_can() -> None:
    with own_place() as place:
        limited = disk.Limited.make(place.parent)
        flags = (*SETTINGS, "--data-dir", str(place), "--postgres-bin", str(limited.folder))
        with start_relay(*flags) as relay:
            async with open_scene(relay, accounts_of(place)) as scene:
                seen = await scene.through(limited.unable(place), seconds=2)
            assert "the embedded Postgres did not start" in relay.log
    assert "AUTH_UNAVAILABLE, close 4013" in seen.answers["phone"].counts
    assert "STORE_UNAVAILABLE" in seen.answers["alert"].counts
    assert seen.longest_gap < SOON
    assert max(seen.recovery.values()) < 10
