"""`relay load` in the hands of a test: a scenario, the process, what it says and leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relay.load.measures.results import GroupResult, RunResult, second_of
from relay.load.measures.stats import GroupStats
from relay.load.report.outputs import JsonLines
from tests.integration.accounts import Accounts
from tests.integration.in_process import call_with
from tests.integration.relay_process import RelayProcess, processes_about

PATIENCE = 90
SHORT = """
name = "short"
duration = "1s"
lateness = "5s" # this machine may be busy with other tests
check = ["frame_age.p99 < 5s", "received > 8", "alerts.accepted > 0"]
[phones.doors]
count = 2
fps = 20
frames = "4KiB"
[viewers.fast]
watch = "doors"
count = 3
[viewers.plain]
watch = "doors"
encoding = "json"
[services.watcher]
watch = "doors"
rate = "10/s"
"""
UNCHECKED = "".join(line for line in SHORT.splitlines(keepends=True) if "check =" not in line)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "relay", "load", *arguments],
        env=os.environ | {"TMPDIR": str(folder), "GITHUB_ACTIONS": ""} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """A command that starts no load test: its exit code, and what it writes."""
    fixed = {"TMPDIR": str(folder), "GITHUB_ACTIONS": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        return call_with(fixed | environment, "load", *arguments)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, output, errors


def write(tmp_path: Path, source: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(source)
    return str(path)


def against(relay: RelayProcess, accounts: Accounts, tmp_path: Path, source: str = SHORT) -> str:
    """A scenario against the relay of the tests, with tokens in files."""
    (tmp_path / "tokens").write_text(accounts.session("ann") + "\n")
    (tmp_path / "service").write_text(accounts.service("*") + "\n")
    target = f'[target]\nurl = "{relay.url.replace("http", "ws", 1)}"\nledger = true\n'
    tokens = '[tokens]\nfile = "tokens"\nservice_file = "service"\n'
    return write(tmp_path, source + target + tokens)


def write_baseline(path: Path, name: str) -> None:
    """A run of the scenario with this name that was faster than any relay."""
    seconds = []
    for at in range(1, 11):
        viewers = GroupStats()
        viewers.counts["received"] = 60
        viewers.time("frame_age").record(1e-5)
        recent = {"fast": viewers}
        seconds.append(second_of(at, recent=recent, usage={}, before={}, last_at=at - 1))
    result = RunResult(
        scenario=name, started=0, seconds=10, workers=1, machine="m", outcome="kept", failure=None,
        aborted_by=None, stages={}, checks=[], ledger=[], groups={},
        total=GroupResult(counts={}, errors={}, times={}, histograms={}),
    )  # fmt: skip
    with JsonLines(path) as lines:
        for second in seconds:
            lines.second(second)
        lines.result(result)


def assert_nothing_is_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    assert processes_about(str(folder)) == []


def until_line(process: subprocess.Popen[str], text: str) -> str:
    """What it prints up to a line with this."""
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen
