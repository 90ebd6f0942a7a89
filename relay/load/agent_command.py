"""`relay load agent`: reads its options, listens, and serves until it is told to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import frozen

from relay.errors import ConfigError
from relay.load.run.agents.agent import Agent
from relay.load.run.agents.handshake import parse_fingerprint
from relay.load.run.agents.key_file import KEY_NAME, open_key
from relay.load.run.agents.permit import NotPermitted, address_of
from relay.load.run.processes import raise_open_files
from relay.load.run.wire import Permit
from relay.logs.setup import configure_logging
from relay.transport.listener import ListeningSocket, listening_sockets
from relay.transport.pinned_key import make_pinned_key


@frozen(kw_only=True)
class AgentSettings:
    """The options of the command line."""

    coordinators: tuple[str, ...]
    bind: str
    key_file: Path | None
    targets: tuple[str, ...]
    max_connections: int
    max_rate: float
    scripts: tuple[str, ...]
    workers: int

    def permit(self) -> Permit:
        """`ConfigError`."""
        return Permit(
            targets=frozenset(_address(each, "--target") for each in self.targets),
            max_connections=self.max_connections,
            max_rate=self.max_rate,
            scripts=frozenset(parse_fingerprint(each, "--allow-script") for each in self.scripts),
        )


def run_agent(settings: AgentSettings, say: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM; `ConfigError`."""
    configure_logging("warning")
    key = make_pinned_key(KEY_NAME) if settings.key_file is None else open_key(settings.key_file)
    agent = Agent(
        key=key,
        coordinators=frozenset(
            parse_fingerprint(e, "--coordinator") for e in settings.coordinators
        ),
        permit=settings.permit(),
        processes=settings.workers,
        say=lambda line: say(f"relay: agent: {line}"),
    )
    host, _, port = _address(settings.bind, "--bind", any_port=True).rpartition(":")
    raise_open_files()
    trio.run(_serve, agent, (host.strip("[]"), int(port)), say)


async def _serve(agent: Agent, address: tuple[str, int], say: Callable[[str], object]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        sockets = await listening_sockets([address], "--bind")
        host, port = sockets[0].getsockname()[:2]
        host = socket.gethostname() if host in {"0.0.0.0", "::"} else host  # noqa: S104 (all of them)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        say(f"relay: agent listening on {where}; for a coordinator:")
        say(f"--agents {where}={agent.fingerprint}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run, [ListeningSocket(each) for each in sockets])
            await anext(signals)
            nursery.cancel_scope.cancel()


def _address(text: str, option: str, *, any_port: bool = False) -> str:
    """`HOST:PORT`, in the form of `address_of`."""
    host, _, port = text.rpartition(":")
    try:
        if any_port and port == "0":
            return f"{address_of(f'ws://{host}:1').rpartition(':')[0]}:0"
        if host and port.isdecimal() and "/" not in text:
            return address_of(f"ws://{text}")
    except NotPermitted:
        pass
    raise ConfigError(f"{option}: expected HOST:PORT, not {text!r}")
