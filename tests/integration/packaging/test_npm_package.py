"""The package for npm, installed from its file: types, Node, Bun, and a page that Vite builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
import trio
from playwright.sync_api import expect, sync_playwright

from relay.concurrency.background import open_background
from relay.web.assets import CLIENT_FILES
from tests.integration.accounts import Accounts
from tests.integration.browser import FLAGS, find_chromium
from tests.integration.node import NODE_MODULES, SCRIPTS, open_script
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import PATIENCE, RelayProcess

pytestmark = pytest.mark.slow

PICTURE = b"a picture"
LARGE = 20_000
"""Bytes of JavaScript; the client alone has more, the smallest page of Vite far fewer."""


def run(command: list[str], folder: Path) -> str:
    """Run it, and return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def bun() -> str:
    """Bun's program; its package on npm would put it in place with a script."""
    found = next(NODE_MODULES.glob("@oven/bun-*/bin/bun"), None) or shutil.which("bun")
    if found is None:
        pytest.skip("platform: npm has no Bun for this one")
    return str(found)


@pytest.fixture
def archive(packages: Path, node: str) -> Path:
    (found,) = packages.glob("*.tgz")
    return found


def install(archive: Path, folder: Path) -> None:
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    flags = ["--offline", "--no-audit", "--no-fund"]
    run(["npm", "install", *flags, str(archive)], folder)
    installed = folder / "node_modules" / "relay-client"
    assert not installed.is_symlink()
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert files == {"README.md", "package.json", *(name.lstrip("/") for name in CLIENT_FILES)}


@asynccontextmanager
async def waiting_phone(relay: RelayProcess, token: str, stream_id: str) -> AsyncIterator[None]:
    """A phone that sends a picture as soon as somebody watches."""

    async def send(phone: Peer) -> None:
        while (await phone.receive_type("status"))["consumers"] == 0:
            pass
        await phone.send_frame(PICTURE)

    async with login(relay, token) as phone, open_background() as nursery:
        await phone.register(stream_id)
        nursery.start_soon(send, phone)
        yield


async def check_watching(
    program: str, folder: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    shutil.copy(SCRIPTS / "packaged" / "watch.js", folder)
    token, stream_id = accounts.session("ann"), new_stream_id()
    environment = {
        "WS_URL": relay.url,
        "SESSION_TOKEN": token,
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }
    async with (
        waiting_phone(relay, token, stream_id),
        open_script([program, str(folder / "watch.js"), stream_id], environment) as viewer,
    ):
        assert await viewer.line("session:") == "ann"
        assert await viewer.line("frame 1:") == PICTURE.decode()


@pytest.mark.parametrize("resolution", ["NodeNext", "Bundler"])
def test_typescript_finds_the_types_of_the_installed_package(
    archive: Path, tmp_path: Path, resolution: str
) -> None:
    install(archive, tmp_path)
    for name in ("uses.ts", "player.ts", "tsconfig.json"):
        shutil.copy(SCRIPTS / "types" / name, tmp_path)
    module = "NodeNext" if resolution == "NodeNext" else "ESNext"
    compiler = [str(NODE_MODULES / ".bin" / "tsc"), "-p", "."]
    chosen = ["--module", module, "--moduleResolution", resolution]
    run([*compiler, *chosen], tmp_path)
    wrong = 'import { RelayClient } from "relay-client";\nexport const n: number = RelayClient;\n'
    (tmp_path / "wrong.ts").write_text(wrong)
    with pytest.raises(AssertionError, match=r"wrong\.ts"):
        run([*compiler, *chosen], tmp_path)


async def test_node_watches_with_the_installed_package(
    node: str, archive: Path, tmp_path: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    install(archive, tmp_path)
    (tmp_path / "node_modules" / "ws").symlink_to(NODE_MODULES / "ws")
    await check_watching(node, tmp_path, relay, accounts)


async def test_bun_watches_with_the_installed_package(
    bun: str, archive: Path, tmp_path: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    run([bun, "add", str(archive)], tmp_path)
    await check_watching(bun, tmp_path, relay, accounts)


@contextmanager
def serve_files(folder: Path) -> Iterator[str]:
    """Serve what Vite built; returns the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def look_at(url: str, expected: str) -> None:
    """Open a page in Chromium, and wait until it shows this; it must log no error."""
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=[*FLAGS])
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        expect(page.locator("output")).to_have_text(expected, timeout=PATIENCE * 1000)
        browser.close()
    assert problems == []


def build_page(archive: Path, folder: Path, page: str) -> int:
    """Have Vite build a page; returns the bytes of its JavaScript."""
    install(archive, folder)
    shutil.copytree(SCRIPTS / "packaged" / "page", folder, dirs_exist_ok=True)
    if page != "index.html":
        shutil.move(folder / page, folder / "index.html")
    vite = [str(NODE_MODULES / ".bin" / "vite"), "build", "--target", "es2022"]
    run(vite, folder)
    return sum(path.stat().st_size for path in (folder / "dist").rglob("*.js"))


async def test_a_page_that_vite_built_watches_in_a_browser(
    archive: Path, tmp_path: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    find_chromium()
    assert build_page(archive, tmp_path, "index.html") > LARGE
    token, stream_id = accounts.session("ann"), new_stream_id()
    place = quote(json.dumps({"url": relay.url, "token": token, "stream": stream_id}))
    with serve_files(tmp_path / "dist") as url:
        async with waiting_phone(relay, token, stream_id):
            shown = f"frame 1: {PICTURE.decode()}"
            await trio.to_thread.run_sync(look_at, f"{url}/#{place}", shown)


async def test_a_page_that_vite_built_has_a_player(
    archive: Path, tmp_path: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    find_chromium()
    build_page(archive, tmp_path, "player.html")
    scripts = {path.name.partition("-")[0]: path for path in (tmp_path / "dist").rglob("*.js")}
    assert set(scripts) == {"decoder", "index"}  # the first is loaded where there is video
    # No file that Vite found at a URL is in it.
    assert "data:text/javascript" not in scripts["index"].read_text()
    token, stream_id = accounts.session("ann"), new_stream_id()
    place = quote(json.dumps({"url": relay.url, "token": token, "stream": stream_id}))
    with serve_files(tmp_path / "dist") as url:
        async with waiting_phone(relay, token, stream_id):
            await trio.to_thread.run_sync(look_at, f"{url}/#{place}", "unreadable")  # no JPEG


def test_vite_leaves_out_what_a_page_does_not_use(archive: Path, tmp_path: Path) -> None:
    assert build_page(archive, tmp_path, "unused.html") < LARGE
