"""What clients see while something around the relay fails, and how soon all is well again; a part
of `figures.py`, with the test tools.

Clients and faults are those of tests/integration/faults. Here a fault lasts as long as is asked
for, and relay has the settings that are on by default, but where its line names others.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from relay.postgres.embedded.folder import DataFolder
from tests.integration.accounts import Accounts
from tests.integration.faults import disk
from tests.integration.faults.clock import STEPPED, step
from tests.integration.faults.drain import MANY, drain
from tests.integration.faults.files import FEW_FILES, FILES, used_up
from tests.integration.faults.listen_queue import BACKLOG, SHORT_QUEUE, fill_queue
from tests.integration.faults.postgres import own_place, own_postgres, postmaster, slow_way
from tests.integration.faults.scene import Scene, open_scene
from tests.integration.faults.services import breakable_relay
from tests.integration.relay_process import RelayProcess, start_relay

Fault = Callable[[float], Awaitable[str]]
CALL = 8.0
"""Seconds that a fault lasts at most where somebody calls all the while, and gives up after 10."""


@contextmanager
def embedded(folder: Path, *flags: str) -> Iterator[tuple[RelayProcess, Accounts]]:
    """A relay with a Postgres of its own."""
    with start_relay(*flags, "--data-dir", str(folder)) as relay:
        url = DataFolder.open(folder).announced()
        assert url is not None
        yield relay, Accounts(url)


async def killed(seconds: float) -> str:
    async with own_postgres() as postgres:
        with start_relay(database_url=postgres.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                return (await scene.through(postgres.killed(), seconds=seconds)).describe()


async def stopped(seconds: float) -> str:
    async with own_postgres() as postgres:
        with start_relay(database_url=postgres.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                return (await scene.through(postgres.stopped(), seconds=seconds)).describe()


def slow(delay: float) -> Fault:
    async def measure(seconds: float) -> str:
        async with own_postgres() as postgres:
            with slow_way(postgres) as way, start_relay(database_url=way.url) as relay:
                async with open_scene(relay, Accounts(postgres.url)) as scene:
                    return (await scene.through(way.slow(delay), seconds=seconds)).describe()

    return measure


async def embedded_killed(_seconds: float) -> str:
    @asynccontextmanager
    async def kill() -> AsyncIterator[None]:
        os.kill(postmaster(place), signal.SIGKILL)
        yield

    with own_place() as place, embedded(place) as (relay, accounts):
        async with open_scene(relay, accounts) as scene:
            return (await scene.through(kill())).describe()


async def disk_full(seconds: float) -> str:
    if not disk.can_mount:
        return "not measured: only root mounts a small disk"
    with disk.small_disk() as small, embedded(small / "data") as (relay, accounts):
        async with open_scene(relay, accounts) as scene:
            scene.padding = disk.PADDING
            return (await scene.through(disk.full(small), seconds=seconds)).describe()


async def no_writing(seconds: float) -> str:
    with own_place() as place:
        limited = disk.Limited.make(place.parent)
        with embedded(place, "--postgres-bin", str(limited.folder)) as (relay, accounts):
            async with open_scene(relay, accounts) as scene:
                return (await scene.through(limited.unable(place), seconds=seconds)).describe()


async def listen_queue(_seconds: float) -> str:
    async with own_postgres() as postgres:
        accounts = Accounts(postgres.url)
        with start_relay(command=SHORT_QUEUE, database_url=postgres.url) as relay:
            async with open_scene(relay, accounts) as scene:
                queued = await fill_queue(scene, [scene.token] * 5 * BACKLOG, seconds=1)
    return (
        f"{5 * BACKLOG} calls where {BACKLOG} can wait, none taken for 1 s: all were in"
        f" {queued.all_in:.2f} s after that; frames went on after {queued.frame_again:.2f} s"
    )


async def files(seconds: float) -> str:
    seconds = min(seconds, CALL)
    async with own_postgres() as postgres:
        flags = ("--auth-timeout", "3600")
        with start_relay(*flags, command=FEW_FILES, database_url=postgres.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                return f"{FILES} files; {await _wait_for_room(relay, scene, seconds)}"


async def _wait_for_room(relay: RelayProcess, scene: Scene, seconds: float) -> str:
    answers: list[str] = []
    over = came = 0.0

    async def come() -> None:
        nonlocal came
        answers.append(await scene.come())
        came = trio.current_time()

    async with trio.open_nursery() as nursery:
        async with used_up(relay):
            nursery.start_soon(come)
            end = trio.current_time() + seconds
            while trio.current_time() < end:
                answers += [await scene.send_alert(), await scene.renew()]
                await trio.sleep(1)
        over = trio.current_time()
    counts = " ".join(f"{answer} ({answers.count(answer)})" for answer in dict.fromkeys(answers))
    return (
        f"{scene.received} frames, none missing, {scene.longest_gap * 1000:.0f} ms between two at"
        f" most; answers: {counts}; who called meanwhile was in {came - over:.2f} s after there was"
        " room"
    )


async def clock(_seconds: float) -> str:
    async with own_postgres() as postgres:
        with start_relay(command=STEPPED, database_url=postgres.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                for hours in (1, -1, -1):
                    await step(relay, hours)
                    await trio.sleep(1)
                    await scene.frames_go_on()
                endings = (await relay.stats())["endings"]
                ended = sum(number for name, number in endings.items() if name != "http_answered")
                gap = f"{scene.longest_gap * 1000:.0f} ms between two frames at most"
                return f"an hour forward, and twice back: {gap}, {ended} connections ended"


async def stop(_seconds: float) -> str:
    clients, silent = 1000, 100
    async with own_postgres() as postgres:
        with start_relay(*MANY, database_url=postgres.url) as relay:
            drained = await drain(relay, Accounts(postgres.url), clients, silent)
    return (
        f"{clients} clients, of which {silent} do not read: {drained.told} were told, the last"
        f" after {drained.last_told:.2f} s; it ended after {drained.ended:.2f} s with"
        f" {drained.exit_code}"
    )


def service(fault: str) -> Fault:
    async def measure(_seconds: float) -> str:
        async with own_postgres() as postgres:
            with breakable_relay(postgres.url) as faults:
                async with open_scene(faults.relay, Accounts(postgres.url)) as scene:
                    seen = await scene.through(faults.there_is(fault), seconds=3)
        return f"(with 1 s for a turn) {seen.describe()}"

    return measure


FAULTS: Mapping[str, Fault] = {
    "killed": killed,
    "stopped": stopped,
    "slow": slow(1),
    "very-slow": slow(5),
    "embedded-killed": embedded_killed,
    "disk-full": disk_full,
    "no-writing": no_writing,
    "listen-queue": listen_queue,
    "files": files,
    "clock": clock,
    "stop": stop,
    "service-crashes": service("crashes"),
    "service-hangs": service("hangs"),
}


def faults(names: list[str], seconds: float) -> None:
    """Measure each, and print it."""
    if unknown := set(names) - set(FAULTS):
        known = ", ".join(FAULTS)
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}; there are {known}")
    for name in names or FAULTS:
        print(f"fault: {name}", flush=True)
        print(f"  {trio.run(FAULTS[name], seconds)}", flush=True)
