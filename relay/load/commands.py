"""The commands below `relay load`. Floor 6."""

from __future__ import annotations

from collections.abc import Callable
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


def need_extra() -> None:
    try:
        import hdrh  # noqa: F401, PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(
            f"relay load needs HdrHistogram: `pip install 'relay[load]'` ({error})"
        ) from None


@click.group(
    name="load", cls=LoadGroup, subcommand_metavar="SCENARIO.toml | COMMAND [ARGS]..."
)
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
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with plots.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a line of JSON for each second, and the result.")
@click.option("--abort-on-fail", is_flag=True, help="End as soon as a check cannot be kept.")
@click.option("--target-is-mine", is_flag=True, help="Also load a relay that is not on this machine.")
@click.option("--workers", type=click.IntRange(1, 64), metavar="N", help="Processes, instead of what the scenario says.")
def run_command(
    scenario: str,
    report: Path | None,
    json_file: Path | None,
    abort_on_fail: bool,  # noqa: FBT001
    target_is_mine: bool,  # noqa: FBT001
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
    need_extra()
    from relay.load.conduct import Outputs, conduct  # noqa: PLC0415

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
    return path


@load.command(name="examples")
@click.argument("name", required=False)
def examples_command(name: str | None) -> None:
    """List the scenarios that come along, or print one.

    \b
    Example:
      relay load examples
      relay load examples smoke > mine.toml
    """
    names = sorted(path.name.removesuffix(".toml") for path in EXAMPLES.iterdir() if path.name.endswith(".toml"))
    if name is None:
        for each in names:
            first_line = (EXAMPLES / f"{each}.toml").read_text().splitlines()[0]
            click.echo(f"{each:14} {first_line.removeprefix('# ')}")
        return
    if name not in names:
        from relay.load.schema import nearest  # noqa: PLC0415

        raise ConfigError(f"there is no example named {name!r}{nearest(name, names)}")
    click.echo((EXAMPLES / f"{name}.toml").read_text(), nl=False)


__all__ = ["Callable", "load"]
