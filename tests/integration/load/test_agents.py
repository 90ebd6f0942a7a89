"""`relay load` with real agents against a real relay."""

from __future__ import annotations

import csv
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relay.load.measures.results import read_result
from tests.integration.accounts import Accounts
from tests.integration.agents import agents_of, start_agents
from tests.integration.load_command import PATIENCE, SHORT, UNCHECKED, against, finish, start
from tests.integration.load_command import until_line as said_by
from tests.integration.relay_process import RelayProcess, start_relay

LONG = UNCHECKED.replace('"1s"', '"60s"', 1)


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


def address(relay: RelayProcess) -> str:
    return relay.url.removeprefix("http://")


def parents() -> dict[int, int]:
    """The parent of each process that has not ended."""
    shown = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], check=True, capture_output=True, text=True
    )
    rows = (line.split() for line in shown.stdout.splitlines())
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def playing(agent: int) -> set[int]:
    """The processes of an agent."""
    return {pid for pid, parent in parents().items() if parent == agent}


def wait_until_gone(processes: set[int]) -> None:
    end = time.monotonic() + PATIENCE
    while processes & parents().keys() and time.monotonic() < end:
        threading.Event().wait(0.1)
    assert processes & parents().keys() == set()


@pytest.mark.slow
def test_two_agents_play_one_scenario_whose_books_agree_and_are_named_in_each_report(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    key, lines, rows = tmp_path / "key.pem", tmp_path / "r.json", tmp_path / "r.csv"
    junit, report = tmp_path / "r.xml", tmp_path / "r.html"
    scenario = against(relay, accounts, tmp_path, SHORT)
    files = ("--json", lines, "--csv", rows, "--junit", junit, "--report", report)
    with start_agents(key, address(relay), ("--workers", "2"), ()) as agents:
        options = (*agents_of(key, agents), *map(str, files))
        code, output, errors = finish(start(folder, scenario, *options))
        assert (code, errors) == (0, ""), output
        # an agent is free again, and refuses a target that it was not started for
        other = f"ws://localhost:{address(relay).rpartition(':')[2]}"
        again = (*agents_of(key, agents[:1]), "--target", other)
        code, output, _ = finish(start(folder, scenario, *again))
        assert code == 3
        assert f"could not run: {agents[0].name}: " in output
        assert "is not a --target of this agent" in output
    result, seconds = read_result(lines)
    names = [each.name for each in agents]
    assert list(result.generators) == names
    assert [each.processes for each in result.generators.values()] == [2, 1]
    assert result.workers == 3
    assert result.groups["fast"].counts["connect.done"] == 3
    assert result.total.counts.get("lost", 0) == 0
    sent = sum(each.sent for each in result.generators.values())
    assert sent == result.groups["doors"].counts["sent"]
    assert all(0 < (each.clock_error or 0) < 1 for each in result.generators.values())
    assert all(list(each.generators) == names for each in seconds)
    with rows.open(newline="") as file:
        groups = {row["group"] for row in csv.DictReader(file)}
    for name in names:
        assert f"generator {name}" in groups
        assert f"generator.{name}.clock_error" in junit.read_text()
        assert name in report.read_text()


@pytest.mark.slow
def test_an_agent_that_dies_fails_the_run_with_its_name(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    key, scenario = tmp_path / "key.pem", against(relay, accounts, tmp_path, LONG)
    with start_agents(key, address(relay), (), ()) as agents:
        run = start(folder, scenario, *agents_of(key, agents))
        said_by(run, "  1 s")
        load = set().union(*(playing(agent.process.pid) for agent in agents))
        assert len(load) == 2
        agents[1].process.kill()
        code, output, _ = finish(run)
        assert code == 3
        assert f"could not run: {agents[1].name} ended too early" in output
        wait_until_gone(load)


@pytest.mark.slow
def test_the_load_of_agents_ends_with_their_coordinator_however_that_ends(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    key, scenario = tmp_path / "key.pem", against(relay, accounts, tmp_path, LONG)
    with start_agents(key, address(relay), ()) as agents:
        run = start(folder, scenario, *agents_of(key, agents))
        said_by(run, "  1 s")
        load = playing(agents[0].process.pid)
        run.send_signal(signal.SIGINT)
        code, output, _ = finish(run)
        assert code == 130
        assert "interrupted: these are the figures so far" in output
        wait_until_gone(load)
        for end in (signal.SIGKILL, signal.SIGSTOP):
            run = start(folder, scenario, *agents_of(key, agents))
            assert run.stdout is not None
            assert run.stderr is not None
            with closing(run.stdout), closing(run.stderr):
                said_by(run, "  1 s")
                load = playing(agents[0].process.pid)
                assert load
                run.send_signal(end)
                wait_until_gone(load)
                run.kill()
                run.wait()


@pytest.mark.slow
def test_a_script_is_played_by_agents_that_were_told_its_digest(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    key = tmp_path / "key.pem"
    (tmp_path / "actors.py").write_text(
        "async def talker(actor):\n"
        "    async with actor.connect() as client:\n"
        "        await client.register(actor.stream(f'door-{actor.number}'))\n"
        "        await client.send_frame(actor.frame(b'a picture'))\n"
        "ACTORS = {'talker': (talker, 4)}\n"
    )
    source = 'script = "actors.py"\nlateness = "5s"\nduration = "1s"\n'
    scenario = against(relay, accounts, tmp_path, source)
    with start_agents(key, address(relay), ()) as agents:
        code, output, _ = finish(start(folder, scenario, *agents_of(key, agents)))
    assert code == 3
    words = "".join(output.split())
    digest = words.partition("--allow-script")[2][:64]
    allow = ("--allow-script", digest)
    with start_agents(key, address(relay), allow, allow) as agents:
        lines = tmp_path / "r.json"
        options = (*agents_of(key, agents), "--json", str(lines))
        code, output, _ = finish(start(folder, scenario, *options))
    assert code == 0, output
    assert read_result(lines)[0].groups["talker"].counts["scripts.done"] == 4
