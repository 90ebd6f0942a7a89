"""Tokens of a load test from files and commands that do not give them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from relay.load.actors.network.endpoint import Endpoint
from relay.load.run import tokens
from relay.load.run.targets.target import Target
from relay.load.run.targets.target_reports import TargetFailed, TargetReports
from relay.load.run.targets.targets import Targets
from relay.load.run.tokens import find_endpoint
from relay.load.scenario.parsing import parse_scenario
from relay.outgoing.http_client import open_http_client


async def find(folder: Path, said: str) -> Endpoint:
    scenario = parse_scenario(f"[tokens]\n{said}\n[phones.p]", "mine.toml", folder)
    async with open_http_client() as http:
        url = "ws://127.0.0.1:1"
        target = Target("", url, TargetReports(url, "", http))
        return await find_endpoint(scenario, Targets({"": target}))


def python(code: str) -> str:
    return f"command = [{sys.executable!r}, '-c', {code!r}]"


async def test_a_command_runs_in_the_folder_of_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("one\n\n two \n")
    endpoint = await find(tmp_path, python("print(open('made').read())"))
    assert endpoint.tokens == ("one", "two")
    assert "two" not in repr(endpoint)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("command = ['./none']", "cannot run ./none for tokens: No such file"),
        (python("raise SystemExit(3)"), "which should print tokens, ended with 3"),
        (python("pass"), "no token came from"),
        (python("import os; os.write(1, bytes([255, 254]))"), "are not text"),
        (python("while True: print('junk' * 10000)"), "gives more than 1 MiB of tokens"),
        ("data_dir = 'slip-of-the-pen'", "there is no data folder .*slip-of-the-pen"),
        ("file = 'none'", "cannot read the tokens in .*none: No such file"),
        ("file = '.'", "cannot read the tokens in .*: Is a directory"),
        ("file = '/dev/zero'", "/dev/zero gives more than 1 MiB"),
        ("file = '~nobody-of-this-name/tokens'", "No such file"),
    ],
)
async def test_what_gives_no_tokens_is_said(
    said: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS_BYTES", 1 << 20)
    with pytest.raises(TargetFailed, match=words) as caught:
        await find(tmp_path, said)
    assert "junk" not in str(caught.value)


@pytest.mark.parametrize("said", [python("import time; time.sleep(600)"), "file = 'pipe'"])
async def test_a_command_or_a_pipe_that_says_nothing_is_not_waited_for_without_end(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(tokens, "TOKENS_TIMEOUT", 0.1)
    with trio.fail_after(10):
        with pytest.raises(TargetFailed, match=r"no tokens came from .* in 0\.1 s"):
            await find(tmp_path, said)
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))  # lets the thread go that waits for it
