"""`relay load agent` and `relay load keys`, and the options of those who use agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from relay.cli.grouped_help import GroupedOption
from relay.errors import ConfigError

AGENT_BIND = "127.0.0.1:3100"


def agent_options(command: Any) -> Any:
    """Add `--agents` and `--key`."""
    for option in (
        click.option(
            "--key",
            "key_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="This coordinator's key, made by `relay load keys`.",
            cls=GroupedOption,
            group="Machines",
        ),
        click.option(
            "--agents",
            multiple=True,
            metavar="HOST:PORT=FINGERPRINT,...",
            help="Let these agents make the load, as each printed it when it started.",
            cls=GroupedOption,
            group="Machines",
        ),
    ):
        command = option(command)
    return command


def read_agent_options(
    agents: tuple[str, ...], key_file: Path | None, workers: int | None = None
) -> Any:
    """The `AgentOptions` of a command; None without agents. `ConfigError`."""
    if agents and workers is not None:
        raise ConfigError("--workers is for this machine: agents are started with their own")
    from relay.load.run.agents.agents import AgentOptions
    from relay.load.run.agents.handshake import AgentAddress
    from relay.load.run.agents.key_file import read_key

    words = [word for given in agents for word in given.replace(",", " ").split()]
    if not words:
        if agents or key_file is not None:
            raise ConfigError("--key is for --agents HOST:PORT=FINGERPRINT,..., and none is given")
        return None
    addresses = tuple(map(AgentAddress.parse, words))
    if len({each.name for each in addresses}) < len(addresses):
        raise ConfigError("--agents: an agent is named twice")
    if key_file is None:
        raise ConfigError("--agents needs --key FILE: make one with `relay load keys FILE`")
    return AgentOptions(addresses, read_key(key_file))


@click.command(name="keys")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.pem")
def keys_command(file: Path) -> None:
    """Make the key of a coordinator or an agent, and print its fingerprint.

    If the file is there already, its fingerprint is printed. Keep the file to yourself; the
    fingerprint is no secret. Agents are started with that of their coordinator.

    \b
    Example:
      relay load keys coordinator.pem
    """
    from relay.load.run.agents.handshake import fingerprint_of
    from relay.load.run.agents.key_file import open_key

    click.echo(fingerprint_of(open_key(file)))


@click.command(name="agent")
@click.option(
    "--coordinator",
    "coordinators",
    multiple=True,
    required=True,
    metavar="FINGERPRINT",
    help="Obey this coordinator; `relay load keys` prints it. May be repeated.",
    cls=GroupedOption,
    group="Who may use it",
)
@click.option(
    "--bind",
    default=AGENT_BIND,
    show_default=True,
    metavar="HOST:PORT",
    help="Where coordinators find this agent.",
    cls=GroupedOption,
    group="Who may use it",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep this agent's key here. By default, each start makes another one.",
    cls=GroupedOption,
    group="Who may use it",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="HOST:PORT",
    help="Load this relay, as scenarios name it. May be repeated.",
    cls=GroupedOption,
    group="What it may do",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="Connections at once.",
    cls=GroupedOption,
    group="What it may do",
)
@click.option(
    "--max-rate",
    type=click.FloatRange(1, 10_000_000),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Frames, alerts, pings and attempts to connect per second.",
    cls=GroupedOption,
    group="What it may do",
)
@click.option(
    "--allow-script",
    "scripts",
    multiple=True,
    metavar="SHA256",
    help="Run this script, which `sha256sum` names so. May be repeated.",
    cls=GroupedOption,
    group="What it may do",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of processes; use no more than there are cores.",
    cls=GroupedOption,
    group="What it may do",
)
def agent_command(  # noqa: PLR0917 (the parameters of the command)
    coordinators: tuple[str, ...],
    bind: str,
    key_file: Path | None,
    targets: tuple[str, ...],
    max_connections: int,
    max_rate: float,
    scripts: tuple[str, ...],
    workers: int,
) -> None:
    """Make load on this machine for `relay load run --agents` on another one.

    Only coordinators named here can use it, over TLS. It takes one run at a time, and loads only
    the targets named here. It prints what --agents needs.

    \b
    Example:
      relay load agent --coordinator FINGERPRINT --target relay.test:3000 --bind 10.0.0.5:3100
    """
    from relay.load.agent_command import AgentSettings, run_agent

    run_agent(
        AgentSettings(
            coordinators=coordinators,
            bind=bind,
            key_file=key_file,
            targets=targets,
            max_connections=max_connections,
            max_rate=max_rate,
            scripts=scripts,
            workers=workers,
        ),
        click.echo,
    )
