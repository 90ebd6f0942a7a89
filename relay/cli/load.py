"""`relay load`: scenarios, their results, and recordings of streams."""

from __future__ import annotations

import os
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import click

from relay.cli.grouped_help import GroupedGroup, GroupedOption
from relay.cli.load_agents import agent_command, agent_options, keys_command, read_agent_options
from relay.errors import ConfigError

EXAMPLES = resources.files("relay.load.scenario") / "examples"


class LoadGroup(GroupedGroup):
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


def tolerance_option(command: Any) -> Any:
    return click.option(
        "--tolerance",
        type=click.FloatRange(min=0, max=1000),
        default=20.0,
        show_default=True,
        metavar="PERCENT",
        help="A figure that grew by no more is not worse.",
        cls=GroupedOption,
        group="Results",
    )(command)


@click.group(
    name="load",
    cls=LoadGroup,
    subcommand_metavar="SCENARIO.toml | COMMAND [ARGS]...",
    sections={
        "Run a scenario": ("examples", "run"),
        "Read results": ("compare",),
        "Prepare": ("record", "self-test"),
        "Several machines": ("agent", "keys"),
    },
)
def load() -> None:
    """Load-test a relay.

    A scenario defines who takes part, when, and which checks must pass.

    \b
    Try it:               relay load smoke
    List the examples:    relay load examples
    Copy an example:      relay load examples smoke > mine.toml
    Run it:               relay load mine.toml --report mine.html --json mine.json
    Compare two runs:     relay load compare before.json mine.json
    """


load.add_command(agent_command)
load.add_command(keys_command)


@load.command(name="run")
@click.argument("scenario", metavar="SCENARIO.toml")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write an HTML report with plots.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a line of JSON for each second and one for the result.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a row of CSV for each second and group.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    metavar="FILE.xml",
    help="Write the checks as JUnit XML.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Fail if this run is worse than that one, which used --json.",
    cls=GroupedOption,
    group="Results",
)
@tolerance_option
@click.option(
    "--github",
    is_flag=True,
    help="Print annotations for GitHub. Implied by GITHUB_ACTIONS=true.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--remote-write",
    metavar="URL",
    help="Send metrics to Prometheus each second, with its remote-write protocol.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--otlp",
    metavar="URL",
    help="Send metrics to an OpenTelemetry collector each second, over HTTP.",
    cls=GroupedOption,
    group="Results",
)
@click.option(
    "--abort-on-fail", is_flag=True, help="End the run as soon as a check can no longer pass."
)
@click.option(
    "--target-is-mine",
    is_flag=True,
    help="Allow a target that is not this machine.",
    cls=GroupedOption,
    group="Machines",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="[NAME=]URL",
    help="Load this relay, and no other; several times for several nodes of a cluster.",
    cls=GroupedOption,
    group="Machines",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Number of worker processes, instead of the scenario's.",
    cls=GroupedOption,
    group="Machines",
)
@agent_options
def run_command(  # noqa: PLR0917 (the parameters of the command)
    scenario: str,
    report: Path | None,
    json_file: Path | None,
    csv_file: Path | None,
    junit: Path | None,
    baseline: Path | None,
    tolerance: float,
    github: bool,
    remote_write: str | None,
    otlp: str | None,
    abort_on_fail: bool,
    target_is_mine: bool,
    targets: tuple[str, ...],
    workers: int | None,
    agents: tuple[str, ...],
    key_file: Path | None,
) -> int:
    """Run a scenario: a file, or the name of an example.

    The exit code is 0 if all checks passed, 1 if a check failed, 2 if the scenario or the baseline
    is invalid, 3 if it could not be run, 4 if it is worse than the baseline, and 130 if it was
    interrupted.

    \b
    Example:
      relay load run smoke
      relay load run mine.toml --report mine.html --json mine.json
      relay load run mine.toml --baseline yesterday.json --junit mine.xml
      relay load run mine.toml --target ws://localhost:3000 --target ws://localhost:3001
    """
    from relay.load.report.metric_sinks import SinkAddresses
    from relay.load.report.outputs import OutputFiles
    from relay.load.runner import Baseline, run_scenario

    if agents and workers is not None:
        raise ConfigError("--workers is for this machine: agents are started with their own")
    return run_scenario(
        find_scenario(scenario),
        OutputFiles(report=report, json=json_file, csv=csv_file, junit=junit),
        workers=workers,
        targets=targets,
        abort_on_fail=abort_on_fail,
        target_is_mine=target_is_mine,
        baseline=None if baseline is None else Baseline(baseline, tolerance / 100),
        sinks=SinkAddresses.of(remote_write, otlp),
        on_github=github or os.environ.get("GITHUB_ACTIONS") == "true",
        agents=read_agent_options(agents, key_file),
    )


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


