"""The recipes of docs/load-testing.md for other load testers, as the page prints them: they send
frames to a real relay and receive them, and the same scenario of `relay load` is beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.relay_process import PROJECT, RelayProcess, start_relay

PAGE = (PROJECT / "docs" / "load-testing.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Beside other tools\n")[2].partition("\n## ")[0]
RECIPES = Path("docs", "examples", "load")
TOOLS = PROJECT / ".venv-load-tools"
INSTALL_TIMEOUT, RUN_TIMEOUT = 600, 120

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def tools() -> Path:
    """Where Locust and Artillery are installed; the first test that needs them does it."""
    script = PROJECT / "scripts" / "environment.py"
    done = subprocess.run(
        [sys.executable, "-I", str(script), "load-tools"],
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT,
    )
    if done.returncode:
        pytest.skip(f"Locust cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return TOOLS


@pytest.fixture
def project(tmp_path: Path, relay: RelayProcess, accounts: Accounts) -> Path:
    """A folder that looks like the project's, with recipes for the relay of this test."""
    recipes = tmp_path / RECIPES
    shutil.copytree(PROJECT / RECIPES, recipes, ignore=shutil.ignore_patterns("__pycache__"))
    for recipe in recipes.iterdir():
        recipe.write_text(here(recipe.read_text(), relay))
    (recipes / "tokens.txt").write_text(accounts.session("ann"))
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "relay"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m relay "$@"\n')
    script.chmod(0o755)
    return tmp_path


def here(text: str, relay: RelayProcess) -> str:
    return text.replace("ws://localhost:3000", relay.url.replace("http", "ws", 1))


def printed(word: str) -> str:
    """The command of the page that contains this."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    (command,) = [line for line in block.replace("\\\n", "").splitlines() if word in line]
    return str(command)


def run(word: str, project: Path, relay: RelayProcess, token: str, path: Path | None = None) -> str:
    """Run the command of the page; what it says."""
    programs = os.environ["PATH"] if path is None else f"{path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", here(printed(word), relay)],
        check=False,
        cwd=project,
        env=os.environ
        | {"PATH": programs, "RELAY_TOKEN": token, "GITHUB_ACTIONS": ""}
        | {"PYTHONPATH": str(PROJECT), "ARTILLERY_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert token not in said
    return said


def test_locust_sends_and_receives_frames(
    tools: Path, project: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    said = run("locust", project, relay, accounts.session("ann"), tools / "bin")
    # The first table has a line for each kind of request: how many there were, and how many failed.
    requests = {
        name.strip(): (int(number), int(failed))
        for name, number, failed in re.findall(
            r"^WS +([a-z ]+?) +(\d+) +(\d+)\(", said, re.MULTILINE
        )
    }
    assert requests["auth"] == (8, 0)
    assert (requests["register"], requests["subscribe"]) == ((2, 0), (6, 0))
    assert requests["send a frame"][0] >= 20
    assert requests["age of a frame"][0] >= requests["send a frame"][0]
    assert {failed for _, failed in requests.values()} == {0}


def test_artillery_sends_and_receives_frames(
    tools: Path, project: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    programs = tools / "node" / "node_modules" / ".bin"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("platform: there is no Node here")
    if not (programs / "artillery").exists():
        pytest.skip("npm could not install Artillery")
    said = run("artillery", project, relay, accounts.session("ann"), programs)
    summary = said.partition("Summary report")[2]
    counts = {
        name: int(number)
        for name, number in re.findall(r"^([\w.]+): \.+ (\d+)$", summary, re.MULTILINE)
    }
    assert (counts["vusers.completed"], counts["vusers.failed"]) == (8, 0)
    assert counts["relay.frames_sent"] >= 20
    assert counts["relay.frames_received"] >= counts["relay.frames_sent"]
    assert "relay.frame_age:" in summary
    assert "errors." not in summary


def test_the_same_scenario_is_one_of_relay_load(
    project: Path, relay: RelayProcess, accounts: Accounts
) -> None:
    scenario = project / RECIPES / "street.toml"
    checks = re.sub(r"check = .*\n", 'lateness = "5s"\n', scenario.read_text())
    scenario.write_text(checks)  # this machine may be busy with other tests
    said = run("relay load", project, relay, accounts.session("ann"))
    assert "all checks passed" in said
    assert re.search(r"homes +\d{3}", said)
