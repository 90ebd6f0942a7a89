"""Which scenario a command of `relay load` is about, and which relay it loads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import click

from relay.cli.grouped_help import GroupedOption
from relay.errors import ConfigError

EXAMPLES = resources.files("relay.load.scenario") / "examples"


def target_options(command: Any) -> Any:
    """Add `--target-is-mine`, `--target` and `--workers`."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(1, 64),
            metavar="N",
            help="Number of worker processes, instead of the scenario's.",
            cls=GroupedOption,
            group="Machines",
        ),
        click.option(
            "--target",
            "targets",
            multiple=True,
            metavar="[NAME=]URL",
            help="Load this relay, and no other; several times for several nodes of a cluster.",
            cls=GroupedOption,
            group="Machines",
        ),
        click.option(
            "--target-is-mine",
            is_flag=True,
            help="Allow a target that is not this machine.",
            cls=GroupedOption,
            group="Machines",
        ),
    ):
        command = option(command)
    return command


def find_scenario(name: str) -> Path:
    """The file with this name, or else the example."""
    path = Path(name)
    if path.suffix != ".toml" and not os.access(path, os.F_OK):
        example = Path(str(EXAMPLES / f"{name}.toml"))
        if example.is_file():
            return example
        if path.parent == Path():
            raise no_example(name, "no file and no example")
    return path


def check_misspelt(name: str, commands: Iterable[str]) -> None:
    """Refuse what is no scenario and looks like a command; `ConfigError`."""
    from relay.load.suggestions import closest

    examples = example_names()
    if name.endswith(".toml") or name in examples or os.access(name, os.F_OK):
        return
    found = closest(name, [*commands, *examples])
    if found is not None and found not in examples:
        raise ConfigError(
            f"there is no command, no file and no example named {name!r}; did you mean {found}?"
        )


def example_names() -> list[str]:
    return sorted(
        path.name.removesuffix(".toml")
        for path in EXAMPLES.iterdir()
        if path.name.endswith(".toml")
    )


def no_example(name: str, what: str) -> ConfigError:
    from relay.load.suggestions import suggestion

    return ConfigError(f"there is {what} named {name!r}{suggestion(name, example_names())}")
