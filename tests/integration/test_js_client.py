"""The client of relay/web/client, on Node: its own tests, on a real relay."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.node import NODE_MODULES, SCRIPTS
from tests.integration.relay_process import RelayProcess

TESTS = SCRIPTS / "client"
DEADLINE = 240.0


async def run_tests(node: str, name: str, **environment: str) -> None:
    """Run a file of Node's own tests; what they say is shown if one fails."""
    with trio.fail_after(DEADLINE):
        done = await trio.run_process(
            [node, "--test", "--test-force-exit", "--test-timeout=120000", TESTS / name],
            env={"PATH": os.environ["PATH"], "NODE_PATH": str(NODE_MODULES), **environment},
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-20_000:]


@pytest.mark.parametrize("name", [path.name for path in sorted(TESTS.glob("*.test.js"))])
async def test_the_client_does_as_its_own_tests_say(
    node: str, relay: RelayProcess, accounts: Accounts, name: str
) -> None:
    tokens = {
        "user": accounts.session("ann"),
        "service": accounts.service("*", alerts=True),
    }
    await run_tests(node, name, RELAY_URL=relay.url, RELAY_TOKENS=json.dumps(tokens))


def test_each_test_of_the_client_is_among_these() -> None:
    assert {Path("codec.test.js"), Path("cuts.test.js")} <= {
        path.relative_to(TESTS) for path in TESTS.iterdir()
    }
