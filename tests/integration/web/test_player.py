"""`<relay-player>` in a page of another origin: that of docs/embedding.md, with a strict policy."""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from typing import Any
from urllib.request import urlopen

import pytest
import trio
from attrs import define, field
from playwright.sync_api import Browser, expect
from websockets.exceptions import ConnectionClosed

from relay.demo.video import default_video, play
from tests.integration.accounts import Accounts
from tests.integration.browser import SUM, raise_alert, visit
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import PATIENCE, PROJECT, RelayProcess, start_relay

DOCUMENTED = re.compile(r"^```html embed\.html\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def film() -> list[bytes]:
    return [each.jpeg for each in islice(play(default_video()), 0, 100, 20)]


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--offline-grace", "0.1", database_url=database_url) as relay:
        yield relay


@define(eq=False)
class Site:
    """An application with a page that has players, and that gives out a token."""

    relay_url: str
    token: str
    stream_id: str = "front-door"
    page: str = ""
    asked: list[str] = field(factory=list)
    url: str = ""

    @contextmanager
    def serve(self) -> Iterator[Site]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                content, kind = site.answer(self.path)
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", site.policy)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_address[1]}/"
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def answer(self, path: str) -> tuple[bytes, str]:
        if path == "/api/relay-token":
            return self.token.encode(), "text/plain"
        if path != "/":
            return b"", "image/svg+xml"
        page = self.page or documented()
        page = page.replace("https://relay.example.org", self.relay_url)
        return page.replace("front-door", self.stream_id).encode(), "text/html"

    @property
    def policy(self) -> str:
        """Nothing inline but the page's own script, and no styles in elements."""
        websocket = self.relay_url.replace("http", "ws", 1)
        return (
            f"default-src 'none'; script-src 'unsafe-inline' {self.relay_url};"
            f" connect-src 'self' {websocket}; style-src-attr 'unsafe-inline'"
        )


def documented() -> str:
    found = DOCUMENTED.search((PROJECT / "docs" / "embedding.md").read_text("utf-8"))
    assert found is not None
    return found[1]


@define(eq=False)
class Phone:
    """Sends pictures from a thread of its own, since a browser has this one."""

    relay: RelayProcess
    token: str
    film: list[bytes]
    stream_id: str = field(factory=new_stream_id)
    over: threading.Event = field(factory=threading.Event)
    _began: queue.Queue[bool] = field(factory=queue.Queue)

    @contextmanager
    def on_air(self) -> Iterator[Phone]:
        thread = threading.Thread(target=trio.run, args=[self._send])
        thread.start()
        try:
            self._began.get(timeout=PATIENCE)
            yield self
        finally:
            self.over.set()
            thread.join()

    async def _send(self) -> None:
        async with login(self.relay, self.token, msgpack=True) as phone:
            await phone.register(self.stream_id)
            self._began.put(True)
            with suppress(ConnectionClosed):
                for picture in cycle(self.film):
                    if self.over.is_set():
                        return
                    await phone.send_frame(picture)
                    await trio.sleep(0.03)


def test_the_page_of_the_docs_shows_the_stream_and_its_alerts(
    browser: Browser, relay: RelayProcess, accounts: Accounts, film: list[bytes]
) -> None:
    token, service = accounts.session("ann"), accounts.service("*")
    phone = Phone(relay, token, film)
    site = Site(relay.url, token, phone.stream_id)
    with phone.on_air(), site.serve(), visit(browser, relay, url=site.url) as viewer:
        page = viewer.page
        player = page.locator("relay-player")
        expect(player).to_have_attribute("state", "live")
        page.wait_for_function(f"() => ({SUM})() !== {viewer.picture()}")
        with page.expect_console_message(lambda each: each.text == "high somebody rings"):
            raise_alert(relay, service, phone.stream_id, "somebody rings")
        assert token not in page.content()

        # With the keyboard: pause, play, and by a shortcut.
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        expect(player).to_have_attribute("state", "paused")
        page.keyboard.press("k")
        expect(player).to_have_attribute("state", "live")
        picture = page.get_by_role("img", name=f"Picture of {phone.stream_id}: Live")
        expect(picture).to_be_visible()

        phone.over.set()
        expect(player).to_have_attribute("state", "ended")
        expect(page.get_by_role("status")).to_have_text("The stream has ended")


SEVERAL = """<!doctype html><script type="module">
  import { RelayPlayer } from 'https://relay.example.org/relay-player.js';
  RelayPlayer.getToken = async () => (await fetch('/api/relay-token')).text();
</script>
<div style="height: 30rem; overflow: auto" id="box">
  <relay-player stream="front-door" style="width: 300px"></relay-player>
  <relay-player stream="front-door" style="width: 300px"></relay-player>
  <div style="height: 300rem"></div>
</div>"""


def test_players_share_get_nothing_unseen_and_leave_nothing_behind(
    browser: Browser, relay: RelayProcess, accounts: Accounts, film: list[bytes]
) -> None:
    token = accounts.session("ann")
    phone = Phone(relay, token, film)
    site = Site(relay.url, token, phone.stream_id, SEVERAL)
    with phone.on_air(), site.serve(), visit(browser, relay, url=site.url) as viewer:
        page = viewer.page
        both = page.locator("relay-player")
        for player in (both.first, both.last):
            expect(player).to_have_attribute("state", "live")
        totals = stats(relay)
        assert (totals["connections"], totals["streams"]["consumers"]) == (2, 1)
        assert site.asked.count("/api/relay-token") == 1

        page.evaluate("() => { document.getElementById('box').scrollTop = 3000; }")
        for player in (both.first, both.last):
            expect(player).to_have_attribute("state", "paused")
        written = stats(relay)["frames_to_consumers"]["written"]
        taken = stats(relay)["frames_accepted"]
        while stats(relay)["frames_accepted"] < taken + 10:
            page.wait_for_timeout(20)
        assert stats(relay)["frames_to_consumers"]["written"] == written

        # A hidden tab, as the browser tells of it.
        page.evaluate("() => { document.getElementById('box').scrollTop = 0; }")
        expect(both.last).to_have_attribute("state", "live")
        for visibility, state in (("hidden", "paused"), ("visible", "live")):
            page.evaluate(
                "(value) => { Object.defineProperty(document, 'visibilityState', { value,"
                " configurable: true }); document.dispatchEvent(new Event('visibilitychange')); }",
                visibility,
            )
            expect(both.last).to_have_attribute("state", state)

        # Moved: nothing begins anew.
        page.evaluate(
            "() => { const box = document.getElementById('box');"
            " document.body.prepend(box.querySelector('relay-player')); }"
        )
        expect(both.first).to_have_attribute("state", "live")
        assert site.asked.count("/api/relay-token") == 1
        page.evaluate(
            "() => document.querySelectorAll('relay-player').forEach((each) => each.remove())"
        )
        while stats(relay)["connections"] > 1:
            page.wait_for_timeout(20)


def stats(relay: RelayProcess) -> dict[str, Any]:
    with urlopen(f"{relay.url}/stats") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


REFUSED = """<!doctype html><script type="module">
  import { RelayPlayer } from 'https://relay.example.org/relay-player.js';
  window.RelayPlayer = RelayPlayer;
</script>
<relay-player stream="front-door" controls></relay-player>"""


def test_a_player_without_a_good_token_says_so_and_can_try_again(
    browser: Browser, relay: RelayProcess, accounts: Accounts, film: list[bytes]
) -> None:
    phone = Phone(relay, accounts.session("ann"), film)
    site = Site(relay.url, "", phone.stream_id, REFUSED)
    with phone.on_air(), site.serve(), visit(browser, relay, url=site.url) as viewer:
        player = viewer.page.locator("relay-player")
        expect(player).to_have_attribute("state", "idle")
        viewer.expect_text("No token: the page sets getToken")
        given = "(token) => { document.querySelector('relay-player').getToken = () => token; }"
        viewer.page.evaluate(given, None)
        expect(player).to_have_attribute("state", "refused")
        viewer.expect_text("Sign in to watch this stream")
        viewer.page.evaluate(given, "wrong" * 8)
        viewer.expect_text("The token is invalid or has expired")
        viewer.page.evaluate(given, accounts.session("eve"))
        expect(player).to_have_attribute("state", "waiting")  # a stranger cannot tell what there is
        viewer.page.evaluate(given, phone.token)
        expect(player).to_have_attribute("state", "live")
        with pytest.raises(Exception, match="getToken: expected a function"):
            viewer.page.evaluate("() => { RelayPlayer.getToken = 'a token'; }")


STATES = """async (url) => {
  await import(url);
  const listeners = [];
  const subscription = { status: 'offline', epoch: 0, update() {}, unsubscribe() {} };
  const client = {
    state: 'connecting',
    on: (_, listener) => { listeners.push(listener); return () => {}; },
    relayNow: () => Date.now(),
    subscribe: (_, options) => {
      client.options = options;
      subscription.update = (more) => Object.assign(options, more);
      return subscription;
    },
  };
  const player = document.createElement('relay-player');
  const states = [];
  player.addEventListener('statechange', ({ detail }) => {
    if (states.at(-1) !== detail.state) states.push(detail.state);
  });
  player.client = client;
  player.setAttribute('stream', 'door');
  document.body.append(player);
  const turn = () => new Promise((resolve) => { setTimeout(resolve, 50); });
  const go = async (state) => {
    client.state = state;
    for (const each of listeners) each({ error: null });
    await turn();
  };
  const status = async (status) => {
    client.options.onStatus({ status, metadata: { codec: 'jpeg' } });
    await turn();
  };
  await turn();
  await go('ready');
  await status('streaming');
  const data = new Uint8Array([1, 2, 3]); // no picture
  await client.options.onFrame({ seq: 1, missed: 0, data, receivedAt: Date.now() });
  await status('offline');
  await go('waiting');
  await go('closed');
  player.remove();
  await turn();
  return states;
}"""


def test_a_player_goes_through_its_states(browser: Browser, relay: RelayProcess) -> None:
    with visit(browser, relay) as viewer:
        states = viewer.page.evaluate(STATES, f"{relay.url}/relay-player.js")
        assert states == [
            "connecting",
            "waiting",
            "unreadable",
            "ended",
            "connecting",
            "refused",
            "idle",
        ]


UNLOADED = """async (url) => {
  await import(url);
  const told = new Promise((resolve) => {
    const player = document.createElement('relay-player');
    player.addEventListener('statechange', ({ detail }) => {
      if (detail.state === 'unreadable') resolve(detail.message);
    });
    player.client = {
      state: 'ready',
      on: () => () => {},
      relayNow: () => Date.now(),
      subscribe: (_, options) => {
        const metadata = { codec: 'vp8' };
        const frame = { seq: 1, epoch: 1, missed: 0, keyframe: true, data: new Uint8Array(1) };
        const begin = () => { // once the player knows that it is seen
          if (options.onFrame === null) return void setTimeout(begin, 10);
          options.onStatus({ status: 'streaming', metadata });
          options.onFrame(frame);
        };
        setTimeout(begin);
        const update = (more) => Object.assign(options, more);
        return { status: 'offline', epoch: 0, metadata, update, unsubscribe() {} };
      },
    };
    player.setAttribute('stream', 'door');
    document.body.append(player);
  });
  return told;
}"""


def test_a_player_whose_decoder_cannot_be_loaded_says_so(
    browser: Browser, relay: RelayProcess
) -> None:
    with visit(browser, relay) as viewer:
        viewer.page.route("**/player/decoder.js", lambda route: route.abort())
        said = viewer.page.evaluate(UNLOADED, f"{relay.url}/relay-player.js")
        assert said == "The decoder of this video cannot be loaded"
        viewer.problems.clear()  # of the console, about that file


QUALITIES = """async (url) => {
  await import(url);
  const client = {
    state: 'ready',
    on: () => () => {},
    relayNow: () => Date.now(),
    subscribe: (_, options) => {
      client.options = options;
      return { status: 'offline', epoch: 0, update() {}, unsubscribe() {} };
    },
  };
  const player = document.createElement('relay-player');
  player.client = client;
  player.setAttribute('stream', 'door');
  player.setAttribute('quality', '500');
  document.body.append(player);
  const has = async (...widths) => {
    const layers = widths.map((width) => ({ id: `w${width}`, width }));
    await new Promise((resolve) => { setTimeout(resolve, 20); });
    client.options.onStatus({ status: 'streaming', metadata: { layers } });
    return player.quality;
  };
  const menu = player.shadowRoot.querySelector('select');
  const seen = [await has(320, 640), await has(480, 960)];
  menu.value = 'w480';
  menu.dispatchEvent(new Event('change'));
  seen.push(await has(480, 720), await has(320, 640));
  player.remove();
  return seen;
}"""


def test_a_quality_of_the_page_stays_and_a_choice_that_is_gone_becomes_automatic(
    browser: Browser, relay: RelayProcess
) -> None:
    with visit(browser, relay) as viewer:
        seen = viewer.page.evaluate(QUALITIES, f"{relay.url}/relay-player.js")
        assert seen == ["500", "500", "w480", "auto"]
