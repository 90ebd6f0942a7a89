"""Every command of `relay load` in docs/load-testing.md is run as it is printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from relay.load.measures.results import read_result
from tests.integration.accounts import Accounts
from tests.integration.agents import start_agent
from tests.integration.load_command import (
    PATIENCE,
    SHORT,
    against,
    until_line,
    write_baseline,
)
from tests.integration.proxies import free_port
from tests.integration.relay_process import PROJECT, RelayProcess, start_relay

PAGE = (PROJECT / "docs" / "load-testing.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PRINTED = [line for block in BLOCKS for line in block.splitlines() if "relay load" in line]
OF_AGENTS = [line for line in PRINTED if re.search(r"load (keys|agent)|--agents", line)]
OF_OTHER_TOOLS = [line for line in PRINTED if "docs/examples/load" in line]
"""They are in test_other_tools.py."""
COMMANDS = [line for line in PRINTED if line not in (*OF_AGENTS, *OF_OTHER_TOOLS)]
OF_LIMITS = [line for line in COMMANDS if re.search(r"load find|record --link", line)]
EXAMPLES = (
    *("load smoke", "load three-nodes", "load self-test "),
    *("load fairness", "load hostile", "load storm"),
)
"""Commands that take up to a minute, as they are printed."""


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


def run(command: str, folder: Path) -> tuple[int, str]:
    """Run a command in a folder that looks like the project's; its exit code and what it says."""
    (folder / "scripts").mkdir(exist_ok=True)
    script = folder / "scripts" / "relay"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m relay "$@"\n')
    script.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        check=False,
        cwd=folder,
        env=os.environ | {"GITHUB_ACTIONS": "", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


def printed_with(part: str) -> str:
    (command,) = [str(each) for each in COMMANDS if part in each]
    return command


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    """In their order, with a short scenario, against the relay of this test."""
    long = [printed_with(part) for part in (*EXAMPLES, "--baseline")]
    commands = [command for command in COMMANDS if command not in [*long, *OF_LIMITS]]
    assert len(commands) >= 8
    for printed in commands:
        if "mine.toml --" in printed:
            against(relay, accounts, tmp_path)
        if "other.json" in printed:
            shutil.copy(tmp_path / re.findall(r"\w+\.json", printed)[0], tmp_path / "other.json")
        command = shortened(here(printed, relay)).replace("$(…)", accounts.session("ann"))
        code, output = run(command, tmp_path)
        assert code == 0, f"{command}\n{output}"
        assert output.count("write: nobody answers there") == 2 * ("--remote-write" in printed)
    for name in (
        *("mine.html", "mine.json", "baseline.json", "door.trace", "mine.link"),
        *("checks.xml", "mine.csv"),
    ):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
def test_limits_are_searched_and_links_recorded_as_the_page_says(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    assert len(OF_LIMITS) == 3
    against(relay, accounts, tmp_path)
    for printed in OF_LIMITS:
        command = shortened(here(printed, relay)).replace("$(…)", accounts.session("ann"))
        code, output = run(command, tmp_path)
        assert code == 0, f"{command}\n{output}"
    for name in ("limit.html", "limit.json", "train.link"):
        assert (tmp_path / name).stat().st_size > 0


def shortened(command: str) -> str:
    """With little time for a recording, and for a search two loads that any machine carries."""
    command = command.replace("--seconds 60", "--seconds 1").replace("< 200ms'", "< 5s'")
    command = re.sub(r"\b16\b", "5", command)
    if "load find" in command:
        command += " --repeat 1" if "--from" in command else " --to 5 --repeat 1"
    return command


def here(command: str, relay: RelayProcess) -> str:
    """With the address of the relay, and with no Prometheus and no collector."""
    command = command.replace("ws://localhost:3000", relay.url.replace("http", "ws", 1))
    return re.sub(r"http://localhost:\d+", lambda _: f"http://127.0.0.1:{free_port()}", command)


@pytest.mark.slow
def test_a_run_that_is_worse_than_its_baseline_is_exit_code_4(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    against(relay, accounts, tmp_path, SHORT.replace('"1s"', '"10s"', 1))
    write_baseline(tmp_path / "baseline.json", "short")
    code, output = run(f"{printed_with('--baseline')} --json judged.json", tmp_path)
    assert code == 4, output
    assert "all checks passed" in output
    comparison = read_result(tmp_path / "judged.json")[0].comparison
    assert comparison is not None
    worse = [each.name for each in comparison.with_verdict("worse")]
    # On a busy machine it also misses frames.
    assert set(worse) - {"fast missed"} == {"fast frame_age.p50", "fast frame_age.p99"}
    assert f"worse by more than 20%: {', '.join(worse)}" in output
    (suite,) = ET.parse(tmp_path / "mine.xml").getroot()
    assert suite.get("failures") == str(len(worse))


@pytest.mark.slow
def test_agents_play_what_the_page_says(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    keys, agent, play, measure = OF_AGENTS
    code, fingerprint = run(keys, tmp_path)
    assert code == 0, fingerprint
    against(relay, accounts, tmp_path)
    target = relay.url.removeprefix("http://")
    started = agent.replace("relay.test:3000", target).replace("FINGERPRINT", fingerprint.strip())
    with ExitStack() as stack:
        printed = []
        for _ in range(2):
            at_home = started.replace("10.0.0.5:3100", "127.0.0.1:0").replace(
                "workers 4", "workers 2"
            )
            process = stack.enter_context(start_command(at_home, tmp_path))
            printed.append(until_line(process, "--agents ").split()[-1])
        agents = re.search(r"--agents (\S+)", play)
        assert agents is not None
        assert agents[1] in measure
        code, output = run(play.replace(agents[1], ",".join(printed)), tmp_path)
    assert code == 0, output
    assert "4 workers of 2 agents" in output
    assert "ok   the relay's ledger agrees" in output


@contextmanager
def start_command(command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command that runs on; it ends with the block."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("part", EXAMPLES)
def test_an_example_does_what_the_page_says(part: str, tmp_path: Path) -> None:
    """Its checks of ages are for a machine that does nothing else."""
    code, output = run(printed_with(part), tmp_path)
    assert code in {0, 1}, output
    shown = "per core" if part == "load self-test " else "ok   the relay's ledger agrees"
    assert shown in output


@pytest.mark.slow
def test_a_self_test_of_agents_does_what_the_page_says(tmp_path: Path) -> None:
    key = tmp_path / "coordinator.pem"
    with start_agent(key, "127.0.0.1:1") as agent:
        command = re.sub(r"--agents \S+", f"--agents {agent.address}", OF_AGENTS[-1])
        code, output = run(command, tmp_path)
    assert code == 0, output
    assert output.startswith(f"{agent.name}: ")
    assert "1 agent together" in output
    assert output.count("per core") == 4
