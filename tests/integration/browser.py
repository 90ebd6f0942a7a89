"""A real Chromium for tests, with a camera that shows the demo's film."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from relay.demo.video import default_video, play
from tests.integration.relay_process import PATIENCE, RelayProcess

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first is the same engine without the windows: a page takes less than half as much time."""
NAMES_OF_WHOLE = NAMES[1:]
"""Those that show notifications."""
PICTURES = 100
FLAGS = (
    "--no-sandbox",  # which root has to do without
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    # A name that is not the loopback's: pages from there are not secure.
    "--host-resolver-rules=MAP insecure.test 127.0.0.1",
)

expect.set_options(timeout=PATIENCE * 1000)


def find_chromium(names: Sequence[str] = NAMES) -> str:
    """Chromium on the PATH; else the test is skipped."""
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium on the PATH: apt-get install chromium")


@contextmanager
def run_chromium(folder: Path) -> Iterator[Browser]:
    """A browser whose camera shows the film."""
    executable = find_chromium()
    film = folder / "film.mjpeg"
    with closing(play(default_video())) as playing:
        film.write_bytes(b"".join(picture.jpeg for picture in islice(playing, PICTURES)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[*FLAGS, f"--use-file-for-fake-video-capture={film}"],
        )
        yield browser
        browser.close()


@define(eq=False)
class Visitor:
    """Somebody with the relay's page open, in a browser profile of their own."""

    context: BrowserContext
    page: Page
    url: str
    problems: list[str]
    """Errors in the console, and scripts that failed."""
    expected: str | None = None
    """Problems with this text are not noted."""

    def note(self, problem: str) -> None:
        if self.expected is None or self.expected not in problem:
            self.problems.append(problem)

    def enter(self, token: str, *, keep: bool = False) -> None:
        self.page.get_by_label("Token", exact=True).fill(token)
        if keep:
            self.page.get_by_label("Remember it until").check()
        self.page.get_by_role("button", name="Connect").click()

    def renew(self, token: str) -> None:
        self.page.get_by_label("New token").fill(token)
        self.page.get_by_role("button", name="Continue").click()

    def fill(self, label: str, text: str) -> None:
        """Type it again if it is not there: once, on a busy machine, none of it came."""
        field = self.page.get_by_label(label)
        for _ in range(3):
            field.fill(text)
            if field.input_value() == text:
                return
        expect(field).to_have_value(text)

    def go(self, view: str) -> None:
        self.page.get_by_role("link", name=view, exact=True).click()

    def broadcast(self, stream_id: str, *, fps: int = 5) -> None:
        """Few frames per second by default: each is encoded, decoded and drawn by this machine."""
        self.go("Broadcast")
        self.fill("Stream id", stream_id)
        self.page.get_by_label("Frames per second").select_option(str(fps))
        self.page.get_by_role("button", name="Start broadcasting").click()
        self.expect_state("Connected")

    def watch(self, stream_id: str) -> None:
        self.go("Watch")
        self.page.get_by_role("link", name=stream_id).click()
        # Until then, the players of the grid are there.
        expect(self.page.get_by_role("heading", name=stream_id, exact=True)).to_be_visible()

    def broadcast_as(self, token: str, stream_id: str, *, keep: bool = False) -> None:
        """Enter, and broadcast to nobody yet."""
        self.enter(token, keep=keep)
        self.broadcast(stream_id)
        self.expect_text("Paused, because nobody is watching")

    def watch_as(self, token: str, stream_id: str) -> None:
        self.enter(token)
        self.watch(stream_id)

    def expect_state(self, text: str) -> None:
        expect(self.page.locator("#state")).to_contain_text(text)

    def expect_text(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.get_by_text(text).first).to_be_visible()

    def expect_moving_picture(self) -> None:
        """The canvas shows one picture, and then another."""
        expect(self.page.get_by_text(re.compile(r"^[\d.]+ fps")).first).to_be_visible()
        first = self.picture()
        self.page.wait_for_function(f"() => ({SUM})() !== {first}", timeout=PATIENCE * 1000)

    def picture(self) -> int:
        """A sum over what the canvas shows."""
        found: int = self.page.evaluate(SUM)
        return found


SUM = """() => {
  const canvas = document.querySelector('relay-player').shadowRoot.querySelector('canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let at = 0; at < data.length; at += 97) sum = (sum * 31 + data[at]) % 1000003;
  return sum;
}"""


@contextmanager
def visit(
    browser: Browser,
    relay: RelayProcess,
    *,
    host: str = "127.0.0.1",
    url: str | None = None,
    **options: Any,
) -> Iterator[Visitor]:
    """Open the page. Whatever goes wrong in it is a failure, unless the test takes it away."""
    context = browser.new_context(**options)
    page = context.new_page()
    visitor = Visitor(context, page, url or f"http://{host}:{relay.port}", [])
    page.on("pageerror", lambda error: visitor.note(str(error)))
    page.on("console", lambda told: visitor.note(told.text) if told.type == "error" else None)
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(visitor.url)
    try:
        yield visitor
        assert visitor.problems == [], visitor.problems
    finally:
        context.close()


def raise_alert(
    relay: RelayProcess, token: str, stream_id: str, message: str, **more: object
) -> None:
    """Over HTTP, as a service does."""
    fields = {"streamId": stream_id, "severity": "high", "message": message, **more}
    body = json.dumps(fields).encode()
    headers = {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{relay.url}/alerts", body, headers)):
        pass
