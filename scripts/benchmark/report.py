"""Results as a table, as JSON and as plots."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import msgspec
from rich.console import Console
from rich.table import Table
from workloads import Result, Slow, Workload

mpl.use("agg")
from matplotlib import pyplot as plt

Outcomes = dict[str, dict[str, list[Result]]]
"""By workload and server, one result for each round."""

OURS = "relay"
BUSY = 0.95
"""Of a core: a generator above that may have been the bottleneck."""


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def ratios(ours: Sequence[Result], theirs: Sequence[Result]) -> list[float]:
    """What relay needs relative to another, round by round."""
    return [a.cost / b.cost for a, b in zip(ours, theirs, strict=False) if b.cost]


def show(console: Console, name: str, workload: Workload, results: dict[str, list[Result]]) -> None:
    if isinstance(workload, Slow):
        _show_slow(console, name, workload, results)
    else:
        _show_cost(console, name, results)


def _show_cost(console: Console, name: str, results: dict[str, list[Result]]) -> None:
    table = Table(title=name, title_justify="left")
    table.add_column("server")
    headings = [
        "CPU µs a frame",
        "user",
        "system",
        "main thread",
        "relay ÷ it",
        "least to most",
        "frames/s",
    ]
    memory = ["MiB", "KiB a frame"]
    for heading in [*headings, "age p50 ms", "p99", *memory, "server busy", "clients busy"]:
        table.add_column(heading, justify="right")
    for server, rounds in results.items():
        ages = [age for result in rounds for age in result.ages]
        clients = max(result.generator / result.seconds for result in rounds)
        relative = [] if server == OURS else ratios(results.get(OURS, []), rounds)
        table.add_row(
            server,
            f"{median(result.cost for result in rounds) * 1e6:.1f}",
            f"{median(r.user / (r.frames or 1) for r in rounds) * 1e6:.1f}",
            f"{median(r.system / (r.frames or 1) for r in rounds) * 1e6:.1f}",
            f"{median(r.main_thread / (r.frames or 1) for r in rounds) * 1e6:.1f}",
            f"{median(relative):.2f} x" if relative else "",
            f"{min(relative):.2f} to {max(relative):.2f}" if relative else "",
            f"{median(result.frames / result.seconds for result in rounds):,.0f}",
            f"{quantile(ages, 0.5) * 1000:.1f}",
            f"{quantile(ages, 0.99) * 1000:.1f}",
            f"{median(result.resident for result in rounds) / 2**20:.0f}",
            f"{median(r.grown / (r.frames or 1) for r in rounds) / 2**10:.1f}",
            f"{median((r.user + r.system) / r.seconds for r in rounds):.0%}",
            f"{clients:.0%}" + ("!" if clients > BUSY else ""),
        )
    console.print(table)


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


def write(outcomes: Outcomes, path: Path) -> None:
    """Everything but the single ages, which are many."""
    figures = {
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
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


def draw(outcomes: Outcomes, path: Path) -> None:
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
        costs = [[result.cost * 1e6 for result in rounds] for rounds in results.values()]
        middle = [median(each) for each in costs]
        error = [
            [m - min(each) for m, each in zip(middle, costs, strict=True)],
            [max(each) - m for m, each in zip(middle, costs, strict=True)],
        ]
        colours = ["C0" if server.startswith(OURS) else "C7" for server in results]
        axis.barh(list(results), middle, xerr=error, color=colours)
        axis.invert_yaxis()
        axis.set(title=name, xlabel="µs of the server's CPU for each frame received")
    figure.savefig(path, dpi=120)
    plt.close(figure)
