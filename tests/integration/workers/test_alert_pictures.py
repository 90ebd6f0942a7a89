"""Any worker of a machine serves what the worker with the phone has kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.peers import login
from tests.integration.relay_process import start_relay
from tests.integration.web.test_pictures import bearer, film, on_air

__all__ = ["film"]


@pytest.mark.slow
async def test_a_still_is_kept_by_one_worker_and_served_by_all(
    database_url: str, accounts: Accounts, film: list[bytes], tmp_path: Path
) -> None:
    ann = accounts.session()
    options = ("--workers", "2", "--picture-dir", str(tmp_path))
    with start_relay(*options, database_url=database_url) as relay:
        async with on_air(relay, ann, film) as (stream_id, _), login(relay, ann) as sentry:
            alert = {"streamId": stream_id, "severity": "high", "message": "m", "frame": True}
            alert_id = (await sentry.ask({"type": "alert", **alert}))["alertId"]
            for _ in range(6):  # requests go to workers in turn
                got = await relay.get(f"/alerts/{alert_id}/still.jpg", headers=bearer(ann))
                assert (got.status, got.body in film) == (200, True)
