"""The page in a real Chromium: one page broadcasts a camera, another one watches."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.accounts import Accounts
from tests.integration.browser import raise_alert, visit
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess
from tests.unit.relay_answers import CONSUMER, LINK, STREAM


def test_one_page_broadcasts_its_camera_and_another_watches_it(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.broadcast_as(token, stream_id)

        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        viewer.expect_text("Live")
        viewer.expect_text(re.compile(r"^\d+ ms$"))
        viewer.expect_text(re.compile(r"^\d+ . \d+$"))
        phone.expect_text("On air")
        sends = r"^\d+ pixels, [\d.]+ pictures a second, [\d.]+ [kM]bit/s: .*\.$"
        phone.expect_text(re.compile(sends))

        viewer.go("Operate")
        phone.expect_text("Paused, because nobody is watching")
        viewer.expect_text("This token cannot show statistics")
        assert [text for text in viewer.problems if "403" not in text] == []
        viewer.problems.clear()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["JPEG pictures", "VP8"])
def test_a_broadcaster_may_fix_the_width(
    browser: Browser, relay: RelayProcess, accounts: Accounts, encoding: str
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.go("Broadcast")
        phone.page.get_by_label("Width and quality").select_option("640 pixels")
        phone.page.get_by_label("Encoding").select_option(encoding)
        phone.broadcast(stream_id)
        viewer.watch_as(token, stream_id)
        viewer.expect_text(re.compile(r"^640 . 360$"))
        phone.expect_text(re.compile(r"^640 pixels, .*: as you chose\.$"))


@pytest.mark.slow
def test_a_broadcaster_sees_how_many_watch(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as first:
        phone.enter(token)
        phone.broadcast(stream_id, fps=15)
        viewers = phone.page.locator(".facts div", has_text="Viewers").locator("dd")
        expect(viewers).to_have_text("0")
        first.watch_as(token, stream_id)
        expect(viewers).to_have_text("1")
        with visit(browser, relay) as second:
            second.watch_as(token, stream_id)
            expect(viewers).to_have_text("2")
        expect(viewers).to_have_text("1")
        first.go("Operate")
        expect(viewers).to_have_text("0")
        first.problems.clear()  # the 403 of Operate


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
                on: () => () => {},
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


@pytest.mark.slow
def test_a_page_that_was_offline_goes_on_by_itself(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session("ann"), accounts.service("*"), new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as viewer:
        phone.enter(token)
        phone.broadcast(stream_id)
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()

        for visitor in (viewer, phone):
            visitor.context.set_offline(True)
            visitor.expect_state("Offline")
            if visitor is phone:
                phone.expect_text("Connection lost")
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


@pytest.mark.slow
def test_a_broadcast_that_another_one_took_over_ends_and_says_so(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with visit(browser, relay) as older, visit(browser, relay) as newer:
        for phone in (older, newer):
            phone.broadcast_as(token, stream_id)
        older.expect_text("The broadcast ended")
        older.expect_text("A newer connection of yours registered this stream")
        older.expect_state("Connected as ann")
        newer.expect_text("Paused, because nobody is watching")


@pytest.mark.slow
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


def test_an_insecure_page_says_why_there_is_no_camera_and_what_to_do(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    with visit(browser, relay, host="insecure.test") as phone:
        phone.enter(accounts.session("ann"))
        phone.expect_state("Connected")
        phone.go("Broadcast")
        phone.expect_text("The browser blocks the camera on this page")
        phone.expect_text("--dev-tls")
        phone.expect_text(f"https://insecure.test:{relay.port}")


def test_operators_see_figures_and_plots(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone, visit(browser, relay) as operator:
        phone.broadcast_as(accounts.session("ann"), stream_id)
        operator.enter(accounts.service("*", operate=True))
        operator.go("Operate")
        row = operator.page.get_by_role("row", name=stream_id)
        expect(row).to_contain_text(re.compile("online|streaming"))
        expect(operator.page.get_by_role("row", name="alert-dispatch")).to_contain_text("running")
        connections = operator.page.get_by_role("img", name="Connections")
        expect(connections.locator("polyline").first).to_have_attribute(
            "points", re.compile(r"\d+\.\d+,\d+\.\d+ \d+\.\d+,\d+\.\d+")
        )


@pytest.mark.slow
def test_operators_see_the_links_to_viewers(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        visit(browser, relay) as phone,
        visit(browser, relay) as viewer,
        visit(browser, relay) as operator,
    ):
        phone.broadcast_as(token, stream_id)
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        operator.enter(accounts.service("*", operate=True))
        operator.go("Operate")
        accounts.execute('update "user" set name = $$Ann Lee$$ where id = $$ann$$ returning id')
        name = re.compile(rf"#\d+ Ann Lee · ann@example.org {stream_id}")
        row = operator.page.get_by_role("row", name=name)
        expect(row).to_contain_text(re.compile(r"\d+ ms"))


def test_the_slowest_links_are_first(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    dash = "\N{EN DASH}"
    links = [{"calm": True, "roundTripSeconds": 0.002}, {}, LINK, None]
    links.append(LINK | {"bytesPerSecond": 1_000, "bytesUnderWay": 0})
    consumers = [CONSUMER | {"connection": n, "link": link} for n, link in enumerate(links, 1)]
    streams = [
        STREAM | {"consumers": consumers},
        STREAM | {"streamId": "hall", "consumers": consumers[-1:]},
    ]
    with visit(browser, relay) as operator:
        operator.page.route("**/figures", lambda route: route.fulfill(json={"streams": streams}))
        operator.enter(accounts.service("*", operate=True))
        operator.go("Operate")
        rows = operator.page.get_by_role("row", name=re.compile("^#"))
        expect(rows).to_have_text(
            [
                f"#5{dash}2 streams{dash}8 kbit/s41 ms0 KiB2",
                f"#3{dash}front-door{dash}240 kbit/s41 ms16 KiB1",
                f"#2{dash}front-door{dash * 4}1",
                f"#1{dash}front-door{dash}enough2 ms{dash}1",
            ]
        )


def test_operators_see_where_a_stream_comes_from_and_goes_to(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    edge = {"node": "a000000000000001", "viewers": 2, "frames": 1, "written": 1, "dropped": {}}
    streams = [
        STREAM | {"streamId": "local", "producer": 7},
        STREAM | {"streamId": "sent", "producer": 8, "edges": [edge, edge]},
        STREAM | {"streamId": "carried", "producer": None, "carriedFrom": "5f2c9d0e8a7b1634"},
    ]
    with visit(browser, relay) as operator:
        operator.page.route("**/figures", lambda route: route.fulfill(json={"streams": streams}))
        operator.enter(accounts.service("*", operate=True))
        operator.go("Operate")
        for stream_id, where in (
            ("local", "#7"),
            ("sent", "#8, to 2 nodes"),
            ("carried", "at 5f2c9d0e"),
        ):
            row = operator.page.get_by_role("row", name=re.compile(f"^{stream_id}"))
            expect(row.get_by_role("cell").last).to_have_text(where)


@pytest.mark.slow
def test_an_operator_gives_a_stream_to_another_user_and_ends_connections(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id, user = new_stream_id(), f"user-{new_stream_id()}"
    token = accounts.session(user)
    accounts.session("bob")
    accounts.execute("insert into relay.streams values (%s, %s)", stream_id, user)
    with visit(browser, relay) as viewer, visit(browser, relay) as operator:
        viewer.enter(token)
        operator.enter(accounts.service("*", operate=True))
        operator.go("Operate")
        page = operator.page
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Show owners").click()
        expect(page.get_by_role("table", name="Owners").get_by_role("row").nth(1)).to_be_visible()
        page.get_by_role("button", name=f"Transfer {stream_id}").click()
        expect(page.get_by_label("To user")).to_be_focused()
        expect(page.get_by_label("Stream", exact=True)).to_have_value(stream_id)
        page.get_by_label("To user").fill("bob@example.org")
        page.get_by_role("button", name="Transfer", exact=True).click()
        operator.expect_text(f"{stream_id} belongs to bob · bob@example.org.")
        page.get_by_label("Stream to free").fill(stream_id)
        page.get_by_role("button", name="Free", exact=True).click()
        operator.expect_text(f"{stream_id} belongs to nobody.")
        page.get_by_label("User (id or e-mail address)", exact=True).fill(f"{user}@example.org")
        page.get_by_role("button", name="End all").click()
        operator.expect_text("Connections ended: 1.")
        page.get_by_label("Connection number").fill("9007199254740991")
        page.get_by_role("button", name="End", exact=True).click()
        operator.expect_text("There is no connection 9007199254740991")
        page.get_by_label("Connection number").fill("elsewhere/17")
        page.get_by_role("button", name="End", exact=True).click()
        operator.expect_text("No node elsewhere has answered")
        operator.problems.clear()  # the 404s
    assert accounts.execute(
        "select owner_id from relay.streams where stream_id = %s", stream_id
    ) == [(None,)]


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
        operator.expect_text("This token cannot show statistics")
        operator.problems.clear()  # the 403
        operator.page.evaluate("(good) => { window.token = good; }", good)
        expect(operator.page.get_by_role("row", name="alert-dispatch")).to_be_visible()
        expect(operator.page.get_by_text("This token cannot show statistics")).to_be_hidden()


def test_nothing_is_loaded_from_elsewhere_and_nothing_inline_runs(
    browser: Browser, relay: RelayProcess
) -> None:
    with visit(browser, relay) as visitor:
        asked: list[str] = []
        visitor.page.on("request", lambda request: asked.append(request.url))
        visitor.page.reload()
        expect(visitor.page.get_by_role("button", name="Connect")).to_be_visible()
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
