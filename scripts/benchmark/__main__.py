"""Measures relay and other servers side by side, in turn, with the same clients.

    ./scripts/bench                            all workloads, five rounds: about an hour
    ./scripts/bench 50-viewers-16k slow        some of them
    ./scripts/bench --servers relay,bun --rounds 3 --seconds 3
    ./scripts/bench --before ../relay-1.0 --servers relay,relay-before joining
    ./scripts/bench --answers pongs,none,acks --servers relay,bun 50-viewers-16k

With --before another checkout of relay, in which `./scripts/test` has made a `.venv`, is measured
in turn with this one, so that a change shows though the machine's speed drifts.

--answers says what viewers send back; with several, workloads are run in each of these ways.
`pongs`, the default: a pong for each ping, since every browser answers by itself; servers that send
no pings get nothing. `none`: nothing at all, not even to pings. `acks`: pongs, and each frame is
acknowledged (to relay only, with the window of its own clients); with `pairs`, as these do, each
second one of frames that come less than 20 ms apart. What the clients spend on answers is shown
apart, and what the server spends on them is part of its CPU.

Of two cores one is the server's and one the clients'. Everything stays on loopback and ends by
itself. The figures go to the terminal, and with plots to the folder that --out names.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from shutil import which
from typing import TypeVar, get_args

import msgspec
from report import Outcomes, draw, show, write
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from servers import Server, base, nginx, python_build, running, servers, start
from workloads import (
    WORKLOADS,
    Answers,
    Base,
    Order,
    Result,
    Slow,
    Start,
    Workload,
    answering,
)

GENERATOR = Path(__file__).parent / "generator.py"
SLOW_SECONDS = 60.0
LEFT_OUT_OF_SLOW = {"relay-json", "relay-limits", "floor", "floor-pings"}
"""relay with other options differs in its CPU only, and the floor keeps nobody apart."""
OPEN_FILES = 8192
T = TypeVar("T")


def main() -> int:
    options = parse()
    console = Console(width=None if sys.stdout.isatty() else 130)
    chosen = choose(options.servers, servers(options.before), "server")
    workloads = {
        name: workload
        for chosen_name in choose(options.workloads, WORKLOADS, "workload")
        for answers in options.answers
        for name, workload in answering(chosen_name, answers).items()
    }
    for server in list(chosen.values()):
        if server.missing:
            console.print(f"left out: {server.missing}")
            del chosen[server.name]
    if which("nginx") is None:
        for name in [name for name, each in workloads.items() if front(each)]:
            console.print(f"left out: {name}: needs nginx")
            del workloads[name]
    builds = builds_of(chosen.values())
    for name, build in builds.items():
        console.print(f"{name}: {build}")
    outcomes: Outcomes = {name: {server: [] for server in chosen} for name in workloads}
    raise_open_file_limit()
    try:
        measure(workloads, chosen, options, outcomes, console)
    except KeyboardInterrupt:
        console.print("interrupted; what was measured so far:")
    outcomes = {
        name: measured
        for name, results in outcomes.items()
        if (measured := {server: rounds for server, rounds in results.items() if rounds})
    }
    for name, results in outcomes.items():
        show(console, name, workloads[name], results)
    if outcomes:
        options.out.mkdir(parents=True, exist_ok=True)
        write(outcomes, builds, options.out / "figures.json")
        draw(outcomes, workloads, options.out / "figures.png")
        console.print(f"written: {options.out}/figures.json, {options.out}/figures.png")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"workloads: {', '.join(WORKLOADS)}\nservers: {', '.join(servers())}",
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all")
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout of relay")
    parser.add_argument("--servers", type=lambda names: names.split(","), metavar="A,B")
    parser.add_argument(
        "--answers",
        type=ways_to_answer,
        default=["pongs"],
        metavar="A,B",
        help="of viewers: pongs, none, acks or pairs (pongs)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of slow ones there is one (5)")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (4)")
    parser.add_argument(
        "--slow-seconds", type=float, default=SLOW_SECONDS, help="with a slow viewer (60)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="(bench-results)")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.seconds, options.slow_seconds) <= 0:
        parser.error("--rounds, --seconds and --slow-seconds must be above 0")
    return options


def ways_to_answer(names: str) -> list[Answers]:
    ways: dict[str, Answers] = {name: name for name in get_args(Answers)}
    if unknown := set(names.split(",")) - set(ways):
        raise argparse.ArgumentTypeError(f"no such answers: {', '.join(sorted(unknown))}")
    return [ways[name] for name in dict.fromkeys(names.split(","))]


def choose(names: list[str] | None, known: dict[str, T], what: str) -> dict[str, T]:
    if unknown := set(names or ()) - set(known):
        raise SystemExit(f"no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in known if not names or name in names}


def builds_of(chosen: Iterable[Server]) -> dict[str, str]:
    """The Python of each relay, and that of the others."""
    relays = {server.name: python_build(server.python) for server in chosen if server.is_relay}
    return {**relays, "other Python servers": python_build(sys.executable)}


def raise_open_file_limit() -> None:
    """Each connection needs a file here and one in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def front(workload: Workload) -> bool:
    return isinstance(workload, Slow) and workload.front is not None


def ways_of_each(workloads: dict[str, Workload]) -> Iterator[list[tuple[str, Workload]]]:
    """All ways of each workload together, so that they take turns."""
    for _, ways in groupby(workloads.items(), key=lambda item: item[0].split()[0]):
        yield list(ways)


def measure(
    workloads: dict[str, Workload],
    chosen: dict[str, Server],
    options: argparse.Namespace,
    outcomes: Outcomes,
    console: Console,
) -> None:
    """Add the result of each run to the outcomes, so that they are there when it is cut off."""
    runs = [
        (name, workload, server)
        for ways in ways_of_each(workloads)
        for number in range(options.rounds)
        for name, workload in ways
        for server in list(chosen.values())[:: -1 if number % 2 else 1]
        if not (isinstance(workload, Slow) and (number or server.name in LEFT_OUT_OF_SLOW))
    ]
    columns = (
        TextColumn("{task.description:40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(runs))
        for name, workload, server in runs:
            progress.update(task, description=f"{name}: {server.name}")
            seconds = options.slow_seconds if isinstance(workload, Slow) else options.seconds
            result = run(workload, server, seconds)
            if isinstance(result, str):
                console.print(f"{name}: {server.name} failed: {result}")
            else:
                outcomes[name][server.name].append(result)
            progress.advance(task)


def run(workload: Workload, server: Server, seconds: float) -> Result | str:
    """One server under one workload; or why it failed."""
    server_cpu, generator_cpu = cpus()
    if isinstance(workload, Base):
        return base(server, workload, server_cpu)
    if isinstance(workload, Start):
        return start(server, workload, server_cpu)
    with ExitStack() as stack:
        target = stack.enter_context(running(server, server_cpu))
        port = stack.enter_context(nginx(target.port)) if front(workload) else target.port
        order = Order(
            workload,
            port,
            target.pid,
            seconds,
            server.binary,
            target.token,
            server.is_relay,
            generator_cpu,
        )
        done = subprocess.run(
            [sys.executable, str(GENERATOR)],
            input=msgspec.json.encode(order),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            return done.stderr.decode().strip() or f"exit code {done.returncode}"
        return msgspec.json.decode(done.stdout, type=Result)


def cpus() -> tuple[int | None, int | None]:
    """The CPU of the server and that of the clients, where processes can be bound to one."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


if __name__ == "__main__":
    sys.exit(main())
