"""The page in a real Chromium: one page broadcasts a camera, another one watches."""

from __future__ import annotations

import json
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import run_chromium, visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        tempfile.TemporaryDirectory(prefix="relay-test-") as folder,
        run_chromium(Path(folder)) as browser,
    ):
        yield browser


SMALL = """() =>
  [...document.querySelectorAll('button, select, input:not([type=checkbox])')]
    .filter((each) => each.offsetParent && each.offsetHeight < 32)
    .map((each) => each.outerHTML)"""
"""What is too small for a thumb."""


def raise_alert(
    relay: RelayProcess, token: str, stream_id: str, message: str, **more: object
) -> None:
    fields = {"streamId": stream_id, "severity": "high", "message": message, **more}
    body = json.dumps(fields).encode()
    headers = {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{relay.url}/alerts", body, headers)):
        pass


def test_one_page_broadcasts_its_camera_and_another_watches_it(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        phone.expect_text("Paused: nobody watches")

        viewer.enter(token)
        viewer.watch(stream_id)
        viewer.expect_moving_picture()
        viewer.expect_text("Live")
        viewer.expect_text(re.compile(r"^\d+ ms$"))
        viewer.expect_text(re.compile(r"^640 . 360$"))
        phone.expect_text("On air")

        viewer.go("Operate")
        phone.expect_text("Paused: nobody watches")
        viewer.expect_text("This token may not operate")
        assert [text for text in viewer.problems if "403" not in text] == []
        viewer.problems.clear()


def test_a_broadcaster_sees_how_many_watch(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as first:
        phone.enter(token)
        phone.broadcast(stream_id)
        viewers = phone.page.locator(".facts div", has_text="Viewers").locator("dd")
        expect(viewers).to_have_text("0")
        first.enter(token)
        first.watch(stream_id)
        expect(viewers).to_have_text("1")
        with visit(browser, relay) as second:
            second.enter(token)
            second.watch(stream_id)
            expect(viewers).to_have_text("2")
        expect(viewers).to_have_text("1")
        first.go("Operate")
        expect(viewers).to_have_text("0")
        first.problems.clear()  # the 403 of Operate


def test_an_alert_pops_up_and_is_listed_and_can_be_found_later(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        phone.expect_text("Paused")
        raise_alert(relay, service, stream_id, "earlier than anybody watched")
        viewer.enter(token)
        viewer.watch(stream_id)
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


def test_many_alerts_do_not_hide_a_phone_s_picture_and_none_stays_for_who_comes_next(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    size = {"width": 360, "height": 740}
    with visit(browser, relay) as phone, visit(browser, relay, viewport=size) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        phone.expect_text("Paused")
        viewer.enter(token)
        viewer.watch(stream_id)
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
        phone.enter(accounts.session("ann"))
        phone.broadcast(stream_id)
        phone.expect_text("Paused")
        raise_numbered(1, 25)
        viewer.enter(accounts.session("ann"))
        viewer.watch(stream_id)
        lines = viewer.page.locator(".alerts > li > div")
        earlier = viewer.page.get_by_role("button", name="Earlier alerts")
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


def test_an_alert_from_no_day_of_the_calendar_hides_no_other(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        phone.expect_text("Paused")
        raise_alert(relay, service, stream_id, "an ordinary one")
        raise_alert(relay, service, stream_id, "from far away", timestamp=2**53)
        viewer.enter(token)
        viewer.watch(stream_id)
        listed = viewer.page.get_by_role("list", name="Alerts of").get_by_role("listitem")
        expect(listed).to_contain_text(["from far away", "an ordinary one"])
        expect(phone.page.locator(".toast")).to_contain_text(["an ordinary one", "from far away"])


def test_streams_that_are_over_make_room_for_those_that_begin(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    """As where phones make a new stream each time."""
    with visit(browser, relay) as viewer:
        viewer.enter(accounts.session("zoe"))
        viewer.expect_state("Connected")
        shown = viewer.page.evaluate(
            """async () => {
              const { showGrid } = await import('/page/watch.js');
              const content = document.createElement('div');
              let tell;
              const subscription = { update() {}, unsubscribe() {} };
              showGrid({ client: {
                subscribe: () => subscription,
                watchStreams: (listener) => { tell = listener; return () => {}; },
              } }, content);
              const stream = (number) => ({ streamId: `s${number}`, status: 'online' });
              for (let number = 0; number < 100; number += 1) tell([stream(number)]);
              tell(Array.from({ length: 100 }, (_, number) => stream(1000 + number)));
              return [content.querySelectorAll('li').length,
                content.querySelectorAll('li[data-stream^=s10]').length, content.textContent];
            }"""
        )
        assert shown[0] == shown[1] == 60
        assert "40 more" in shown[2]


def test_a_page_that_was_offline_goes_on_by_itself(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        viewer.enter(token)
        viewer.watch(stream_id)
        viewer.expect_moving_picture()

        for visitor in (viewer, phone):
            visitor.context.set_offline(True)
            visitor.expect_state("Offline")
            if visitor is phone:
                phone.expect_text("The connection is lost")
            else:
                raise_alert(relay, service, stream_id, "while the viewer was away")
            visitor.context.set_offline(False)
            visitor.expect_state("Connected")
            viewer.expect_moving_picture()
        expect(viewer.page.locator(".alerts li")).to_have_count(1)
        phone.expect_text("On air")
        for visitor in (phone, viewer):
            assert all("ERR_INTERNET_DISCONNECTED" in text for text in visitor.problems)
            visitor.problems.clear()


def test_a_revoked_session_shows_what_to_do(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")
    with visit(browser, relay) as viewer:
        viewer.enter(token, keep=True)
        viewer.expect_state("Connected as ann")
        accounts.execute("delete from session where token = %s", token)
        viewer.expect_text("This session was ended")
        expect(viewer.page.get_by_label("Token", exact=True)).to_be_focused()
        viewer.page.reload()
        expect(viewer.page.get_by_role("button", name="Enter")).to_be_visible()
        viewer.enter(accounts.session("ann"))
        viewer.expect_state("Connected as ann")


def test_a_browser_that_keeps_nothing_can_do_all_the_same(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    forbid = "{ get() { throw new DOMException('no', 'SecurityError'); } }"
    with visit(browser, relay) as phone:
        phone.context.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {forbid});")
        phone.page.reload()
        phone.enter(accounts.session("ann"), keep=True)
        phone.broadcast(new_stream_id())
        phone.expect_text("Paused: nobody watches")
        phone.page.get_by_role("button", name="Forget token").click()
        expect(phone.page.get_by_role("button", name="Enter")).to_be_visible()


def test_a_session_that_ends_soon_goes_on_with_a_new_token(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    short, stream_id = timedelta(seconds=50), new_stream_id()
    with visit(browser, relay) as phone:
        phone.enter(accounts.session("ann", lasts=short), keep=True)
        phone.broadcast(stream_id)
        phone.expect_text("The session ends at")
        for wrong, words in (
            ("guessed once", "The relay does not take that token"),
            (accounts.session("bob"), "the token of somebody else"),
        ):
            phone.renew(wrong)
            phone.expect_text(words)
            phone.expect_state("Connected as ann")
        token = accounts.session("ann")
        phone.renew(token)
        expect(phone.page.locator("#renewal")).to_be_hidden()
        phone.expect_state("Connected as ann")
        phone.expect_text("Paused: nobody watches")
        assert phone.page.evaluate("sessionStorage.getItem('relay-token')") == token


def test_a_session_that_has_ended_goes_on_with_a_new_token_and_so_does_its_camera(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        viewer.enter(accounts.session("ann"))
        phone.enter(accounts.session("ann", lasts=timedelta(seconds=4)))
        phone.broadcast(stream_id)
        viewer.watch(stream_id)
        phone.expect_text("The session has ended")
        phone.expect_state("Needs a new token")
        phone.renew("guessed twice")
        phone.expect_text("The relay does not take that token")
        phone.renew(accounts.session("ann"))
        expect(phone.page.locator("#renewal")).to_be_hidden()
        phone.expect_state("Connected as ann")
        phone.expect_text("On air")
        viewer.expect_moving_picture()


def test_a_broadcast_that_another_one_took_over_ends_and_says_so(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as older, visit(browser, relay) as newer:
        for phone in (older, newer):
            phone.enter(token)
            phone.broadcast(stream_id)
            phone.expect_text("Paused: nobody watches")
        older.expect_text("The broadcast ended")
        older.expect_text("A newer connection of yours registered this stream")
        older.expect_state("Connected as ann")
        newer.expect_text("Paused: nobody watches")


def test_who_enters_after_another_does_not_broadcast_for_them(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone:
        phone.enter(accounts.session("ann"))
        phone.broadcast(stream_id)
        phone.expect_text("Paused: nobody watches")
        phone.page.get_by_role("button", name="Forget token").click()
        phone.enter(accounts.session("bob"))
        phone.broadcast(stream_id)
        phone.expect_text("The relay refused the stream")
        phone.expect_text("This stream id is taken")


def test_who_leaves_while_the_camera_starts_does_not_broadcast(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    slow = """() => {
      const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((resolve) => { window.allow = resolve; });
        window.camera = await ask(wanted);
        return window.camera;
      };
    }"""
    ended = """() => new Promise((resolve, reject) => {
      const end = performance.now() + 5000;
      const look = () => {
        const tracks = window.camera?.getTracks();
        if (tracks?.every((track) => track.readyState === 'ended')) resolve();
        else if (performance.now() > end) reject(new Error('the camera goes on'));
        else setTimeout(look, 20);
      };
      look();
    })"""
    with visit(browser, relay) as phone:
        phone.page.evaluate(slow)
        phone.enter(accounts.session("ann"))
        phone.broadcast(new_stream_id())
        phone.go("Watch")
        phone.page.get_by_role("button", name="Forget token").click()
        phone.page.evaluate("window.allow()")
        phone.page.evaluate(ended)
        phone.enter(accounts.session("bob"))
        phone.go("Broadcast")
        expect(phone.page.get_by_role("button", name="Start broadcasting")).to_be_enabled()


def test_a_wrong_token_is_told_and_can_be_mended(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    with visit(browser, relay) as viewer:
        viewer.enter("guessed")
        viewer.expect_text("The token is wrong")
        viewer.enter(accounts.session("ann"))
        viewer.expect_state("Connected as ann")


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


def test_an_insecure_page_says_why_there_is_no_camera_and_what_to_do(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    with visit(browser, relay, host="insecure.test") as phone:
        phone.enter(accounts.session("ann"))
        phone.expect_state("Connected")
        phone.go("Broadcast")
        phone.expect_text("The browser keeps the camera from this page")
        phone.expect_text("--dev-tls")
        phone.expect_text(f"https://insecure.test:{relay.port}")


def test_operators_see_figures_and_plots(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as operator:
        phone.enter(accounts.session("ann"))
        phone.broadcast(stream_id)
        phone.expect_text("Paused")
        operator.enter(accounts.service("*", operate=True))
        operator.go("Operate")
        row = operator.page.get_by_role("row", name=stream_id)
        expect(row).to_contain_text(re.compile("online|streaming"))
        expect(operator.page.get_by_role("row", name="alert-dispatch")).to_contain_text("running")
        connections = operator.page.get_by_role("img", name="Connections")
        expect(connections.locator("polyline").first).to_have_attribute(
            "points", re.compile(r"\d+\.\d+,\d+\.\d+ \d+\.\d+,\d+\.\d+")
        )


def test_figures_come_again_with_a_new_token(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    ended, good = accounts.session("ann"), accounts.service("*", operate=True)
    with visit(browser, relay) as operator:
        operator.page.evaluate(
            """async (tokens) => {
              const { showOperate } = await import('/page/operate.js');
              window.token = tokens[0];
              showOperate({ token: () => window.token }, document.getElementById('content'));
            }""",
            [ended],
        )
        operator.expect_text("This token may not operate")
        operator.problems.clear()  # the 403
        operator.page.evaluate("(good) => { window.token = good; }", good)
        expect(operator.page.get_by_role("row", name="alert-dispatch")).to_be_visible()
        expect(operator.page.get_by_text("This token may not operate")).to_be_hidden()


def test_the_page_can_be_used_with_the_keyboard_alone(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("kim"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        phone.expect_text("Paused")
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


def test_no_figure_is_cut_on_a_phone(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    size = {"width": 360, "height": 640}
    with visit(browser, relay) as phone, visit(browser, relay, viewport=size) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        viewer.enter(token)
        viewer.watch(stream_id)
        viewer.expect_text(re.compile(r"[\d.]+ Mbit/s"))
        cut = viewer.page.evaluate(
            "() => [...document.querySelectorAll('dd')]"
            ".filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"
        )
        assert cut == []


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
        viewer.expect_state("next attempt in")
        said = viewer.page.evaluate("() => document.getElementById('state').said")
        assert not [text for text in said if re.search(r"\d s", text)], said
        viewer.context.set_offline(False)
        viewer.problems.clear()


def test_nothing_is_loaded_from_elsewhere_and_nothing_inline_runs(
    browser: Browser, relay: RelayProcess
) -> None:
    with visit(browser, relay) as visitor:
        asked: list[str] = []
        visitor.page.on("request", lambda request: asked.append(request.url))
        visitor.page.reload()
        expect(visitor.page.get_by_role("button", name="Enter")).to_be_visible()
        assert len(asked) > 5
        assert all(url.startswith(visitor.url) for url in asked)
        visitor.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'),"
            " {textContent: 'window.ran = true'}))"
        )
        assert visitor.page.evaluate("window.ran") is None
        (refusal,) = visitor.problems
        assert "Content Security Policy" in refusal
        visitor.problems.clear()
