"""The programs in README.md run as they are printed, against a relay on another port."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.node import NodeClient, run_program
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import PROJECT, RelayProcess

PAGE = (PROJECT / "README.md").read_text("utf-8")
PROGRAMS = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
ADDRESS = "http://localhost:3000"
STREAM_ID = "front-door"
MAX_LINES = 10


def test_the_programs_are_short() -> None:
    assert set(PROGRAMS) == {"watch.py", "watch.mjs"}
    for name, code in PROGRAMS.items():
        assert len([line for line in code.splitlines() if line]) <= MAX_LINES, name


@asynccontextmanager
async def run_printed(
    command: list[str], folder: Path, relay: RelayProcess, token: str, stream_id: str
) -> AsyncIterator[NodeClient]:
    """Runs a program of the page in a folder that looks like the project's."""
    name = command[-1]
    code = PROGRAMS[name]
    assert (code.count(ADDRESS), code.count(STREAM_ID)) == (1, 1)
    (folder / name).write_text(code.replace(ADDRESS, relay.url).replace(STREAM_ID, stream_id))
    (folder / "relay").symlink_to(PROJECT / "relay")
    async with run_program(command, folder, {"TOKEN": token}) as client:
        yield client


def node_command(node: str) -> list[str]:
    """Node before 22 has its WebSocket behind a flag."""
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    old = int(version.stdout[1:].partition(".")[0]) < 22
    return [node, *(["--experimental-websocket"] if old else []), "watch.mjs"]


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_a_viewer_of_the_page_sees_frames(
    node: str, relay: RelayProcess, accounts: Accounts, tmp_path: Path, language: str
) -> None:
    command = [sys.executable, "watch.py"] if language == "python" else node_command(node)
    token, stream_id = accounts.session("ann"), new_stream_id()
    async with (
        login(relay, token) as phone,
        run_printed(command, tmp_path, relay, token, stream_id) as viewer,
    ):
        await phone.register(stream_id)
        while (await phone.receive_type("status"))["consumers"] == 0:
            pass
        await phone.send_frame(b"picture")
        assert await viewer.line("frame 1:") == "7 bytes"
