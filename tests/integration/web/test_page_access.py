"""The page on a small screen, with the keyboard alone, and for a screen reader."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess

SMALL = """() =>
  [...document.querySelectorAll('button, select, input:not([type=checkbox])')]
    .filter((each) => each.offsetParent && each.offsetHeight < 32)
    .map((each) => each.outerHTML)"""
"""What is too small for a thumb."""
MAX_FIRST_LOAD_BYTES = 60_000


@pytest.mark.slow
def test_the_page_can_be_used_with_the_keyboard_alone(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("kim"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.broadcast_as(token, stream_id)
        viewer.page.keyboard.type(token)
        viewer.page.keyboard.press("Enter")
        tile = viewer.page.get_by_role("link", name=stream_id)
        expect(tile).to_be_visible()
        for _ in range(10):
            viewer.page.keyboard.press("Tab")
            if tile.evaluate("element => element === document.activeElement"):
                break
        viewer.page.keyboard.press("Enter")
        expect(viewer.page.get_by_role("heading", name=stream_id)).to_be_focused()
        viewer.expect_moving_picture()
        viewer.page.keyboard.press("Escape")
        expect(viewer.page.get_by_role("heading", name="Streams")).to_be_focused()


@pytest.mark.parametrize("view", ["Watch", "Broadcast", "Operate"])
def test_no_view_is_wider_than_a_phone(
    browser: Browser, relay: RelayProcess, accounts: Accounts, view: str
) -> None:
    size = {"width": 360, "height": 640}
    with visit(browser, relay, viewport=size) as phone:
        phone.enter(accounts.service("*", operate=True))
        phone.expect_state("Connected")
        phone.go(view)
        expect(phone.page.get_by_role("heading", level=1)).to_be_visible()
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert phone.page.evaluate(SMALL) == []


@pytest.mark.slow
def test_no_figure_is_cut_on_a_phone(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    size = {"width": 360, "height": 640}
    with visit(browser, relay) as phone, visit(browser, relay, viewport=size) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        viewer.watch_as(token, stream_id)
        viewer.expect_text(re.compile(r"[\d.]+ [kM]bit/s"))
        cut = viewer.page.evaluate(
            "() => [...document.querySelectorAll('dd')]"
            ".filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"
        )
        assert cut == []


@pytest.mark.slow
def test_a_screen_reader_is_not_told_of_each_second_until_the_next_attempt(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    with visit(browser, relay) as viewer:
        viewer.enter(accounts.session("ann"))
        viewer.expect_state("Connected")
        viewer.page.evaluate(
            "() => { const where = document.getElementById('state'); where.said = [];"
            " new MutationObserver(() => where.said.push([...where.childNodes]"
            ".filter((each) => !each.ariaHidden).map((each) => each.textContent).join('')))"
            ".observe(where, {childList: true, characterData: true, subtree: true}); }"
        )
        viewer.context.set_offline(True)
        viewer.page.evaluate("() => dispatchEvent(new Event('offline'))")
        viewer.expect_state("reconnecting in")
        said = viewer.page.evaluate("() => document.getElementById('state').said")
        assert not [text for text in said if re.search(r"\d s", text)], said
        viewer.context.set_offline(False)
        viewer.problems.clear()


def test_the_first_load_is_small(browser: Browser, relay: RelayProcess, accounts: Accounts) -> None:
    """All that comes over the wire until the user sees the list of streams: heads, and bodies as
    they are compressed."""
    with visit(browser, relay) as visitor:
        network = visitor.context.new_cdp_session(visitor.page)
        network.send("Network.enable")
        network.send("Network.setCacheDisabled", {"cacheDisabled": True})
        loaded: list[float] = []
        network.on(
            "Network.loadingFinished", lambda event: loaded.append(event["encodedDataLength"])
        )
        visitor.page.reload()
        visitor.enter(accounts.session("zoe"))
        visitor.expect_text("No live streams")
        assert len(loaded) > 10
        assert sum(loaded) <= MAX_FIRST_LOAD_BYTES
        loaded.clear()
        visitor.go("Operate")
        visitor.expect_text("This token cannot show statistics")
        assert len(loaded) > 1  # what few need comes when they do
        visitor.problems.clear()  # the 403
