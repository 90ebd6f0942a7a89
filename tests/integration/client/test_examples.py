"""The applications in docs/examples, with their packages from npm: they compile, they are bundled,
and people sign in, watch, and sign out."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from playwright.sync_api import APIRequestContext, Browser, expect
from websockets.exceptions import ConnectionClosed

from relay.demo.video import default_video, play
from tests.integration.peers import Close, login
from tests.integration.relay_process import (
    PATIENCE,
    PROJECT,
    RelayProcess,
    run_relay,
    start_relay,
)

pytestmark = pytest.mark.slow

EXAMPLES = PROJECT / "docs" / "examples"
CACHE = Path(sys.prefix) / "examples"
CLIENT = Path("relay", "web", "client")
MADE = ("node_modules", ".next", ".expo", "dist")
INSTALL_TIMEOUT = BUILD_TIMEOUT = 600.0
PASSWORD = "correct horse battery"
ORIGINS = {"exp://192.0.2.10:8081": 200, "https://evil.example": 403}
"""Of apps, and how their sign-in is answered. More than three in ten seconds would be refused."""


def provide_example(name: str) -> Path:
    """A copy of an example with its packages, which are kept for the next run."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("platform: there is no npm here")
    folder = CACHE / "docs" / "examples" / name  # as far from the client as in the project
    shutil.copytree(
        EXAMPLES / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*MADE)
    )
    shutil.copytree(PROJECT / CLIENT, CACHE / CLIENT, dirs_exist_ok=True)
    stamp, wanted = folder / "node_modules" / ".stamp", (folder / "package.json").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        run(folder, npm, "install", "--no-audit", "--no-fund", timeout=INSTALL_TIMEOUT)
        stamp.write_text(wanted)
    installed = folder / "node_modules" / "relay-client"
    assert not installed.is_symlink()
    shutil.copytree(PROJECT / CLIENT, installed, dirs_exist_ok=True)  # as it is now
    return folder


