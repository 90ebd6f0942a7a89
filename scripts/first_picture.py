"""How much the page loads, and how soon it shows a picture; for scripts/figures.py."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from target import Target

from relay.demo.video import default_video, play

MBIT = 125_000.0
"""Bytes a second."""
LATENCY = 40
"""Milliseconds."""
STREAM = "front-door"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
DRAWN = (
    "() => (document.querySelector('main relay-player')?.shadowRoot.querySelector('canvas').width"
    " ?? 0) > 16"
)


def page(relay: Target, visits: int) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("page needs Chromium on the PATH")
    with (
        tempfile.TemporaryDirectory(prefix="relay-figures-") as folder,
        sync_playwright() as driver,
    ):
        film = Path(folder, "film.mjpeg")
        with closing(play(default_video())) as playing:
            film.write_bytes(b"".join(picture.jpeg for picture in islice(playing, 100)))
        flags = [*FLAGS, f"--use-file-for-fake-video-capture={film}"]
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        url = f"http://{relay.host}:{relay.port}"
        camera = browser.new_page()
        camera.goto(url)
        camera.get_by_label("Token", exact=True).fill(relay.token)
        camera.get_by_role("button", name="Connect").click()
        camera.get_by_role("link", name="Broadcast", exact=True).click()
        camera.get_by_label("Stream id").fill(STREAM)
        camera.get_by_label("Encoding").select_option("jpeg")
        camera.get_by_role("button", name="Start broadcasting").click()
        camera.get_by_text("Paused, because nobody is watching").wait_for()
        seen = [_visit(browser, url, relay.token) for _ in range(visits)]
        browser.close()
    loaded, seconds = seen[0][0], statistics.median(each for _, each in seen)
    print(
        f"the page: {loaded:,} bytes loaded; at 1 Mbit/s and {LATENCY} ms of latency the first"
        f" picture of a stream of 4 Mbit/s after {seconds:.2f} s (median of {visits})"
    )


def _visit(browser: Browser, url: str, token: str) -> tuple[int, float]:
    """Bytes of the files, and seconds until the canvas is drawn."""
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{url}/health")
    tab.evaluate("token => sessionStorage.setItem('relay-token', token)", token)
    network = context.new_cdp_session(tab)
    network.send("Network.enable")
    sizes: list[int] = []

    def finished(event: dict[str, Any]) -> None:
        sizes.append(int(event["encodedDataLength"]))

    network.on("Network.loadingFinished", finished)
    slow = {"latency": LATENCY, "downloadThroughput": MBIT, "uploadThroughput": MBIT}
    network.send("Network.emulateNetworkConditions", {"offline": False, **slow})
    start = time.perf_counter()
    tab.goto(f"{url}/#watch/{STREAM}", wait_until="commit")
    tab.wait_for_function(DRAWN, polling=10)
    seconds = time.perf_counter() - start
    context.close()
    return sum(sizes), seconds
