"""The code in docs/clients.md and docs/slow-networks.md: TypeScript is compiled, what can run runs
against a relay."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.node import NODE_MODULES, SCRIPTS, NodeClient, run_program
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import PATIENCE, PROJECT, RelayProcess
from tests.integration.slow_proxy import SlowProxy, slow_link

PAGES = [
    (PROJECT / "docs" / name).read_text("utf-8") for name in ("clients.md", "slow-networks.md")
]
BLOCK = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {name: code for page in PAGES for name, code in BLOCK.findall(page)}
CLIENT = PROJECT / "relay" / "web" / "client"


def provide_modules(folder: Path) -> None:
    """The client as `npm install` links it, beside what else Node is to find."""
    modules = folder / "node_modules"
    modules.mkdir()
    (modules / "relay-client").symlink_to(CLIENT)
    (modules / "ws").symlink_to(NODE_MODULES / "ws")
    (folder / "package.json").write_text('{"type": "module"}')


def test_the_pages_have_the_code_that_is_tested_here() -> None:
    assert set(BLOCKS) == {
        "session.ts",
        "broadcast.ts",
        "layers.ts",
        "viewer.ts",
        "watch.mjs",
        "watch.py",
        "phone.py",
        "own.py",
        "layers.py",
        "tile.ts",
        "tile.py",
    }


def compile_in(folder: Path) -> subprocess.CompletedProcess[str]:
    compiler = NODE_MODULES / ".bin" / "tsc"
    return subprocess.run(
        [compiler, "-p", folder], capture_output=True, text=True, timeout=PATIENCE * 4, check=False
    )


def test_typescript_compiles_against_the_types_of_the_client(node: str, tmp_path: Path) -> None:
    provide_modules(tmp_path)
    for path in (SCRIPTS / "types").iterdir():
        shutil.copy(path, tmp_path)
    for name, code in BLOCKS.items():
        if name.endswith(".ts"):
            (tmp_path / name).write_text(code)
    done = compile_in(tmp_path)
    assert done.returncode == 0, done.stdout

    wrong = 'import { RelayClient } from "relay-client";\nexport const n: number = RelayClient;\n'
    (tmp_path / "wrong.ts").write_text(wrong)
    assert "wrong.ts(2," in compile_in(tmp_path).stdout


@asynccontextmanager
async def run_block(
    name: str,
    folder: Path,
    relay: RelayProcess | SlowProxy,
    token: str,
    stream_id: str,
    *,
    patience: str = "20",
) -> AsyncIterator[NodeClient]:
    code = BLOCKS[name].replace("PATIENCE = 20 ", f"PATIENCE = {patience} ")
    (folder / name).write_text(code)
    interpreter = sys.executable if name.endswith(".py") else "node"
    environment = {"WATCH_URL": relay.url, "WATCH_TOKEN": token}
    command: list[str | Path] = [interpreter, folder / name, stream_id]
    async with run_program(command, PROJECT, environment) as client:
        yield client


@pytest.mark.parametrize("name", ["watch.mjs", "watch.py", "own.py"])
async def test_viewers_of_the_page_see_frames_and_alerts(
    node: str, relay: RelayProcess, accounts: Accounts, tmp_path: Path, name: str
) -> None:
    if name.endswith(".mjs"):
        provide_modules(tmp_path)
    token, stream_id = accounts.session("ann"), new_stream_id()
    async with login(relay, token) as phone:
        await phone.register(stream_id)
        async with run_block(name, tmp_path, relay, token, stream_id) as viewer:
            demand = await phone.receive_type("status")
            assert demand["consumers"] == 1
            await phone.send_frame(b"picture")
            assert (await viewer.line("frame 1")) in {"", ", 7 bytes", ", 7 bytes, 0 missed"}
            alert = {"type": "alert", "streamId": stream_id, "severity": "low", "message": "Hello"}
            reply = await phone.ask(alert)
            assert await viewer.line(f"alert {reply['alertId']}:") == "Hello"


async def test_the_phone_of_the_page_streams_while_somebody_watches(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    async with (
        login(relay, token) as viewer,
        run_block("phone.py", tmp_path, relay, token, stream_id),
    ):
        await viewer.subscribe(stream_id)
        first = await viewer.receive_type("video-frame")
        second = await viewer.receive_type("video-frame")
        assert (first["seq"], second["seq"]) == (1, 2)


async def test_phone_and_tile_of_the_page_use_layers(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    async with (
        run_block("layers.py", tmp_path, relay, token, stream_id),
        run_block("tile.py", tmp_path, relay, token, stream_id) as tile,
    ):
        assert await tile.line("layer l:") == "a picture of 320 pixels"
        async with login(relay, token) as viewer:
            large = {"consumes": ["video-frame"], "layer": "h"}
            await viewer.send({"type": "subscribe", "streamId": stream_id, **large})
            while (await viewer.receive_type("video-frame"))["layer"] != "h":
                pass
        assert await tile.line("layer l:") == "a picture of 320 pixels"


async def test_a_client_of_ones_own_sees_a_frame_that_takes_longer_than_its_patience(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    async with login(relay, token) as phone, slow_link(relay.url, down=150_000) as link:
        await phone.register(stream_id)
        async with run_block("own.py", tmp_path, link, token, stream_id, patience="0.4") as viewer:
            await phone.receive_type("status")
            await phone.send_frame(os.urandom(225_000))
            await phone.send_frame(b"next")
            await viewer.line("frame 1")
            await viewer.line("frame 2")
        assert link.opened == 1


async def test_a_client_of_ones_own_does_not_insist_on_a_wrong_token(
    relay: RelayProcess, tmp_path: Path
) -> None:
    async with run_block("own.py", tmp_path, relay, "guessed", new_stream_id()) as viewer:
        assert await viewer.line("the relay said") == "1008: Authentication failed"
