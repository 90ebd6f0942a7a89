"""Notifications from the page, in a real Chromium.

Its push service is not reachable, so what `PushManager` would give is ours: the service on
loopback. What that has got and decrypted, the browser hands to the real service worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, Worker, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import (
    FLAGS,
    NAMES_OF_WHOLE,
    Visitor,
    find_chromium,
    raise_alert,
    visit,
)
from tests.integration.peers import new_stream_id
from tests.integration.push_service import PushBrowser, PushThread, open_push_thread
from tests.integration.relay_process import RelayProcess, start_relay

BASE = "/cams"
SEVERITIES_OF = "select min_severity from relay.alert_targets where viewer_id = %s"
TARGETS_OF = "select target_id from relay.alert_targets where viewer_id = %s"
# What Chromium's own gives after it has asked its push service.
PUSH_MANAGER = """
const make = ({ which, key }) => ({
  endpoint: SUBSCRIPTIONS[which].endpoint,
  options: { userVisibleOnly: true, applicationServerKey: Uint8Array.from(key).buffer },
  toJSON: () => SUBSCRIPTIONS[which],
  unsubscribe: async () => {
    sessionStorage.removeItem('pushed');
    sessionStorage.setItem('which', Math.min(which + 1, SUBSCRIPTIONS.length - 1));
    return true;
  },
});
PushManager.prototype.getSubscription = async () => {
  const kept = JSON.parse(sessionStorage.getItem('pushed') ?? 'null');
  return kept && make(kept);
};
PushManager.prototype.subscribe = async ({ userVisibleOnly, applicationServerKey }) => {
  if (!userVisibleOnly) throw new Error('Chromium wants it');
  const which = Number(sessionStorage.getItem('which') ?? 0);
  const made = { which, key: [...applicationServerKey] };
  sessionStorage.setItem('pushed', JSON.stringify(made));
  return make(made);
};
"""


@pytest.fixture(scope="module")
def whole_browser(browser: Browser) -> Iterator[Browser]:
    """One that shows notifications, which that of the other tests may not do."""
    executable = find_chromium(NAMES_OF_WHOLE)
    whole = browser.browser_type.launch(executable_path=executable, args=FLAGS)
    yield whole
    whole.close()


@pytest.fixture(scope="module")
def service() -> Iterator[PushThread]:
    with open_push_thread() as service:
        yield service


@pytest.fixture(scope="module")
def relay(service: PushThread, database_url: str) -> Iterator[RelayProcess]:
    with start_relay(
        *("--webhook-networks", "127.0.0.0/8", "--push-services", service.url),
        *("--base-path", BASE),
        database_url=database_url,
    ) as relay:
        yield relay


def own(accounts: Accounts, user_id: str) -> str:
    stream_id = new_stream_id()
    claim = "insert into relay.streams (stream_id, owner_id) values (%s, %s)"
    accounts.execute(claim, stream_id, user_id)
    return stream_id


def subscribe_with(context: BrowserContext, *browsers: PushBrowser) -> None:
    """From the next page on, the browser has this push service, which knows it by the next name
    each time that it subscribes anew."""
    subscriptions = json.dumps([each.subscription for each in browsers])
    context.add_init_script(f"const SUBSCRIPTIONS = {subscriptions};\n{PUSH_MANAGER}")


def open_page(visitor: Visitor, relay: RelayProcess, token: str, view: str) -> None:
    visitor.page.goto(f"{relay.url}{BASE}/#{view}")
    visitor.page.reload()
    visitor.enter(token)


def worker_of(page: Page, cdp: CDPSession) -> dict[str, Any]:
    """The registration of the service worker, once it is active."""
    found: list[dict[str, Any]] = []
    cdp.on(
        "ServiceWorker.workerRegistrationUpdated",
        lambda event: found.extend(event["registrations"]),
    )
    cdp.send("ServiceWorker.enable")
    page.evaluate("() => navigator.serviceWorker.ready.then(() => true)")
    for _ in range(100):
        if found:
            return found[-1]
        page.wait_for_timeout(50)
    raise AssertionError("there is no service worker")


SHOWN = """async () => {
  const registration = self.registration ?? await navigator.serviceWorker.ready;
  const shown = await registration.getNotifications();
  return shown.map(({ title, body, tag, data, requireInteraction }) => (
    { title, body, tag, data, requireInteraction }));
}"""


def deliver_until(
    page: Page, count: int, deliver: Callable[[], object], worker: Worker | None = None
) -> list[dict[str, Any]]:
    """Deliver a message until so many notifications are shown; returns these, as the page is told,
    or the worker.

    Again where it does not come: once, on a busy machine, Chromium did not list one for 30 s. A
    second one has the tag of the first, and takes its place.
    """
    for tries in range(300):
        if tries % 50 == 0:
            deliver()
        page.wait_for_timeout(100)  # `wait_for_function` does not wait for what a promise gives
        shown: list[dict[str, Any]] = (worker or page).evaluate(SHOWN)
        if len(shown) == count:
            return shown
    raise AssertionError(shown)


def test_a_switch_on_the_page_leads_to_notifications_that_open_the_stream(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("ann"), own(accounts, "ann")
    phone = service.browser()
    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, phone)
        open_page(visitor, relay, token, f"watch/{stream_id}")
        switch = page.get_by_role("switch", name="Notify me of alerts on this stream")
        expect(switch).to_be_enabled()
        expect(switch).not_to_be_checked()
        phone.application_key = page.evaluate(
            "(token) => fetch('push', { headers: { Authorization: `Bearer ${token}` } })"
            ".then((answer) => answer.json()).then(({ key }) => key)",
            token,
        )
        switch.click()
        visitor.expect_text("This browser is notified, also while this page is closed")
        expect(switch).to_be_checked()
        page.get_by_label("Severity").select_option("high")
        service.wait(lambda: accounts.execute(SEVERITIES_OF, "ann") == [("high",)])
        raise_alert(relay, token, stream_id, "A sigh", severity="low")
        raise_alert(relay, token, stream_id, "Smoke", severity="critical")
        service.wait(lambda: phone.bodies == ["Smoke"])

        cdp = visitor.context.new_cdp_session(page)
        worker = worker_of(page, cdp)
        assert worker["scopeURL"] == f"{relay.url}{BASE}/"
        [pushed] = phone.received
        push = partial(deliver, cdp, relay, worker)
        [shown] = deliver_until(page, 1, partial(push, json.dumps(pushed.content)))
        assert shown == {
            "title": f"{stream_id}: critical",
            "body": "Smoke",
            "tag": pushed.content["tag"],
            "data": {"streamId": stream_id},
            "requireInteraction": True,
        }
        # One that is no message of relay's is shown all the same: browsers want that.
        deliver_until(page, 2, partial(push, "\0nonsense"))

        visitor.go("Broadcast")
        picture = visitor.context.new_page()  # below the same path, and not the page
        picture.goto(f"{relay.url}{BASE}/page/icon.svg")
        click_notification(visitor.context, stream_id)
        expect(page).to_have_url(f"{relay.url}{BASE}/#watch/{stream_id}")
        picture.close()

        expect(switch).to_be_checked()
        page.get_by_role("button", name="Forget token").click()
        expect(page.get_by_label("Token", exact=True)).to_be_visible()
        service.wait(lambda: accounts.execute(TARGETS_OF, "ann") == [])


def deliver(cdp: CDPSession, relay: RelayProcess, worker: dict[str, Any], data: str) -> None:
    given = {"origin": relay.url, "registrationId": worker["registrationId"], "data": data}
    cdp.send("ServiceWorker.deliverPushMessage", given)


def click_notification(context: BrowserContext, stream_id: str) -> None:
    """As a click does, but that it may not bring the page to the front."""
    [worker] = context.service_workers
    worker.evaluate(
        """async (streamId) => {
          const shown = await self.registration.getNotifications();
          const notification = shown.find(({ data }) => data?.streamId === streamId);
          self.dispatchEvent(new NotificationEvent('notificationclick', { notification }));
        }""",
        stream_id,
    )


@pytest.mark.slow
def test_all_streams_are_one_switch_and_browsers_are_listed(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("bob"), own(accounts, "bob")
    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, service.browser())
        open_page(visitor, relay, token, "watch")
        everything = page.get_by_role("switch", name="Notify me of alerts on all streams")
        everything.click()
        visitor.expect_text("This browser is notified")
        page.get_by_text("Browsers that are notified").click()
        visitor.expect_text("This browser: all streams")
        page.evaluate("(id) => { location.hash = `#watch/${id}`; }", stream_id)
        one = page.get_by_role("switch", name="Notify me of alerts on this stream")
        expect(one).to_be_checked()
        expect(one).to_be_disabled()
        visitor.expect_text("On for all streams")
        visitor.go("Watch")
        expect(everything).to_be_checked()
        page.get_by_text("Browsers that are notified").click()
        page.get_by_role("button", name="Remove: This browser").click()
        visitor.expect_text("It is not notified any more")
        expect(everything).not_to_be_checked()
        assert accounts.execute(TARGETS_OF, "bob") == []


@pytest.mark.slow
def test_a_browser_that_has_to_subscribe_again_keeps_its_rules_and_is_there_once(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("cas"), own(accounts, "cas")
    before, after = service.browser(), service.browser()
    targets = (
        "select target_id, min_severity, streams, given_up_at from relay.alert_targets"
        " where viewer_id = 'cas'"
    )
    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, before, after)
        open_page(visitor, relay, token, f"watch/{stream_id}")
        page.get_by_role("switch", name="Notify me of alerts on this stream").click()
        visitor.expect_text("This browser is notified")
        page.get_by_label("Severity").select_option("critical")
        rules = ("critical", [stream_id], None)
        service.wait(lambda: accounts.execute(targets) == [(before.target_id, *rules)])

        # It could not be reached for long.
        accounts.execute("update relay.alert_targets set given_up_at = now()")
        page.reload()
        visitor.enter(token)
        service.wait(lambda: accounts.execute(targets) == [(before.target_id, *rules)])

        # Relay has another key by now.
        page.evaluate(
            "() => sessionStorage.setItem('pushed', JSON.stringify({ which: 0, key: [4, 1] }))"
        )
        page.reload()
        visitor.enter(token)
        service.wait(lambda: accounts.execute(targets) == [(after.target_id, *rules)])
        expect(page.get_by_label("Severity")).to_have_value("critical")
        accounts.execute("delete from relay.alert_targets")


RENEW = """() => {
  const { which, key } = JSON.parse(sessionStorage.getItem('pushed'));
  sessionStorage.setItem('pushed', JSON.stringify({ which: which + 1, key }));
}"""
TELL_WORKER = """() => {
  const event = new ExtendableEvent('pushsubscriptionchange');
  return new Promise((resolve) => { self.dispatchEvent(event); resolve(); });
}"""


@pytest.mark.slow
def test_a_browser_that_has_renewed_its_subscription_keeps_its_rules(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("dot"), own(accounts, "dot")
    names = [service.browser() for _ in range(4)]
    targets = (
        "select target_id, min_severity, cooldown, streams from relay.alert_targets"
        " where viewer_id = 'dot'"
    )

    def wait_for(*expected: PushBrowser) -> None:
        rules = ("high", 300, [stream_id])
        service.wait(
            lambda: accounts.execute(targets) == [(each.target_id, *rules) for each in expected]
        )

    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, *names)
        open_page(visitor, relay, token, f"watch/{stream_id}")
        switch = page.get_by_role("switch", name="Notify me of alerts on this stream")
        switch.click()
        visitor.expect_text("This browser is notified")
        accounts.execute("update relay.alert_targets set cooldown = 300")
        page.reload()
        visitor.enter(token)
        expect(switch).to_be_checked()
        page.get_by_label("Severity").select_option("high")
        wait_for(names[0])

        page.evaluate(RENEW)  # while no page is open
        page.reload()
        visitor.enter(token)
        wait_for(names[1])
        expect(switch).to_be_checked()

        page.evaluate(RENEW)
        accounts.execute("delete from relay.alert_targets")  # as after the answer 410
        page.reload()
        visitor.enter(token)
        wait_for(names[2])

        [worker] = visitor.context.service_workers
        page.evaluate(RENEW)
        visitor.go("Broadcast")
        worker.evaluate(TELL_WORKER)
        wait_for(names[3])

        page.goto("about:blank")
        [asked] = deliver_until(page, 1, partial(worker.evaluate, TELL_WORKER), worker)
        assert asked["tag"] == "relay-subscription"
        accounts.execute("delete from relay.alert_targets")


@pytest.mark.slow
def test_one_that_was_removed_elsewhere_or_is_of_another_user_stays_removed(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("eve"), own(accounts, "eve")
    count = "select target_id from relay.alert_targets where viewer_id in ('eve', 'fay')"
    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, service.browser(), service.browser())
        open_page(visitor, relay, token, f"watch/{stream_id}")
        switch = page.get_by_role("switch", name="Notify me of alerts on this stream")
        switch.click()
        visitor.expect_text("This browser is notified")

        page.evaluate(RENEW)
        page.reload()
        visitor.enter(accounts.session("fay"))
        expect(switch).to_be_enabled()
        expect(switch).not_to_be_checked()
        assert len(accounts.execute(count)) == 1

        page.evaluate("() => localStorage.clear()")
        page.reload()
        visitor.enter(token)
        expect(switch).to_be_enabled()
        switch.click()
        visitor.expect_text("This browser is notified")
        accounts.execute("delete from relay.alert_targets")  # as by the list on another browser
        for _ in range(2):
            page.reload()
            visitor.enter(token)
            expect(switch).to_be_enabled()
            expect(switch).not_to_be_checked()
        assert accounts.execute(count) == []


@pytest.mark.slow
def test_a_renewal_that_no_open_page_can_tell_relay_asks_to_open_it(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("gus"), own(accounts, "gus")
    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, service.browser(), service.browser())
        open_page(visitor, relay, token, f"watch/{stream_id}")
        page.get_by_role("switch", name="Notify me of alerts on this stream").click()
        visitor.expect_text("This browser is notified")

        page.reload()  # a page without a session
        expect(page.get_by_label("Token", exact=True)).to_be_visible()
        page.evaluate(RENEW)
        [worker] = visitor.context.service_workers
        [asked] = deliver_until(page, 1, partial(worker.evaluate, TELL_WORKER))
        assert asked["tag"] == "relay-subscription"
        accounts.execute("delete from relay.alert_targets")


@pytest.mark.slow
def test_another_relay_of_the_same_origin_does_not_take_the_rules_over(
    whole_browser: Browser, relay: RelayProcess, accounts: Accounts, service: PushThread
) -> None:
    token, stream_id = accounts.session("hal"), own(accounts, "hal")
    with visit(whole_browser, relay, permissions=["notifications"]) as visitor:
        page = visitor.page
        subscribe_with(visitor.context, service.browser(), service.browser())
        open_page(visitor, relay, token, f"watch/{stream_id}")
        page.get_by_role("switch", name="Notify me of alerts on this stream").click()
        visitor.expect_text("This browser is notified")
        before = accounts.execute(TARGETS_OF, "hal")
        assert len(before) == 1

        visitor.context.route(
            "**/other/**",
            lambda route: route.continue_(url=route.request.url.replace("/other/", f"{BASE}/")),
        )
        page.goto(f"{relay.url}/other/")
        # Its own service worker has no subscription.
        page.evaluate("sessionStorage.removeItem('pushed'); sessionStorage.setItem('which', 1)")
        page.evaluate(
            "(token) => import('/other/page/notify.js').then(({ repair }) => repair(token, 'hal'))",
            token,
        )
        assert accounts.execute(TARGETS_OF, "hal") == before
        accounts.execute("delete from relay.alert_targets")


def test_the_page_asks_only_on_a_click_and_says_what_is_in_the_way(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")
    with visit(browser, relay) as visitor:
        visitor.context.add_init_script(
            "globalThis.asked = 0;"
            "Notification.requestPermission = async () => { asked += 1; return 'denied'; };"
            "Object.defineProperty(Notification, 'permission', { get: () => 'default' });"
        )
        open_page(visitor, relay, token, "watch")
        switch = visitor.page.get_by_role("switch")
        expect(switch).to_be_enabled()
        assert visitor.page.evaluate("asked") == 0
        switch.click()
        visitor.expect_text("You have not allowed notifications")
        expect(switch).not_to_be_checked()
        assert visitor.page.evaluate("asked") == 1
    with visit(browser, relay, host="insecure.test") as visitor:
        visitor.page.goto(f"http://insecure.test:{relay.port}{BASE}/")
        visitor.enter(token)
        visitor.expect_text("Notifications need HTTPS, or a page on localhost")
        expect(visitor.page.get_by_role("switch")).to_be_disabled()
    with visit(browser, relay) as visitor:
        visitor.context.add_init_script(
            "delete globalThis.PushManager; navigator.standalone = false;"
        )
        open_page(visitor, relay, token, "watch")
        visitor.expect_text("add this page to the Home Screen first")


def test_services_are_not_offered_any(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    with visit(browser, relay) as visitor:
        open_page(visitor, relay, accounts.service("*"), "watch")
        visitor.expect_state("Connected as a service")
        visitor.expect_text("No live streams")
        expect(visitor.page.get_by_role("switch")).to_have_count(0)


async def test_the_worker_and_the_manifest_are_served_below_the_path(relay: RelayProcess) -> None:
    worker = await relay.get("/cams/push-worker.js")
    assert worker.headers["Content-Type"].startswith("text/javascript")
    assert worker.headers["Cache-Control"] == "no-cache"
    assert "script-src 'self'" in worker.headers["Content-Security-Policy"]
    manifest = await relay.get("/cams/app.webmanifest")
    assert manifest.headers["Content-Type"] == "application/manifest+json"
    assert manifest.json()["display"] == "standalone"
