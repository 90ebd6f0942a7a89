"""All relays under test: they use one database, if there are several."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from relay.concurrency.exception_groups import leaves
from relay.load.actors.network.endpoint import TlsVerification, is_encrypted
from relay.load.measures.process_usage import ProcessUsage
from relay.load.run.targets.target import (
    PROCESS_STOP_TIMEOUT,
    RelayCommand,
    StartedRelay,
    Target,
    checked_url,
    end_reaped,
    find_tls_verification,
    first_lines,
    last_line,
    open_reaped,
)
from relay.load.run.targets.target_reports import TargetFailed, TargetReports
from relay.load.scenario.scenario import ONLY_TARGET, Scenario
from relay.outgoing.http_client import HttpClient, open_http_client
from relay.process.temporary_folder import open_temporary_folder

POLL_INTERVAL = 1.0
PROCESSES_OF_NODE = 8
"""Processes of each started relay for which its PostgreSQL has connections."""
ALWAYS = ("--profile", "load", "--log-level", "error")


@define(eq=False)
class Targets:
    """The relays under test, by name."""

    by_name: dict[str, Target]
    data_dir: Path | None = None
    """Of the database that was started for the run."""
    tls_verification: TlsVerification = field(factory=TlsVerification)

    @property
    def urls(self) -> dict[str, str]:
        return {name: each.url for name, each in self.by_name.items()}

    def usage(self) -> dict[str, ProcessUsage]:
        """Of each target of which it is known."""
        found = {name: each.usage() for name, each in self.by_name.items()}
        return {name: usage for name, usage in found.items() if usage is not None}

    def verification(self) -> float | None:
        """Mean seconds in which the slowest target verified a token, as far as is known."""
        found = (each.verification for each in self.by_name.values())
        return max((each for each in found if each is not None), default=None)

    def unverified(self) -> float:
        """The part of its tokens that the worst target could not verify, as far as is known."""
        return max((each.unverified for each in self.by_name.values()), default=0.0)

    async def read_once(self) -> None:
        """Read what all targets say now; those that do not answer are left out."""
        async with trio.open_nursery() as nursery:
            for each in self.by_name.values():
                nursery.start_soon(each.poll)

    async def poll(self) -> None:
        """Read what the targets say, each second, if it is of use; never returns else."""
        async with trio.open_nursery() as nursery:
            for each in self.by_name.values():
                nursery.start_soon(self._poll, each)

    async def _poll(self, target: Target) -> None:
        await target.poll()
        # The usage of a started process is known without it.
        while len(self.by_name) > 1 or target.command is None or target.has_workers:
            await trio.sleep(POLL_INTERVAL)
            await target.poll()


@asynccontextmanager
async def open_targets(scenario: Scenario, *, is_mine: bool) -> AsyncIterator[Targets]:
    """Open the targets of a scenario. Relays that were started end with the block."""
    wanted = scenario.targets_by_name
    if not next(iter(wanted.values())).start:
        urls = {}
        for name, each in wanted.items():
            where = "target.url" if name == ONLY_TARGET else f"targets.{name}.url"
            assert each.url is not None
            urls[name] = checked_url(each.url, where, is_mine=is_mine)
        trust = find_tls_verification(scenario)
        encrypted = any(map(is_encrypted, urls.values()))
        async with open_http_client(trust.context() if encrypted else None) as http:
            targets = {
                name: Target(name, url, TargetReports(url, name, http))
                for name, url in urls.items()
            }
            yield Targets(targets, tls_verification=trust)
        return
    trust = TlsVerification(insecure=True)  # we start them ourselves
    with open_temporary_folder("relay-load-", ignore_cleanup_errors=True) as folder:
        async with open_http_client(trust.context()) as http:
            settings = {name: each.settings for name, each in wanted.items()}
            open_started = _open_one if len(settings) == 1 else _open_cluster
            async with open_started(folder, settings, http) as targets:
                yield Targets(targets, folder / "data", trust)


@asynccontextmanager
async def _open_one(
    folder: Path, settings: Mapping[str, Sequence[str]], http: HttpClient
) -> AsyncIterator[dict[str, Target]]:
    """Start a relay with a database of its own."""
    ((name, given),) = settings.items()
    # The reaper removes the folder as well, if this process cannot.
    command = RelayCommand(
        arguments=("--data-dir", str(folder / "data"), *ALWAYS, *given),
        log=folder / "log",
        remove=str(folder),
    )
    async with _until_ended() as targets:
        targets[name] = await _start(name, command, http)
        yield targets


@asynccontextmanager
async def _open_cluster(
    folder: Path, settings: Mapping[str, Sequence[str]], http: HttpClient
) -> AsyncIterator[dict[str, Target]]:
    """Start a PostgreSQL, and several relays that use it."""
    processes = len(settings) * PROCESSES_OF_NODE
    async with _open_database(folder, processes) as database_url, _until_ended() as targets:

        async def start(name: str, given: Sequence[str]) -> None:
            command = RelayCommand(
                arguments=("--cluster-bind", "127.0.0.1:0", *ALWAYS, *given),
                log=folder / f"log-{name}",
                environment={"RELAY_DATABASE_URL": database_url},
            )
            targets[name] = await _start(name, command, http)

        try:
            async with trio.open_nursery() as nursery:
                for name, given in settings.items():
                    nursery.start_soon(start, name, given)
        except* TargetFailed as errors:
            raise next(leaves(errors)) from None
        yield {name: targets[name] for name in settings}


async def _start(name: str, command: RelayCommand, http: HttpClient) -> Target:
    relay = await StartedRelay.start(command)
    url = relay.url.replace("http", "ws", 1)
    return Target(name, url, TargetReports(url, name, http), relay, command)


@asynccontextmanager
async def _until_ended() -> AsyncIterator[dict[str, Target]]:
    """Yield a place for targets whose relays end with the block."""
    targets: dict[str, Target] = {}
    try:
        yield targets
    finally:
        with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
            async with trio.open_nursery() as nursery:
                for each in targets.values():
                    if each.relay is not None:
                        nursery.start_soon(each.relay.stop)


@asynccontextmanager
async def _open_database(folder: Path, processes: int) -> AsyncIterator[str]:
    """Start a PostgreSQL in this folder, which is removed with it; yields its URL."""
    program = "relay.load.run.targets.shared_database"
    how = RelayCommand(arguments=(), log=folder / "log", remove=str(folder))
    process = await open_reaped(
        [sys.executable, "-P", "-m", program, str(folder / "data"), str(processes)], how
    )
    try:
        words = (await first_lines(process, 2)).split()
        if len(words) != 2:  # its process id and the URL
            raise TargetFailed(f"the database did not start: {last_line(how.log)}")
        yield words[1]
    finally:
        with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
            await end_reaped(process)
