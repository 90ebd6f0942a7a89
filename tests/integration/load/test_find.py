"""`relay load find` as people run it, against a real relay."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from tests.integration.relay_process import RelayProcess, start_relay

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
