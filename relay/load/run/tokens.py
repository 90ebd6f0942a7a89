"""Gets the tokens of a load test from a file, a command, or the relay's database.

No error contains anything of what was read.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import trio

from relay.app import open_store
from relay.load.actors.network.endpoint import Endpoint
from relay.load.run.targets.target import PROCESS_STOP_TIMEOUT, stop
from relay.load.run.targets.target_reports import TargetFailed
from relay.load.run.targets.targets import Targets
from relay.load.scenario.scenario import Scenario, ScenarioTokens
from relay.model.access.identity import ANY_STREAM
from relay.settings.settings import Settings

LOAD_USER = "load@relay.invalid"
HOSTILE_USER = "load-hostile@relay.invalid"
MAX_TOKENS = 100_000
MAX_TOKENS_BYTES = 16 << 20
TOKENS_TIMEOUT = 60.0
"""Seconds that a command or a file, which may be a pipe, may take."""


async def find_endpoint(scenario: Scenario, targets: Targets) -> Endpoint:
    """Get the tokens for the targets; `TargetFailed`, `RelayError`."""
    wanted = scenario.tokens
    sessions: Sequence[str] = ()
    services: Sequence[str] = ()
    if wanted.file is not None:
        sessions = await _from_file(scenario.path(wanted.file))
    elif wanted.command is not None:
        sessions = await _from_command(wanted.command, scenario.folder)
    if wanted.service_file is not None:
        services = await _from_file(scenario.path(wanted.service_file))
    elif wanted.service_command is not None:
        services = await _from_command(wanted.service_command, scenario.folder)
    data_dir = targets.data_dir
    if wanted.data_dir is not None:
        data_dir = scenario.path(wanted.data_dir)
        if not os.access(data_dir, os.X_OK):  # a new database would be made there
            raise TargetFailed(f"there is no data folder {data_dir} that this user may enter")
    hostile: Sequence[str] = ()
    if data_dir is not None and not (sessions and services):
        made = await _make_tokens(data_dir, wanted)
        sessions, services, hostile = sessions or made[0], services or made[1], made[2]
    if not sessions:
        raise TargetFailed(
            "there are no tokens: say where they are with tokens.file, tokens.command"
            " or tokens.data_dir"
        )
    trust = targets.tls_verification
    return Endpoint(targets.urls, tuple(sessions), tuple(services), trust, tuple(hostile))


async def find_operator_token(scenario: Scenario, targets: Targets) -> str | None:
    """The token of a service that operates, to read figures; None if there is none."""
    wanted = scenario.tokens
    if wanted.operator_file is not None:
        return (await _from_file(scenario.path(wanted.operator_file)))[0]
    data_dir = targets.data_dir
    if wanted.data_dir is not None:
        data_dir = scenario.path(wanted.data_dir)
    if data_dir is None:
        return None
    async with open_store(Settings(data_dir=data_dir)) as store:
        name = f"load-{secrets.token_hex(4)}-figures"
        return await store.service_tokens.create(name, consume=[], alerts=False, operate=True)


async def _make_tokens(
    data_dir: Path, wanted: ScenarioTokens
) -> tuple[list[str], list[str], list[str]]:
    """Sessions, the token of a service, and the session of a hostile user."""
    async with open_store(Settings(data_dir=data_dir)) as store:
        lasts = timedelta(seconds=wanted.ttl)
        sessions = [
            await store.sessions.create(user_name(number % wanted.users), lasts)
            for number in range(wanted.sessions)
        ]
        hostile = await store.sessions.create(HOSTILE_USER, lasts)
        name = f"load-{secrets.token_hex(4)}"
        service = await store.service_tokens.create(
            name, consume=[ANY_STREAM], alerts=True, operate=False
        )
        return sessions, [service], [hostile]


def user_name(number: int) -> str:
    """One of the users of a load test."""
    return LOAD_USER if number == 0 else LOAD_USER.replace("@", f"-{number}@")


async def _from_file(path: Path) -> list[str]:
    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(MAX_TOKENS_BYTES + 1)

    try:
        with trio.move_on_after(TOKENS_TIMEOUT):  # it may be a pipe
            data = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
            return _tokens(data, str(path))
    except OSError as error:
        raise TargetFailed(f"cannot read the tokens in {path}: {error.strerror}") from None
    raise TargetFailed(f"no tokens came from {path} in {TOKENS_TIMEOUT:g} s")


async def _from_command(command: Sequence[str], folder: Path) -> list[str]:
    """Run a command in the scenario's folder; its output has a token on each line."""
    try:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=folder
        )
    except OSError as error:
        raise TargetFailed(f"cannot run {command[0]} for tokens: {error.strerror}") from None
    assert process.stdout is not None
    output = b""
    try:
        with trio.move_on_after(TOKENS_TIMEOUT) as waiting:
            async for data in process.stdout:
                output += data
                if len(output) > MAX_TOKENS_BYTES:
                    return _tokens(output, command[0])
            await process.wait()
    finally:
        with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
            await stop(process)
    if waiting.cancelled_caught:
        raise TargetFailed(f"no tokens came from {command[0]} in {TOKENS_TIMEOUT:g} s")
    if process.returncode:
        raise TargetFailed(
            f"{command[0]}, which should print tokens, ended with {process.returncode}"
        )
    return _tokens(output, command[0])


def _tokens(data: bytes, source: str) -> list[str]:
    if len(data) > MAX_TOKENS_BYTES:
        raise TargetFailed(f"{source} gives more than {MAX_TOKENS_BYTES >> 20} MiB of tokens")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise TargetFailed(f"the tokens from {source} are not text") from None
    tokens = [line.strip() for line in lines if line.strip()][:MAX_TOKENS]
    if not tokens:
        raise TargetFailed(f"no token came from {source}")
    return tokens
