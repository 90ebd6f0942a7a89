"""Alerts on the page in a real Chromium: toasts, and lists that can be read back."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import raise_alert, visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess


def test_an_alert_pops_up_and_is_listed_and_can_be_found_later(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.broadcast_as(token, stream_id)
        raise_alert(relay, service, stream_id, "earlier than anybody watched")
        viewer.watch_as(token, stream_id)
        viewer.expect_text("earlier than anybody watched")
        viewer.expect_moving_picture()

        markup = "<b>Smoke</b> & mirrors"
        raise_alert(relay, service, stream_id, markup)
        for visitor in (phone, viewer):
            expect(visitor.page.locator(".toast")).to_contain_text([markup])
            listed = visitor.page.get_by_role("list", name="Alerts of")
            expect(listed.get_by_role("listitem")).to_have_count(2)
        viewer.page.get_by_role("button", name="Dismiss").click()
        expect(viewer.page.locator(".toast")).to_have_count(0)


@pytest.mark.slow
def test_many_alerts_do_not_hide_a_phone_s_picture_and_none_stays_for_who_comes_next(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    size = {"width": 360, "height": 740}
    with visit(browser, relay) as phone, visit(browser, relay, viewport=size) as viewer:
        phone.broadcast_as(token, stream_id)
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        for number in range(1, 7):
            raise_alert(relay, service, stream_id, f"number {number}, " + "which is long " * 40)
        toasts = viewer.page.locator(".toast:visible")
        expect(toasts).to_contain_text(["number 6"])
        box = viewer.page.locator("#toasts").bounding_box()
        assert box is not None
        assert box["height"] < size["height"] / 3
        toasts.get_by_role("button", name="Dismiss").click()
        expect(toasts).to_contain_text(["number 5"])
        viewer.page.get_by_role("button", name="Forget token").click()
        expect(viewer.page.locator(".toast")).to_have_count(0)


@pytest.mark.slow
def test_alerts_that_made_room_for_newer_ones_can_be_had_again(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()

    def raise_numbered(first: int, last: int) -> None:
        accounts.execute(
            "select relay.raise_alert(%s, number::text)"
            " from generate_series(%s::int, %s::int) as number",
            *(stream_id, first, last),
        )

    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.broadcast_as(accounts.session("ann"), stream_id)
        raise_numbered(1, 25)
        viewer.watch_as(accounts.session("ann"), stream_id)
        lines = viewer.page.locator(".alerts > li > div")
        earlier = viewer.page.get_by_role("button", name="Load earlier alerts")
        expect(lines).to_have_count(20)
        raise_numbered(26, 215)
        expect(lines.first).to_have_text("215")
        expect(lines).to_have_count(200)
        earlier.click()  # through the toasts above it
        expect(earlier).to_be_hidden()
        assert lines.all_text_contents() == [str(number) for number in range(215, 0, -1)]
        raise_alert(relay, accounts.service("*"), stream_id, "one more")
        expect(lines.first).to_have_text("one more")
        assert lines.count() == 215, "what was asked for stays as much as it was"
        expect(earlier).to_be_visible()


def test_no_alert_is_left_out_that_came_while_earlier_ones_were_under_way(
    browser: Browser, relay: RelayProcess
) -> None:
    """The list is full, and of the page that is asked for the one before its last line is first."""
    with visit(browser, relay) as viewer:
        shown = viewer.page.evaluate(
            """async () => {
              const { makeAlertList } = await import('/page/alerts.js');
              const alert = (alertId) => ({ alertId, severity: 'low', message: '', timestamp: 1 });
              let answer;
              globalThis.fetch = () => new Promise((resolve) => { answer = resolve; });
              const { element, add, loadEarlier } = makeAlertList('s', () => 'token');
              for (let id = 101; id <= 300; id += 1) add(alert(id));
              const asking = loadEarlier();
              for (let id = 301; id <= 310; id += 1) add(alert(id));
              const page = { alerts: [100, 99, 98].map(alert), more: true };
              answer({ ok: true, json: async () => page });
              await asking;
              return [...element.querySelectorAll('li')].map((line) => Number(line.dataset.alert));
            }"""
        )
    assert shown == list(range(310, 97, -1))


@pytest.mark.slow
def test_an_alert_from_no_day_of_the_calendar_hides_no_other(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.broadcast_as(token, stream_id)
        raise_alert(relay, service, stream_id, "an ordinary one")
        raise_alert(relay, service, stream_id, "from far away", timestamp=2**53)
        viewer.watch_as(token, stream_id)
        listed = viewer.page.get_by_role("list", name="Alerts of").get_by_role("listitem")
        expect(listed).to_contain_text(["from far away", "an ordinary one"])
        expect(phone.page.locator(".toast")).to_contain_text(["an ordinary one", "from far away"])
