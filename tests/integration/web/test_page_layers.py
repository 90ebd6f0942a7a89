"""Pages that send pictures in several sizes, and pages that show the one that suits them."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import Visitor, visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess

SLOW = 60_000
"""Bytes a second, of which a picture 640 pixels wide would take too many."""


LARGE, SMALL = re.compile("^640 . 360$"), re.compile("^320 . 180$")
"""The sizes of the film, as the page shows them."""


def slow_down(visitor: Visitor) -> None:
    """Throttle what the page loads from now on."""
    network = visitor.context.new_cdp_session(visitor.page)
    network.send("Network.enable")
    slow = {"latency": 20, "downloadThroughput": SLOW, "uploadThroughput": SLOW}
    network.send("Network.emulateNetworkConditions", {"offline": False, **slow})


def broadcast_jpeg(phone: Visitor, token: str, stream_id: str) -> None:
    phone.enter(token)
    phone.go("Broadcast")
    phone.page.get_by_label("Encoding").select_option("jpeg")
    phone.broadcast(stream_id, fps=10)


def test_each_viewer_gets_the_pictures_that_its_link_carries(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        visit(browser, relay) as phone,
        visit(browser, relay) as fast,
        visit(browser, relay) as slow,
    ):
        broadcast_jpeg(phone, token, stream_id)
        fast.watch_as(token, stream_id)
        fast.expect_text(LARGE)
        phone.expect_text(re.compile("^640 pixels, "))

        slow_down(slow)
        slow.watch_as(token, stream_id)
        slow.expect_moving_picture()
        slow.expect_text(SMALL)
        quality = slow.page.get_by_label("Quality")
        expect(quality.locator("option:checked")).to_have_text("Automatic (320 pixels)")
        phone.expect_text(re.compile("^320 and 640 pixels, "))
        fast.expect_text(LARGE)


def test_a_viewer_may_choose_among_the_sizes_of_a_stream(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        broadcast_jpeg(phone, token, stream_id)
        viewer.watch_as(token, stream_id)
        quality = viewer.page.get_by_label("Quality")
        options = quality.locator("option")
        expect(options).to_have_text(["Automatic (640 pixels)", "640 pixels", "320 pixels"])
        quality.select_option("320 pixels")
        viewer.expect_text(SMALL)
        expect(options.first).to_have_text("Automatic")
        phone.expect_text(re.compile("^320 pixels, .*: viewers need no more.$"))
        quality.select_option("Automatic")
        viewer.expect_text(LARGE)


def test_a_tile_gets_pictures_of_its_size(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        broadcast_jpeg(phone, token, stream_id)
        viewer.enter(token)
        tile = viewer.page.locator(f"[data-stream={stream_id}] canvas")
        expect(tile).to_have_attribute("width", "320")
        phone.expect_text(re.compile("^320 pixels, .*: viewers need no more.$"))
        viewer.page.set_viewport_size({"width": 560, "height": 700})
        expect(tile).to_have_attribute("width", "640")