def run(folder: Path, *command: str | Path, timeout: float = BUILD_TIMEOUT) -> str:
    quiet = {
        "CI": "1",
        "EXPO_NO_TELEMETRY": "1",
        "EXPO_OFFLINE": "1",
        "NEXT_TELEMETRY_DISABLED": "1",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **dict.fromkeys(quiet, "1")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_expo_app_is_type_checked_and_bundled(tmp_path: Path) -> None:
    folder = provide_example("expo")
    tools = folder / "node_modules" / ".bin"
    run(folder, tools / "tsc")
    platform = ("--platform", "android")
    run(folder, tools / "expo", "export", *platform, "--no-bytecode", "--output-dir", tmp_path)
    (bundle,) = tmp_path.glob("_expo/static/js/android/*.js")
    text = bundle.read_text()
    assert "relay.v1.msgpack" in text  # the client
    assert "relay-broadcast" in text  # the app

    (folder / "wrong.ts").write_text(
        "import { getToken } from './session';\nexport const token: string = getToken;\n"
    )
    with pytest.raises(AssertionError, match=r"wrong\.ts\(2,"):
        run(folder, tools / "tsc")
    (folder / "wrong.ts").unlink()


@pytest.fixture(scope="module")
def next_app() -> Path:
    folder = provide_example("next")
    run(folder, folder / "node_modules" / ".bin" / "next", "build")
    return folder


@contextmanager
def serve_app(folder: Path, database_url: str, relay_port: int, revoke: str) -> Iterator[str]:
    """The application on a free port; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://localhost:{port}"
    settings = {
        # The role has the name of relay's schema, which PostgreSQL would therefore look at first.
        "DATABASE_URL": f"{database_url}&options=-c%20search_path%3Dpublic",
        "BETTER_AUTH_URL": url,
        "BETTER_AUTH_SECRET": "of no use to anybody, and only for the tests",
        "RELAY_URL": f"ws://127.0.0.1:{relay_port}",
        "RELAY_HTTP_URL": f"http://127.0.0.1:{relay_port}",
        "RELAY_REVOKE_TOKEN": revoke,
        "EXPO_GO": "1",
        "NEXT_TELEMETRY_DISABLED": "1",
    }
    command: list[str | Path] = [
        folder / "node_modules" / ".bin" / "next",
        "start",
        "--port",
        str(port),
    ]
    with TemporaryDirectory() as log_folder:
        log = Path(log_folder, "log")
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                await_answer(f"{url}/api/auth/ok", process, log)
                yield url
            finally:
                process.terminate()


def await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def sign_in_from(origin: str, app: str, email: str) -> int:
    """The status of what the phone app asks, which is of this origin."""
    body = json.dumps({"email": email, "password": PASSWORD}).encode()
    headers = {"Content-Type": "application/json", "Expo-Origin": origin}
    asked = urllib.request.Request(f"{app}/api/auth/sign-in/email", body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@contextmanager
def sign_in(browser: Browser, app: str, email: str) -> Iterator[APIRequestContext]:
    """A phone's session; it keeps Better Auth's cookie."""
    with browser.new_context(base_url=app, extra_http_headers={"origin": app}) as context:
        phone = context.request
        answer = phone.post("/api/auth/sign-in/email", data={"email": email, "password": PASSWORD})
        expect(answer).to_be_ok()
        yield phone


async def broadcast(relay: RelayProcess, token: str, stream_id: str) -> Close:
    """Send pictures until relay ends the connection; returns the Close."""
    jpeg = next(play(default_video())).jpeg
    async with login(relay, token) as phone, trio.open_nursery() as nursery:
        await phone.register(stream_id)

        async def film() -> None:
            with suppress(ConnectionClosed):  # it may end between two pictures
                while True:
                    await phone.send_frame(jpeg)
                    await trio.sleep(0.1)

        nursery.start_soon(film)
        _, close = await phone.hear_end()
        nursery.cancel_scope.cancel()
    return close


def test_people_sign_in_watch_and_sign_out(
    next_app: Path, empty_postgres_url: str, browser: Browser
) -> None:
    with serve_app(next_app, empty_postgres_url, relay_port=1, revoke=""):
        pass  # it makes its tables, which relay needs
    assert run_relay("db", "migrate", database_url=empty_postgres_url).returncode == 0
    made = run_relay("token", "service", "app", "--revoke", database_url=empty_postgres_url)
    (revoke,) = re.findall(r"^relay_service_\S+$", made.stdout, re.MULTILINE)
    with (
        # Only the application's call can end a session within the test.
        start_relay("--session-poll", "600", database_url=empty_postgres_url) as relay,
        serve_app(next_app, empty_postgres_url, relay.port, revoke) as app,
        ThreadPoolExecutor(1) as thread,
        browser.new_page() as page,
        ExitStack() as stack,
    ):
        page.goto(app)
        page.get_by_label("E-mail address").fill("ann@example.org")
        page.get_by_label("Password").fill(PASSWORD)
        page.route("**/api/auth/sign-up/**", lambda route: route.abort())  # there is no network
        page.get_by_role("button", name="Create an account").click()
        expect(page.get_by_role("status")).to_have_text("The application does not answer")
        page.unroute_all()
        expect(page.get_by_label("Password")).to_have_value("")  # an action empties its form
        page.get_by_label("E-mail address").fill("ann@example.org")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Create an account").click()
        expect(page.get_by_text("No camera is on air.")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("ready")

        for origin, status in ORIGINS.items():
            assert sign_in_from(origin, app, "ann@example.org") == status, origin
        phone = stack.enter_context(sign_in(browser, app, "ann@example.org"))
        session = phone.get("/api/auth/get-session").json()["session"]
        close = thread.submit(trio.run, broadcast, relay, session["token"], "porch")
        screen = page.get_by_role("img", name="Camera porch")
        expect(screen).to_be_visible()
        page.wait_for_function("() => document.querySelector('canvas').height > 200")

        expect(phone.post("/api/auth/sign-out", data={})).to_be_ok()
        assert close.result(PATIENCE) == (4501, "session revoked")
        expect(page.get_by_text("No camera is on air.")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
