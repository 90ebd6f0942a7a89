"""Take docs/images/page.png: the page of `relay demo`, in the Chromium on the PATH.

    ./scripts/test -k nothing; .venv/bin/python scripts/screenshot.py

It starts a demo with a database of its own, opens the page with a token of the demo's user, shows
the demo's stream, and waits for some alerts. The picture is a different one each time.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

from relay.demo.participants import STREAM_ID
from relay.demo.stage import DEMO_USER

PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT / "docs" / "images" / "page.png"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT, SCALE = 1000, 560, 0.8
MAX_BYTES = 300_000
START_TIMEOUT = 120.0
ALERTS = 4


def main() -> int:
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        print("there is no Chromium on the PATH: apt-get install chromium")
        return 1
    with tempfile.TemporaryDirectory(prefix="relay-screenshot-") as folder:
        # The embedded PostgreSQL may have to run as another user than root.
        Path(folder).chmod(0o711)
        data_dir = Path(folder, "data")
        with run_demo(data_dir) as url:
            take(browser, url, make_token(data_dir))
    size = PICTURE.stat().st_size
    print(f"wrote docs/images/{PICTURE.name}, {size:,} bytes")
    if size > MAX_BYTES:
        print(f"that is more than {MAX_BYTES:,}: make SCALE smaller")
        return 1
    return 0


@contextmanager
def run_demo(data_dir: Path) -> Iterator[str]:
    """A demo that plays; yields the address of its page."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "relay", "demo", "--bind", bind]
    command += ["--data-dir", str(data_dir)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL) as demo:
        try:
            wait_until_ready(f"http://{bind}/ready", demo)
            yield f"http://{bind}/"
        finally:
            demo.terminate()


def wait_until_ready(url: str, demo: subprocess.Popen[bytes]) -> None:
    """Ask until relay says that it is ready; `TimeoutError` or `RuntimeError` when it does not."""
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if demo.poll() is not None:
            raise RuntimeError(f"the demo ended with {demo.returncode}")
        try:
            with urlopen(url):
                return
        except (URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {START_TIMEOUT:g} s")


def make_token(data_dir: Path) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "relay", "token", "session", "--user", DEMO_USER],
        cwd=PROJECT,
        env={**os.environ, "RELAY_DATA_DIR": str(data_dir)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return made.stdout.strip()


def take(browser: str, url: str, token: str) -> None:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=SCALE,
            color_scheme="light",
            locale="en",
        )
        page.goto(url)
        page.locator("#token").fill(token)
        page.locator("#enter button[type=submit]").click()
        page.locator(f'a.tile[href="#watch/{STREAM_ID}"]').click()
        page.get_by_text(re.compile(r"^[\d.]+ fps")).first.wait_for()
        alerts = page.locator("main .alerts > li")
        alerts.nth(ALERTS - 1).wait_for()
        PICTURE.parent.mkdir(exist_ok=True)
        page.screenshot(path=PICTURE)
        chromium.close()


if __name__ == "__main__":
    sys.exit(main())
