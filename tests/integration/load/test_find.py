"""`relay load find` as people run it, against a real relay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.agents import start_agent
from tests.integration.load_command import (
    SHORT,
    UNCHECKED,
    against,
    assert_nothing_is_left,
    finish,
    start,
    until_line,
)
from tests.integration.narrow_database import open_narrow_database
from tests.integration.relay_process import RelayProcess, start_relay

QUICKLY = ("--resolution", "100", "--repeat", "1", "--steps", "3")
CROWD = """
name = "crowd"
duration = "3s"
lateness = "any"
[phones.doors]
fps = 30
frames = "1KiB"
[viewers.homes]
watch = "doors"
count = 128
"""
ARRIVALS = """
name = "arrivals"
duration = "3s"
lateness = "any"
[phones.doors]
count = 16
fps = 1
frames = "1KiB"
"""
TIMELESS = "errors < 1"
"""A check that holds on any machine, however busy."""


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


def find(folder: Path, scenario: str, *options: str) -> tuple[int, str, str]:
    return finish(start(folder, "find", scenario, *options))


@pytest.mark.slow
def test_a_limit_is_searched_up_to_where_it_may(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    scenario = against(relay, accounts, tmp_path)
    report, lines = tmp_path / "limit.html", tmp_path / "limit.json"
    options = ("--raise", "viewers", "--until", TIMELESS, "--to", "6", "--repeat", "1")
    files = ("--report", str(report), "--json", str(lines))
    code, output, errors = find(folder, scenario, *options, *files)
    assert (code, errors) == (0, ""), output
    assert "limit: at least 6 viewers, the most that was tried (--to)" in output
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [each.get("level") for each in read] == [4, 6, None]
    received = [each["result"]["total"]["counts"]["received"] for each in read[:2]]
    assert received[1] > received[0]
    assert [each["result"]["groups"]["fast"]["counts"]["auth.done"] for each in read[:2]] == [3, 4]
    assert report.read_text().count("<svg") >= 2


@pytest.mark.slow
def test_a_limit_is_found_with_a_relay_of_its_own_and_nothing_is_left(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "mine.toml").write_text(SHORT)
    options = ("--raise", "phones", "--until", "doors.auth.done < 6", "--repeat", "1")
    bounds = ("--from", "4", "--to", "8", "--resolution", "40")
    code, output, errors = find(folder, str(tmp_path / "mine.toml"), *options, *bounds)
    # All cores are busy where other tests run.
    assert code in {0, 5}, output
    assert errors == ""
    assert "4 phones" in output
    assert "6 failed doors.auth.done < 6 (6)" in output
    assert "what gave way first: " in output
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_a_relay_that_ends_during_a_search_ends_it_with_what_was_known(
    database_url: str, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        scenario = against(relay, accounts, tmp_path, UNCHECKED)
        Path(scenario).write_text(Path(scenario).read_text().replace("ledger = true", ""))
        options = ("--raise", "viewers", "--until", "auth.done > 0", "--to", "64")
        search = start(folder, "find", scenario, *options)
        said = until_line(search, "run 2: 8 viewers")
    code, output, errors = finish(search)
    assert (code, errors) == (3, ""), said + output
    assert "limit: " in output
    assert "no limit" not in output
    assert "says nothing: no client was admitted: " in output


@pytest.mark.slow
def test_agents_make_the_load_of_a_search_and_their_caps_are_limits_of_the_generator(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    scenario = against(relay, accounts, tmp_path)
    key = tmp_path / "coordinator.pem"
    target = relay.url.removeprefix("http://")
    with start_agent(key, target, "--max-connections", "20") as agent:
        options = ("--raise", "viewers", "--until", TIMELESS, "--resolution", "30")
        machines = ("--agents", agent.address, "--key", str(key), "--repeat", "1")
        code, output, errors = find(folder, scenario, *options, *machines)
    assert (code, errors) == (5, ""), output
    assert "are more than its --max-connections of 20" in output
    assert "what gave way first: the generator, not the relay" in output


def find_cause(folder: Path, scenario: str, resource: str, *options: str) -> str:
    """What a search says of a resource that gave way: before all others, but for a machine that is
    busy with other tests, and what it takes from the load and from the relay."""
    lines = Path(scenario).with_name("found.json")
    code, output, errors = find(folder, scenario, *options, *QUICKLY, "--json", str(lines))
    assert code in {0, 1, 5}, output
    assert errors == ""
    cause = json.loads(lines.read_text().splitlines()[-1])["cause"]
    assert cause is not None, output
    named: list[str] = [f"{cause['resource']}: {cause['evidence']}", *cause["others"]]
    found = [each.startswith(f"{resource}: ") for each in named]
    assert any(found), output
    before = {each.partition(": ")[0] for each in named[: found.index(True)]}
    assert before <= {"generator", "machine", "relay"}, output
    return named[found.index(True)]


@contextmanager
def beside_others_on_a_core(pid: int) -> Iterator[None]:
    """Leave a process a small part of one core, and the other cores to everybody else."""
    core = {min(os.sched_getaffinity(0))}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for each in (pid, *(process.pid for process in busy)):
            os.sched_setaffinity(each, core)
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, pid) + 5))
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="platform: only Linux says what had to wait")
def test_a_relay_that_gets_a_part_of_a_core_gives_way_and_not_the_link(
    database_url: str, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        scenario = against(relay, accounts, tmp_path, CROWD)
        checks = ("--until", "homes.frame_age.p99 < 500ms", "--until", "homes.missed < 10%")
        with beside_others_on_a_core(relay.pid):
            said = find_cause(folder, scenario, "relay", "--raise", "viewers", *checks)
    assert "of a core, and waited for one for" in said


@pytest.mark.slow
def test_a_database_that_takes_longer_for_more_tokens_gives_way(
    database_url: str, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    with (
        open_narrow_database(database_url) as database,
        start_relay("--profile", "load", database_url=database.url) as relay,
    ):
        scenario = against(relay, accounts, tmp_path, ARRIVALS)
        (tmp_path / "tokens").write_text("\n".join(accounts.sessions(["ann"] * 128)))
        database.rate = 5_000
        checks = ("--until", "connect_time.p99 < 1s")
        said = find_cause(folder, scenario, "database", "--raise", "phones", *checks)
        database.rate = 1e9
    assert "a token was verified in" in said
