"""The real Better Auth with its sessions in a Map or in Redis, and its HTTP server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen
from psycopg.conninfo import conninfo_to_dict

from tests.integration.node import NODE_MODULES, SCRIPTS, NodeClient
from tests.integration.relay_process import PATIENCE

OLDER = "better-auth-1.6"
PACKAGES = (OLDER, "better-auth")
REDIS = shutil.which("redis-server") or shutil.which("valkey-server")


@frozen
class SignedIn:
    """What Better Auth gives to somebody who signs in."""

    token: str
    user_id: str
    session_id: str
    signed: str
    """The token in its signed form."""


@frozen
class Application:
    """A process with Better Auth in it."""

    url: str
    """Of its get-session."""
    _script: NodeClient

    async def do(self, what: str, *arguments: str) -> dict[str, Any]:
        await self._script.write(json.dumps([what, *arguments]))
        answer: dict[str, Any] = json.loads(await self._script.line("done:"))
        return answer

    async def sign(self, how: str, email: str) -> SignedIn:
        """Sign somebody up or in."""
        made = await self.do(f"sign{how}", email)
        return SignedIn(made["token"], made["userId"], made.get("sessionId", ""), made["signed"])

    async def expiry(self, token: str) -> str:
        """When a stored session expires; empty if it is gone."""
        return str((await self.do("stored", token)).get("session", {}).get("expiresAt", ""))


@asynccontextmanager
async def better_auth(
    node: str, package: str, *, rows: str | None = None, **options: Any
) -> AsyncIterator[Application]:
    """Better Auth of a package; with `rows`, the URL of a database that has its tables."""
    environment = {"NODE_PATH": str(NODE_MODULES)}
    if rows is not None:
        address = conninfo_to_dict(rows)
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        environment |= {f"PG{name}": str(address[key]) for key, name in names.items()}
        environment["PGDATABASE"] = str(address["dbname"])
    process = await trio.lowlevel.open_process(
        [
            node,
            SCRIPTS / "sessions_elsewhere.js",
            package,
            json.dumps({"rows": rows is not None, **options}),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        try:
            script = NodeClient(process)
            application = Application(json.loads(await script.line("ready:"))["url"], script)
            if rows is not None:
                await application.do("migrate")
            yield application
            await process.stdin.aclose()
            with trio.fail_after(PATIENCE):
                assert await process.wait() == 0
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def storage_options(storage: str) -> Iterator[dict[str, Any]]:
    """The options for `better_auth` with sessions in a "map" or in "redis"."""
    if storage == "map":
        yield {}
        return
    if REDIS is None:
        pytest.skip("there is no redis-server on the PATH: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="relay-test-") as folder:
        path = Path(folder) / "socket"
        process = subprocess.Popen(
            [REDIS, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not _accepts(path):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield {"redis": str(path)}
        finally:
            process.terminate()
            process.wait()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(str(path)) == 0