def example_names() -> list[str]:
    return sorted(
        path.name.removesuffix(".toml")
        for path in EXAMPLES.iterdir()
        if path.name.endswith(".toml")
    )


def no_example(name: str, what: str) -> ConfigError:
    from relay.load.suggestions import suggestion

    return ConfigError(f"there is {what} named {name!r}{suggestion(name, example_names())}")


@load.command(name="examples")
@click.argument("name", required=False)
def examples_command(name: str | None) -> None:
    """List the example scenarios, or print one.

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
@tolerance_option
def compare_command(before: Path, after: Path, tolerance: float) -> int:
    """Compare two runs of a scenario that used --json.

    The exit code is 4 if the second run is worse: if a frame age, a share of missed frames or the
    CPU time per frame grew by more than the tolerance, and the noise of the runs does not explain
    it.

    \b
    Example:
      relay load compare monday.json tuesday.json
    """
    from rich.console import Console

    from relay.load.measures.comparison import check_same_load, compare_runs
    from relay.load.report.compare import print_comparison
    from relay.load.runner import WORSE, read_run

    first, second = read_run(before), read_run(after)
    check_same_load(first, second.result.scenario, second.result.load)
    comparison = compare_runs(first, second, tolerance / 100)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    print_comparison(console, comparison, first.result, second.result)
    return WORSE if comparison.with_verdict("worse") else 0


@load.command(name="self-test")
@agent_options
def self_test_command(agents: tuple[str, ...], key_file: Path | None) -> None:
    """Measure how much load this machine can generate, or each of several agents.

    The load goes to a server on the same machine that does as little as possible. This takes half a
    minute.

    \b
    Example:
      relay load self-test
    """
    import trio
    from rich.console import Console

    from relay.load.selftest import self_test, self_test_agents

    console = Console(markup=False, highlight=False)
    options = read_agent_options(agents, key_file)
    if options is None:
        trio.run(self_test, console)
    else:
        trio.run(self_test_agents, console, options)


@load.command(name="record")
@click.argument("url")
@click.argument("stream")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.trace",
    help="The file to write.",
    cls=GroupedOption,
    group="Output",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Stop after this time. By default, stop with Ctrl-C.",
    cls=GroupedOption,
    group="Output",
)
@click.option(
    "--token-file",
    type=click.File("r"),
    metavar="FILE",
    help="File with a token that may watch the stream. By default, $TOKEN is used.",
    cls=GroupedOption,
    group="Access",
)
@click.option(
    "--sizes-only",
    is_flag=True,
    help="Record the sizes and times of frames, not the pictures.",
    cls=GroupedOption,
    group="Output",
)
@click.option(
    "--ca",
    metavar="FILE.pem",
    help="Trust these certificates in addition to the system's.",
    cls=GroupedOption,
    group="Access",
)
@click.option(
    "--insecure", is_flag=True, help="Accept any certificate.", cls=GroupedOption, group="Access"
)
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
    """Record a real stream for the phones of a scenario to replay.

    \b
    Example:
      relay load record ws://localhost:3000 front-door -o door.trace --token-file token.txt
    """
    import trio

    from relay.load.actors.endpoint import TlsVerification
    from relay.load.record import record

    token = token_file.read().strip() if token_file else os.environ.get("TOKEN", "")
    if not token:
        raise ConfigError("a token is needed: set TOKEN, or use --token-file FILE")
    recording = partial(
        record,
        url,
        stream,
        token,
        output,
        seconds=seconds,
        with_data=not sizes_only,
        tls_verification=TlsVerification.of(ca, insecure=insecure),
    )
    recorder = trio.run(recording)
    click.echo(f"{recorder.frames} frames in {output}, {recorder.missed} missed")
