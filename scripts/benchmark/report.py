"""Results as a table, as JSON and as plots."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import msgspec
from measures import Measure, measures_of, quantile
from rich.console import Console
from rich.table import Table
from workloads import Result, Slow, Workload

mpl.use("agg")
from matplotlib import pyplot as plt

Outcomes = dict[str, dict[str, list[Result]]]
"""By workload and server, one result for each round."""

OURS = "relay"
FIRST = (f"{OURS}-before", "floor", "bun")
"""What relay is compared with first."""


def show(console: Console, name: str, workload: Workload, results: dict[str, list[Result]]) -> None:
    if isinstance(workload, Slow):
        _show_slow(console, name, workload, results)
    else:
        _show_cost(console, name, workload, results)


def _show_cost(
    console: Console, name: str, workload: Workload, results: dict[str, list[Result]]
) -> None:
    table = Table(title=name, title_justify="left")
    table.add_column("server")
    measures = measures_of(workload)
    for measure in measures:
        table.add_column(measure.heading, justify="right")
    for server, rounds in results.items():
        table.add_row(server, *(measure.show(rounds) for measure in measures))
    console.print(table)
    _show_ratios(console, measures[0], results)


def _show_ratios(console: Console, measure: Measure, results: dict[str, list[Result]]) -> None:
    """What relay needs relative to each other server; the floor stands beside Bun."""
    ours = [server for server in results if server.startswith(OURS)]
    others = [server for server in results if server not in ours]
    others = [server for server in FIRST if server in results] + [
        server for server in others if server not in FIRST
    ]
    if not ours or not others:
        return
    table = Table(box=None)
    table.add_column(f"{measure.heading}: ÷")
    for other in others:
        table.add_column(other, justify="right")
    for server in ours:
        table.add_row(
            server,
            *(
                "" if other == server else _ratio(measure.of, results[server], results[other])
                for other in others
            ),
        )
    console.print(table)


def _ratio(
    measured: Callable[[Result], float], ours: Sequence[Result], theirs: Sequence[Result]
) -> str:
    """What one needs relative to another, round by round: the median, the least and the most."""
    pairs = zip(map(measured, ours), map(measured, theirs), strict=False)
    each = [a / b for a, b in pairs if b]
    return f"{median(each):.2f} ({min(each):.2f}-{max(each):.2f})" if each else ""


def _show_slow(
    console: Console, name: str, workload: Slow, results: dict[str, list[Result]]
) -> None:
    table = Table(title=f"{name}: {workload.floor * 1000:.0f} ms on the wire is 1 x")
    table.add_column("server")
    headings = ["age p50", "p99", "first third", "last third", "fps", "relay is fresher by"]
    for heading in [*headings, "healthy p99 ms alone", "beside the slow one", "MiB"]:
        table.add_column(heading, justify="right")
    ours = _age(results[OURS], workload) if OURS in results else None
    for server, (result, *_) in results.items():
        if not result.ages:
            table.add_row(server, "no frame arrived")
            continue
        end = max(result.times)
        by_time = list(zip(result.times, result.ages, strict=True))
        first = [age for at, age in by_time if at < end / 3]
        last = [age for at, age in by_time if at > end * 2 / 3]
        table.add_row(
            server,
            *(
                f"{quantile(ages, part) / workload.floor:.2f} x"
                for ages, part in (
                    (result.ages, 0.5),
                    (result.ages, 0.99),
                    (first, 0.5),
                    (last, 0.5),
                )
            ),
            f"{len(result.ages) / end:.1f}",
            "" if server == OURS or ours is None else f"{_age([result], workload) / ours:.1f} x",
            f"{quantile(result.healthy_alone, 0.99) * 1000:.1f}",
            f"{quantile(result.healthy_beside, 0.99) * 1000:.1f}",
            f"{result.resident / 2**20:.0f}",
        )
    console.print(table)


def _age(rounds: Sequence[Result], workload: Slow) -> float:
    return quantile(rounds[0].ages, 0.5) / workload.floor


def write(outcomes: Outcomes, builds: Mapping[str, str], path: Path) -> None:
    """Everything but the single ages, which are many."""
    figures = {
        "machine": platform.platform(),
        "python": builds,
        "workloads": {
            name: {
                server: [_summary(result) for result in rounds]
                for server, rounds in results.items()
            }
            for name, results in outcomes.items()
        },
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))


def _summary(result: Result) -> dict[str, object]:
    summary = msgspec.to_builtins(result)
    for name in ("ages", "healthy_alone", "healthy_beside"):
        ages = summary.pop(name)
        summary[name] = {f"p{part}": quantile(ages, part / 100) for part in (50, 90, 99)}
    del summary["times"]
    return {**summary, "cost": result.cost}


def draw(outcomes: Outcomes, workloads: Mapping[str, Workload], path: Path) -> None:
    """Bars of CPU for each workload; ages over time where there is a slow viewer."""
    figure, axes = plt.subplots(
        len(outcomes), 1, figsize=(9, 2.6 * len(outcomes)), squeeze=False, layout="constrained"
    )
    for axis, (name, results) in zip(axes[:, 0], outcomes.items(), strict=True):
        if any(result.times for rounds in results.values() for result in rounds):
            for server, (result, *_) in results.items():
                axis.plot(result.times, result.ages, label=server)
            axis.set(title=f"{name}: age of a slow viewer's frames", xlabel="s", ylabel="s")
            axis.set_yscale("log")
            axis.legend(fontsize="small")
            continue
        measure = measures_of(workloads[name])[0]
        costs = [[measure.of(result) for result in rounds] for rounds in results.values()]
        middle = [median(each) for each in costs]
        error = [
            [m - min(each) for m, each in zip(middle, costs, strict=True)],
            [max(each) - m for m, each in zip(middle, costs, strict=True)],
        ]
        colours = ["C0" if server.startswith(OURS) else "C7" for server in results]
        axis.barh(list(results), middle, xerr=error, color=colours)
        axis.invert_yaxis()
        axis.set(title=name, xlabel=measure.heading)
    figure.savefig(path, dpi=120)
    plt.close(figure)
