"""Agents of `relay load` in the hands of a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import frozen

from relay.load.run.agents.handshake import fingerprint_of
from relay.load.run.agents.key_file import open_key
from tests.integration.load_command import until_line


@frozen
class AgentProcess:
    """A running agent."""

    process: subprocess.Popen[str]
    address: str
    """`HOST:PORT=FINGERPRINT`."""

    @property
    def name(self) -> str:
        return self.address.partition("=")[0]


@contextmanager
def start_agent(
    key: Path, target: str, *options: str, command: Sequence[str] = ()
) -> Iterator[AgentProcess]:
    """Start an agent of the coordinator with this key; it ends with the block."""
    arguments = [
        *(command or [sys.executable, "-P", "-m", "relay"]),
        *("load", "agent", "--coordinator", fingerprint_of(open_key(key))),
        *("--target", target, "--bind", "127.0.0.1:0", *options),
    ]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = until_line(process, "--agents ").splitlines()[-1]
        yield AgentProcess(process, line.removeprefix("--agents "))
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def start_agents(key: Path, target: str, *each: Sequence[str]) -> Iterator[list[AgentProcess]]:
    """Start an agent with each of these options."""
    with ExitStack() as stack:
        yield [stack.enter_context(start_agent(key, target, *options)) for options in each]


def agents_of(key: Path, agents: Sequence[AgentProcess]) -> tuple[str, ...]:
    """The options of a coordinator that uses them."""
    return ("--key", str(key), "--agents", ",".join(each.address for each in agents))
