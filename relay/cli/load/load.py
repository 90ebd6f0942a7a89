"""`relay load`: scenarios, their results, and recordings of streams."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from relay.cli.grouped_help import GroupedGroup, GroupedOption
from relay.cli.load.agents import agent_command, agent_options, keys_command, read_agent_options
from relay.cli.load.database import check_database
from relay.cli.load.find import find_command
from relay.cli.load.scenario import (
    EXAMPLES,
    check_misspelt,
    example_names,
    find_scenario,
    no_example,
    target_options,
)
from relay.errors import ConfigError


class LoadGroup(GroupedGroup):
    """`relay load SCENARIO.toml` and `relay load smoke` are short for `relay load run ...`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            check_misspelt(args[0], self.commands)
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
        "Run a scenario": ("examples", "run", "find"),
        "Read results": ("compare",),
        "Prepare": ("record", "links", "self-test"),
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
    Find its limit:       relay load find mine.toml --raise viewers
    Compare two runs:     relay load compare before.json mine.json
    """


load.add_command(find_command)
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
@target_options
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
    from relay.load.report.metrics.sinks import SinkAddresses
    from relay.load.report.outputs import OutputFiles
    from relay.load.runner import Baseline, ScenarioChoice, run_scenario

    choice = ScenarioChoice(
        path=find_scenario(scenario),
        workers=workers,
        targets=targets,
        abort_on_fail=abort_on_fail,
        target_is_mine=target_is_mine,
        agents=read_agent_options(agents, key_file, workers),
        check_database=check_database,
    )
    return run_scenario(
        choice,
        OutputFiles(report=report, json=json_file, csv=csv_file, junit=junit),
        baseline=None if baseline is None else Baseline(baseline, tolerance / 100),
        sinks=SinkAddresses.of(remote_write, otlp),
        on_github=github or os.environ.get("GITHUB_ACTIONS") == "true",
    )


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


@load.command(name="links")
@click.argument("name", required=False)
def links_command(name: str | None) -> None:
    """List the links that scenarios may name, or print one.

    \b
    Example:
      relay load links
      relay load links lte-drive > mine.link
    """
    from relay.load.report.words.links import link_lines
    from relay.load.scenario.link_trace import NAMED_LINKS, link_names
    from relay.load.suggestions import suggestion

    if name is None:
        for line in link_lines():
            click.echo(line)
        return
    if name not in link_names():
        raise ConfigError(f"there is no link named {name!r}{suggestion(name, link_names())}")
    click.echo((NAMED_LINKS / f"{name}.link").read_text(), nl=False)


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

    from relay.load.measures.analysis.comparison import check_ages, check_same_load, compare_runs
    from relay.load.report.compare import print_comparison
    from relay.load.runner import WORSE, read_run

    first, second = read_run(before), read_run(after)
    check_same_load(first, second.result.scenario, second.result.load)
    check_ages(first)
    check_ages(second)
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
@click.argument("stream", required=False)
@click.option(
    "--link",
    "is_link",
    is_flag=True,
    help="Record the link to the relay in place of a stream.",
    cls=GroupedOption,
    group="A link",
)
@click.option(
    "--max-rate",
    metavar="RATE",
    default="10Mbit/s",
    show_default=True,
    help="Send no faster than this.",
    cls=GroupedOption,
    group="A link",
)
@click.option(
    "--viewers",
    type=click.IntRange(1, 64),
    default=4,
    metavar="N",
    show_default=True,
    help="Get each frame so many times, for links that carry more down than up.",
    cls=GroupedOption,
    group="A link",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
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
    stream: str | None,
    is_link: bool,
    max_rate: str,
    viewers: int,
    output: Path,
    seconds: float | None,
    token_file: Any,
    sizes_only: bool,
    ca: str | None,
    insecure: bool,
) -> None:
    """Record a real stream for the phones of a scenario to replay, or a link for its clients.

    A link is recorded from where a real client would be: its rates in both directions, its round
    trip, and its holes, over time. That takes as much data as it carries.

    \b
    Example:
      relay load record ws://localhost:3000 front-door -o door.trace --token-file token.txt
      relay load record --link wss://relay.example -o train.link --seconds 120
    """
    import trio

    from relay.load.actors.network.endpoint import TlsVerification
    from relay.load.record import record

    token = token_file.read().strip() if token_file else os.environ.get("TOKEN", "")
    if not token:
        raise ConfigError("a token is needed: set TOKEN, or use --token-file FILE")
    verification = TlsVerification.of(ca, insecure=insecure)
    if is_link:
        if stream is not None or sizes_only:
            raise ConfigError("--link is for a link: it takes no stream and no --sizes-only")
        _record_link(url, token, output, verification, seconds, max_rate, viewers)
        return
    if stream is None:
        raise ConfigError("which stream? Name it behind the address, or use --link for the link")
    recording = partial(
        record,
        url,
        stream,
        token,
        output,
        seconds=seconds,
        with_data=not sizes_only,
        tls_verification=verification,
    )
    recorder = trio.run(recording)
    click.echo(f"{recorder.frames} frames in {output}, {recorder.missed} missed")


def _record_link(  # noqa: PLR0917 (the parameters of the command)
    url: str,
    token: str,
    output: Path,
    verification: Any,
    seconds: float | None,
    max_rate: str,
    viewers: int,
) -> None:
    from relay.load import units
    from relay.load.record_link import LinkRecordOptions, record_link
    from relay.load.report.words.links import recorded_lines

    try:
        rate = units.above_zero(units.bandwidth(max_rate))
    except ValueError:
        raise ConfigError(
            f"--max-rate: expected a bandwidth such as 500kbit/s or 10Mbit/s, not {max_rate!r}"
        ) from None
    options = LinkRecordOptions(seconds=seconds, max_rate=rate, viewers=viewers)
    click.echo(options.warning())
    recorded = record_link(url, token, output, options, verification)
    for line in recorded_lines(recorded.trace, recorded.doubts()):
        click.echo(line)
