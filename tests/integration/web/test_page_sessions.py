"""Tokens and sessions on the page in a real Chromium: entering, renewing, ending."""

from __future__ import annotations

from datetime import timedelta

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess


def test_a_revoked_session_shows_what_to_do(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")
    with visit(browser, relay) as viewer:
        viewer.enter(token, keep=True)
        viewer.expect_state("Connected as ann")
        viewer.expected = "401"  # where earlier alerts are asked for after the end
        accounts.execute("delete from session where token = %s", token)
        viewer.expect_text("Your session was ended")
        expect(viewer.page.get_by_label("Token", exact=True)).to_be_focused()
        viewer.page.reload()
        expect(viewer.page.get_by_role("button", name="Connect")).to_be_visible()
        viewer.enter(accounts.session("ann"))
        viewer.expect_state("Connected as ann")


@pytest.mark.slow
def test_a_browser_that_keeps_nothing_can_do_all_the_same(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    forbid = "{ get() { throw new DOMException('no', 'SecurityError'); } }"
    with visit(browser, relay) as phone:
        phone.context.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {forbid});")
        phone.page.reload()
        phone.broadcast_as(accounts.session("ann"), new_stream_id(), keep=True)
        phone.page.get_by_role("button", name="Forget token").click()
        expect(phone.page.get_by_role("button", name="Connect")).to_be_visible()


def test_a_session_that_ends_soon_goes_on_with_a_new_token(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    short, stream_id = timedelta(seconds=50), new_stream_id()
    with visit(browser, relay) as phone:
        phone.enter(accounts.session("ann", lasts=short), keep=True)
        phone.broadcast(stream_id)
        phone.expect_text("The session ends at")
        for wrong, words in (
            ("guessed once", "The relay rejected that token"),
            (accounts.session("bob"), "That token belongs to another user"),
        ):
            phone.renew(wrong)
            phone.expect_text(words)
            phone.expect_state("Connected as ann")
        token = accounts.session("ann")
        phone.renew(token)
        expect(phone.page.locator("#renewal")).to_be_hidden()
        phone.expect_state("Connected as ann")
        phone.expect_text("Paused, because nobody is watching")
        assert phone.page.evaluate("sessionStorage.getItem('relay-token')") == token


@pytest.mark.slow
def test_a_session_that_has_ended_goes_on_with_a_new_token_and_so_does_its_camera(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.expected = "401"  # where earlier alerts are asked for after the end
        viewer.enter(accounts.session("ann"))
        phone.enter(accounts.session("ann", lasts=timedelta(seconds=8)))
        phone.broadcast(stream_id)
        viewer.watch(stream_id)
        phone.expect_text("The session has ended")
        phone.expect_state("Needs a new token")
        phone.renew("guessed twice")
        phone.expect_text("The relay rejected that token")
        phone.renew(accounts.session("ann"))
        expect(phone.page.locator("#renewal")).to_be_hidden()
        phone.expect_state("Connected as ann")
        phone.expect_text("On air")
        viewer.expect_moving_picture()


@pytest.mark.slow
def test_who_enters_after_another_does_not_broadcast_for_them(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone:
        phone.broadcast_as(accounts.session("ann"), stream_id)
        phone.page.get_by_role("button", name="Forget token").click()
        phone.enter(accounts.session("bob"))
        phone.broadcast(stream_id)
        phone.expect_text("The relay rejected the stream")
        phone.expect_text("This stream id is taken")


def test_a_wrong_token_is_told_and_can_be_mended(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    with visit(browser, relay) as viewer:
        viewer.enter("guessed")
        viewer.expect_text("The token is invalid")
        viewer.enter(accounts.session("ann"))
        viewer.expect_state("Connected as ann")


@pytest.mark.slow
def test_a_token_is_kept_on_request_only_and_never_in_the_address(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")
    stored = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    with visit(browser, relay) as viewer:
        viewer.enter(token)
        viewer.expect_state("Connected")
        assert token not in viewer.page.evaluate(stored)
        viewer.page.reload()
        viewer.enter(token, keep=True)
        viewer.expect_state("Connected")
        viewer.page.reload()
        viewer.expect_state("Connected")
        for view in ("Broadcast", "Operate", "Watch"):
            viewer.go(view)
            assert token not in viewer.page.url
        viewer.page.get_by_role("button", name="Forget token").click()
        assert token not in viewer.page.evaluate(stored)
        viewer.problems.clear()  # the 403 of Operate
