"""The real Mosquitto, and its client that subscribes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import pytest
import trio
from attrs import define, field, frozen

from tests.integration.proxies import free_port
from tests.integration.relay_process import until

PROGRAMS = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
MOSQUITTO = shutil.which("mosquitto", path=PROGRAMS)
MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd", path=PROGRAMS)
MOSQUITTO_SUB = shutil.which("mosquitto_sub", path=PROGRAMS)
with_mosquitto = pytest.mark.skipif(
    not (MOSQUITTO and MOSQUITTO_PASSWD and MOSQUITTO_SUB),
    reason="needs mosquitto and mosquitto-clients",
)


@frozen
class Published:
    """A message as a subscriber gets it."""

    topic: str
    payload: str
    retained: bool

    @property
    def content(self) -> Any:
        return json.loads(self.payload)


@define(eq=False)
class Mosquitto:
    """A broker on loopback."""

    folder: Path
    port: int = field(factory=free_port)
    options: Sequence[str] = ("allow_anonymous true",)
    login: tuple[str, str] | None = None
    authority: Path | None = None
    log: list[str] = field(factory=list)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def set_password(self, user: str, password: str) -> None:
        """Let nobody in but this user."""
        file = self.folder / "passwords"
        assert MOSQUITTO_PASSWD is not None
        subprocess.run([MOSQUITTO_PASSWD, "-b", "-c", file, user, password], check=True)
        self.options = ("allow_anonymous false", f"password_file {file}")
        self.login = user, password

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The broker runs, until the block ends; what it retains is gone then."""
        assert MOSQUITTO is not None
        file = self.folder / "mosquitto.conf"
        user = ["user root"] if os.geteuid() == 0 else []
        lines = [f"listener {self.port} 127.0.0.1", *self.options, *user, "log_type all"]
        file.write_text("\n".join(lines) + "\n")
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                [MOSQUITTO, "-c", str(file)], stdout=PIPE, stderr=STDOUT
            )
            nursery.start_soon(self._keep_log, process)
            try:
                await until(lambda: any("running" in line for line in self.log))
                yield
            finally:
                process.kill()
                with trio.move_on_after(5, shield=True):
                    await process.wait()
            self.log.append("it ended")
        self.log.clear()

    async def _keep_log(self, process: trio.Process) -> None:
        assert process.stdout is not None
        rest = b""
        async for data in process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self.log += [line.decode(errors="replace") for line in lines]

    @asynccontextmanager
    async def subscribed(self, *topics: str) -> AsyncIterator[list[Published]]:
        """What is published on these topics, in a list that grows."""
        assert MOSQUITTO_SUB is not None
        found: list[Published] = []
        command = [MOSQUITTO_SUB, "-h", "127.0.0.1", "-p", str(self.port), "-q", "1", "-F", "%j"]
        command += [word for topic in topics for word in ("-t", topic)]
        if self.login is not None:
            command += ["-u", self.login[0], "-P", self.login[1]]
        if self.authority is not None:
            command += ["--cafile", str(self.authority)]
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(command, stdout=PIPE, stderr=DEVNULL)

            async def read() -> None:
                assert process.stdout is not None
                rest = b""
                async for data in process.stdout:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in map(json.loads, lines):
                        message = Published(line["topic"], line["payload"], bool(line["retain"]))
                        found.append(message)

            nursery.start_soon(read)
            yield found
            process.kill()
            await process.wait()

    async def retained(self, topic: str, count: int) -> list[Published]:
        """What the broker retains there, once it is so many messages."""
        with trio.fail_after(15):
            while True:
                async with self.subscribed(topic) as found:
                    with trio.move_on_after(1):
                        await until(lambda: len(found) >= count)
                    await trio.sleep(0.1)
                retained = [each for each in found if each.retained]
                if len(retained) == count:
                    return retained
