"""Clients on Node: scripts of tests/node, in the hands of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define

from tests.integration.peers import Message
from tests.integration.relay_process import PATIENCE, RelayProcess

SCRIPTS = Path(__file__).parents[1] / "node"
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"  # scripts/test puts it there


@define(eq=False)
class NodeClient:
    """A script that prints what happens to it."""

    process: trio.Process
    passed_over: str = ""
    """Lines that nobody waited for."""
    _text: str = ""

    async def line(self, start: str) -> str:
        """The rest of the next line that starts so; others are passed over."""
        with trio.fail_after(PATIENCE):
            while True:
                line = await self._line()
                if line.startswith(start):
                    return line.removeprefix(start).strip()
                self.passed_over += line + "\n"

    async def received(self, kind: str) -> Message:
        """The next message of a type that it received."""
        while (message := json.loads(await self.line("received:")))["type"] != kind:
            pass
        return dict(message)

    async def write(self, line: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line.encode() + b"\n")

    async def _line(self) -> str:
        assert self.process.stdout is not None
        while "\n" not in self._text:
            more = await self.process.stdout.receive_some()
            assert more, f"the script ended after {self._text!r}"
            self._text += more.decode()
        line, _, self._text = self._text.partition("\n")
        return line


def find_node() -> str:
    """Node, with the packages that scripts/test installs for it; else the test is skipped."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("platform: there is no Node here")
    if not NODE_MODULES.exists():
        pytest.skip("the packages for Node are not installed: run ./scripts/test")
    return found


@asynccontextmanager
async def run_script(
    node: str,
    relay: RelayProcess | None,
    token: str,
    script: str,
    *arguments: str,
    trust: Path | None = None,
) -> AsyncIterator[NodeClient]:
    """Run a script of tests/node until the block ends, which ends its stdin.

    The certificates in the file `trust` are trusted beside those of the world.
    """
    environment = {
        **({} if relay is None else {"WS_URL": relay.url.replace("http", "ws", 1)}),
        "SESSION_TOKEN": token,
        **({} if trust is None else {"NODE_EXTRA_CA_CERTS": str(trust)}),
    }
    async with open_script([node, SCRIPTS / script, *arguments], environment) as client:
        yield client


@asynccontextmanager
async def open_script(
    command: Sequence[str | Path], environment: Mapping[str, str]
) -> AsyncIterator[NodeClient]:
    """Run a script until the block ends, which ends its stdin; it has to end with 0 then."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"NODE_PATH": str(NODE_MODULES), **environment},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        try:
            yield NodeClient(process)
            await process.stdin.aclose()
            with trio.fail_after(PATIENCE):
                assert await process.wait() == 0
        finally:
            if process.poll() is None:
                process.kill()


@asynccontextmanager
async def run_program(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[NodeClient]:
    """Run a program that a page prints, in any language, until the block ends."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
    )
    assert process.stdout is not None
    async with process.stdout:
        try:
            yield NodeClient(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                await process.wait()
