"""Pictures and clips of alerts on the page, in a real Chromium."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import raise_alert, visit
from tests.integration.relay_process import start_relay
from tests.integration.web.test_pictures import film, sending

__all__ = ["film"]


def test_an_alert_is_listed_with_its_picture_and_its_clip_plays(
    browser: Browser,
    accounts: Accounts,
    film: list[bytes],
    database_url: str,
    tmp_path: Path,
) -> None:
    token, service = accounts.session("ann"), accounts.service("*")
    options = ("--clip-streams", "*", "--clip-before", "1", "--clip-after", "1")
    with (
        start_relay(*options, "--picture-dir", str(tmp_path), database_url=database_url) as relay,
        sending(relay, token, film) as stream_id,
        visit(browser, relay) as viewer,
    ):
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        raise_alert(relay, service, stream_id, "Somebody is at the door", frame=True)
        line = viewer.page.get_by_role("listitem").filter(has_text="Somebody is at the door")
        picture = line.get_by_role("img", name="Picture of the alert: Somebody is at the door")
        expect(picture).to_be_visible()
        assert picture.evaluate("canvas => canvas.width") > 100
        line.get_by_role("button", name="Play clip").click()
        expect(line.get_by_role("button", name="Stop clip")).to_be_visible()
        expect(line.get_by_role("button", name="Play clip")).to_be_visible(timeout=15_000)
        expect(line.get_by_role("status")).to_have_text("")
