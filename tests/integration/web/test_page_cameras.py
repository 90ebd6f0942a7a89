"""Pages that show what `relay ingest` plays."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.integration.accounts import Accounts
from tests.integration.browser import visit
from tests.integration.ingest.cameras import make_film
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import PROJECT, RELAY, RelayProcess


@pytest.mark.parametrize("codec", ["h264", pytest.param("jpeg", marks=pytest.mark.slow)])
def test_a_viewer_sees_the_moving_pictures_of_a_film(
    browser: Browser, relay: RelayProcess, accounts: Accounts, tmp_path: Path, codec: str
) -> None:
    user_id = f"viewer of {codec}"
    owner, stream_id = accounts.session(user_id), new_stream_id()
    token = accounts.service(alerts=False, produce=[stream_id], user_id=user_id)
    film = make_film(tmp_path / "film.mp4", pictures=100)
    command = [*RELAY, "ingest", f"file:{film}", "--loop", "--codec", codec]
    with subprocess.Popen(
        [*command, "--stream", stream_id, "--url", relay.url],
        cwd=PROJECT,
        env={**os.environ, "RELAY_TOKEN": token},
    ) as process:
        try:
            with visit(browser, relay) as viewer:
                viewer.watch_as(owner, stream_id)
                viewer.expect_moving_picture()
        finally:
            process.kill()
