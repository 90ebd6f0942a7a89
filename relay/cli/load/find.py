"""`relay load find`: the options of a search for the limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from relay.cli.grouped_help import GroupedOption
from relay.cli.load.agents import agent_options, read_agent_options
from relay.cli.load.database import check_database
from relay.cli.load.scenario import find_scenario, target_options

MAX_STEPS = 100
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def read_duration(_context: click.Context, _option: click.Parameter, value: str) -> float:
    """Seconds, from a time as scenarios write it."""
    from relay.load import units

    try:
        return units.positive_duration(value)
    except ValueError:
        raise click.BadParameter(
            f"expected a duration such as 90s or 10min, not {value!r}"
        ) from None


def search_option(*names: str, **settings: Any) -> Decorator:
    return click.option(*names, cls=GroupedOption, group="Search", show_default=True, **settings)


def result_option(*names: str, **settings: Any) -> Decorator:
    return click.option(*names, cls=GroupedOption, group="Results", **settings)


@click.command(name="find")
@click.argument("scenario", metavar="SCENARIO.toml")
@search_option(
    "--raise",
    "raised",
    required=True,
    metavar="viewers|fps|phones[.GROUP]",
    help="What there is more and more of, in all groups or in one.",
)
@search_option(
    "--until",
    multiple=True,
    metavar="CHECK",
    help="What must be kept, in place of the scenario's checks; several times for several.",
)
@search_option(
    "--from",
    "start",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Where to begin; what the scenario has, by default.",
)
@search_option(
    "--to",
    "most",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="The most to try; 64 times what the scenario has, by default.",
)
@search_option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    default=12,
    metavar="N",
    help="Loads to try at most, without the repetitions at the end.",
)
@search_option(
    "--resolution",
    type=click.FloatRange(min=0.1, max=100),
    default=10,
    metavar="PERCENT",
    help="How closely to find the limit.",
)
@search_option(
    "--repeat",
    "repeats",
    type=click.IntRange(1, 20),
    default=3,
    metavar="N",
    help="Runs at the limit that must keep the checks.",
)
@search_option(
    "--max-time",
    "max_seconds",
    callback=read_duration,
    default="10min",
    metavar="TIME",
    help="Begin no run that would end later than this.",
)
@search_option(
    "--at-least",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Fail if the limit is below this; for CI.",
)
@result_option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write an HTML report with plots.",
)
@result_option(
    "--github",
    is_flag=True,
    help="Print annotations for GitHub. Implied by GITHUB_ACTIONS=true.",
)
@result_option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a line of JSON for each run and one for what was found.",
)
@target_options
@agent_options
def find_command(  # noqa: PLR0917 (the parameters of the command)
    scenario: str,
    raised: str,
    until: tuple[str, ...],
    start: float | None,
    most: float | None,
    steps: int,
    resolution: float,
    repeats: int,
    max_seconds: float,
    at_least: float | None,
    report: Path | None,
    github: bool,
    json_file: Path | None,
    target_is_mine: bool,
    targets: tuple[str, ...],
    workers: int | None,
    agents: tuple[str, ...],
    key_file: Path | None,
) -> int:
    """Search for the largest load that keeps the checks, and say what gives way first.

    The load is doubled until a check fails, and the gap between is halved. At the limit, the run is
    repeated.

    The exit code is 0 if a limit was found, or nothing failed up to --to; 1 if no load keeps the
    checks, or the limit is below --at-least; 2 if the scenario or an option is invalid; 3 if it
    could not be run; 5 if the generator gives way before the relay, so that the limit is its own;
    and 130 if it was interrupted.

    \b
    Example:
      relay load find stadium --raise viewers --until 'frame_age.p99 < 200ms'
      relay load find mine.toml --raise fps.doors --from 5 --to 60 --report limit.html
      relay load find mine.toml --raise viewers --at-least 200 --json limit.json
    """
    from relay.load.finder import FindOptions, find_limit
    from relay.load.report.outputs import OutputFiles
    from relay.load.runner import ScenarioChoice

    choice = ScenarioChoice(
        path=find_scenario(scenario),
        workers=workers,
        targets=targets,
        target_is_mine=target_is_mine,
        agents=read_agent_options(agents, key_file, workers),
        check_database=check_database,
    )
    options = FindOptions(
        raised=raised,
        until=until,
        start=start,
        most=most,
        steps=steps,
        resolution=resolution / 100,
        repeats=repeats,
        max_seconds=max_seconds,
        at_least=at_least,
    )
    return find_limit(
        choice,
        options,
        OutputFiles(report=report, json=json_file),
        on_github=github or os.environ.get("GITHUB_ACTIONS") == "true",
    )
