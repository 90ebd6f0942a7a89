"""A short slice of `scripts/stress.py`: random clients against a real relay, in each of its ways of
writing."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.relay_process import RelayProcess, start_relay
from tests.integration.stress import watched_relay
from tests.integration.stress.client import Plan
from tests.integration.stress.play import run_round

WAYS = [
    "plain",
    *(
        pytest.param(each, marks=pytest.mark.slow)
        for each in ("encrypted", "without the kernel's answer")
    ),
]


@pytest.fixture(params=WAYS)
def any_relay(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[RelayProcess]:
    command = [sys.executable, "-m", watched_relay.__name__]
    if request.param == "without the kernel's answer":
        command.append(watched_relay.BLIND)
    flags = ["--profile", "load", "--log-level", "warning", "--data-dir", str(tmp_path)]
    flags += ["--auth-timeout", "120", "--statement-timeout", "60"]  # machines may be busy
    if request.param == "encrypted":
        flags.append("--dev-tls")
    with start_relay(*flags, database_url=database_url, command=[*command, "serve"]) as relay:
        yield relay


async def test_whatever_clients_do_frames_come_whole_in_order_and_on_the_books(
    any_relay: RelayProcess, accounts: Accounts
) -> None:
    token, name = accounts.session(), secrets.token_hex(4)
    for rough in (False, True):
        plan = Plan(f"{name}-{rough}", clients=20, seconds=0.5, rough=rough)
        outcome = await run_round(any_relay, token, plan)
        assert outcome.seen > 0
