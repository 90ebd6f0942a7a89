"""The commands below `relay load`. Floor 6."""

from __future__ import annotations

import os
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import click

from relay.errors import ConfigError

WRONG = 2
EXAMPLES = resources.files("relay.load") / "examples"


class LoadGroup(click.Group):
    """`relay load SCENARIO.toml` and `relay load smoke` are short for `relay load run ...`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args.insert(0, "run")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options before the scenario belong to the run as well.
        if args and args[0].startswith("-") and args[0] not in {"-h", "--help"}:
            args.insert(0, "run")
        return super().parse_args(ctx, args)


@click.group(name="load", cls=LoadGroup, subcommand_metavar="SCENARIO.toml | COMMAND [ARGS]...")
def load() -> None:
    """Test a relay under load.

    A scenario says who takes part, when, and what must come of it.

    \b
    See it work:       relay load smoke
    Write your own:    relay load examples smoke > mine.toml
    And run it:        relay load mine.toml --report mine.html
    """


@load.command(name="run")
@click.argument("scenario", metavar="SCENARIO.toml")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a page with plots.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a line of JSON for each second, and the result.",
)
@click.option("--abort-on-fail", is_flag=True, help="End as soon as a check cannot be kept.")
@click.option(
    "--target-is-mine", is_flag=True, help="Also load a relay that is not on this machine."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes, instead of what the scenario says.",
)
def run_command(  # noqa: PLR0917 (the parameters of the command)
    scenario: str,
    report: Path | None,
    json_file: Path | None,
    abort_on_fail: bool,
    target_is_mine: bool,
    workers: int | None,
) -> int:
    """Run a scenario: a file, or the name of an example.

    The exit code is 0 when all checks are kept, 1 when one failed, 2 when the scenario is wrong, 3
    when it could not be run, and 130 when it was interrupted.

    \b
    Example:
      relay load run smoke
      relay load run mine.toml --report mine.html --json mine.json
    """
    from relay.load.conduct import Outputs, conduct

    return conduct(
        find_scenario(scenario),
        Outputs(report, json_file),
        workers=workers,
        abort_on_fail=abort_on_fail,
        target_is_mine=target_is_mine,
    )


def find_scenario(name: str) -> Path:
    """A file of this name, or else the example."""
    path = Path(name)
    if path.suffix != ".toml" and not path.exists():
        example = Path(str(EXAMPLES / f"{name}.toml"))
        if example.is_file():
            return example
        if path.parent == Path():
            raise no_example(name, "no file and no example")
    return path


def example_names() -> list[str]:
    return sorted(
        path.name.removesuffix(".toml")
        for path in EXAMPLES.iterdir()
        if path.name.endswith(".toml")
    )


def no_example(name: str, what: str) -> ConfigError:
    from relay.load.schema import nearest

    return ConfigError(f"there is {what} named {name!r}{nearest(name, example_names())}")


@load.command(name="examples")
@click.argument("name", required=False)
def examples_command(name: str | None) -> None:
    """List the scenarios that come along, or print one.

    \b
    Example:
      relay load examples
      relay load examples smoke > mine.toml
    """
    names = example_names()
    if name is None:
        for each in names:
            first_line = (EXAMPLES / f"{each}.toml").read_text().splitlines()[0]
            click.echo(f"{each:14} {first_line.removeprefix('# ')}")
        return
    if name not in names:
        raise no_example(name, "no example")
    click.echo((EXAMPLES / f"{name}.toml").read_text(), nl=False)


@load.command(name="compare")
@click.argument("before", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("after", type=click.Path(path_type=Path), metavar="B.json")
def compare_command(before: Path, after: Path) -> None:
    """Compare two runs that were written with --json.

    \b
    Example:
      relay load compare monday.json tuesday.json
    """
    from rich.console import Console

    from relay.load.compare import print_comparison
    from relay.load.results import read_result

    console = Console(markup=False, highlight=False)
    print_comparison(console, read_result(before)[0], read_result(after)[0])


@load.command(name="self-test")
def self_test_command() -> None:
    """Measure what the generator itself can do on this machine.

    Its other side is the least server there can be, in a process of its own; it takes half a
    minute.

    \b
    Example:
      relay load self-test
    """
    import trio
    from rich.console import Console

    from relay.load.selftest import self_test

    trio.run(self_test, Console(markup=False, highlight=False))


@load.command(name="record")
@click.argument("url")
@click.argument("stream")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.trace",
    help="Where to write it.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="End after this time; without it, Ctrl-C ends it.",
)
@click.option(
    "--token-file",
    type=click.File("r"),
    metavar="FILE",
    help="A token that may watch the stream; or TOKEN in the environment.",
)
@click.option(
    "--sizes-only", is_flag=True, help="Keep the sizes and times of frames, and not the pictures."
)
@click.option("--ca", metavar="FILE.pem", help="Trust these certificates of a wss:// relay, too.")
@click.option("--insecure", is_flag=True, help="Trust whoever answers.")
def record_command(  # noqa: PLR0917 (the parameters of the command)
    url: str,
    stream: str,
    output: Path,
    seconds: float | None,
    token_file: Any,
    sizes_only: bool,
    ca: str | None,
    insecure: bool,
) -> None:
    """Record a phone's real session, for phones of a scenario to replay.

    \b
    Example:
      relay load record ws://localhost:3000 front-door -o door.trace --token-file token.txt
    """
    import trio

    from relay.load.record import record
    from relay.load.trust import Trust

    token = token_file.read().strip() if token_file else os.environ.get("TOKEN", "")
    if not token:
        raise ConfigError("a token is needed: --token-file FILE, or TOKEN")
    recording = partial(
        record,
        url,
        stream,
        token,
        output,
        seconds=seconds,
        with_data=not sizes_only,
        trust=Trust(ca, insecure),
    )
    recorder = trio.run(recording)
    click.echo(f"{recorder.frames} frames in {output}, {recorder.missed} missed")
