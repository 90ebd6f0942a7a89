"""The client of relay/web/client, on Node: its own tests, and its sessions, on a real relay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.node import NODE_MODULES, SCRIPTS, NodeClient, run_script
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay

TESTS = SCRIPTS / "client"
STEP = os.environ.get("STEP")
"""Bytes between two cuts; with 1, each is tried in each way, which takes an hour or so."""
ALL, SHARE = "61", "853"
"""Its values where nothing is said, with and without --all."""
DEADLINE = 300.0 if STEP is None else 7200.0
MANY_ALERTS = ("--alert-rate", "1000000/minute")
"""The stage of these tests sends 200 a second."""
MANY_STREAMS = ("--max-streams-per-user", "1000", "--register-rate", "1000000/minute")
"""Phones come and go, and each leaves its stream online for five seconds."""


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*MANY_ALERTS, *MANY_STREAMS, database_url=database_url) as relay:
        yield relay


@pytest.mark.parametrize("name", [path.name for path in sorted(TESTS.glob("*.test.js"))])
async def test_the_client_does_as_its_own_tests_say(
    node: str,
    relay: RelayProcess,
    accounts: Accounts,
    name: str,
    pytestconfig: pytest.Config,
) -> None:
    tokens = {"user": accounts.session("ann"), "service": accounts.service("*")}
    everything = pytestconfig.getoption("all")
    with trio.fail_after(DEADLINE):
        done = await trio.run_process(
            [
                node,
                "--test",
                "--test-force-exit",
                f"--test-timeout={DEADLINE * 800:.0f}",
                TESTS / name,
            ],
            env={
                "PATH": os.environ["PATH"],
                "NODE_PATH": str(NODE_MODULES),
                "RELAY_URL": relay.url,
                "RELAY_TOKENS": json.dumps(tokens),
                "STEP": STEP or (ALL if everything else SHARE),
                "SHARE": "" if everything else "1",
            },
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-20_000:]


@asynccontextmanager
async def viewing(
    node: str, relay: RelayProcess, stream_id: str, *tokens: str
) -> AsyncIterator[NodeClient]:
    """A client that gives these tokens one after the other, and the last again and again."""
    first, *more = tokens
    async with run_script(node, relay, first, "client/drive.js", stream_id, *more) as client:
        yield client


async def asked(client: NodeClient) -> str:
    """Why the client asks for a token next."""
    reason: str = json.loads(await client.line("token:"))["reason"]
    return reason


async def test_a_session_is_renewed_on_the_living_connection(
    node: str, relay: RelayProcess, accounts: Accounts
) -> None:
    short, long = accounts.session(lasts=timedelta(seconds=30)), accounts.session()
    stream_id = new_stream_id()
    async with (
        login(relay, long) as phone,
        viewing(node, relay, stream_id, short, long) as client,
    ):
        await phone.register(stream_id)
        assert await asked(client) == "connect"
        first = json.loads(await client.line("session:"))
        assert await asked(client) == "expiring"
        second = json.loads(await client.line("session:"))
        assert second["expiresAt"] > first["expiresAt"] + 60_000
        await phone.send_frame(b"a picture after that")
        assert json.loads(await client.line("frame:"))["seq"] == 1
        assert "waiting:" not in client.passed_over


async def test_an_expired_session_is_replaced_on_the_next_connection(
    node: str, relay: RelayProcess, accounts: Accounts
) -> None:
    short = accounts.session(lasts=timedelta(seconds=5))
    async with viewing(node, relay, new_stream_id(), short, short, accounts.session()) as client:
        assert [await asked(client), await asked(client)] == ["connect", "expiring"]
        assert await client.line("waiting:") == "SESSION_EXPIRED"
        assert await asked(client) == "expired"
        await client.line("ready:")


async def test_a_revoked_session_is_the_end(
    node: str, relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session()
    async with viewing(node, relay, new_stream_id(), token, accounts.session()) as client:
        await client.line("ready:")
        before = (await relay.stats())["connections_accepted"]
        accounts.execute("delete from session where token = %s", token)
        assert await client.line("closed:") == "SESSION_REVOKED"
        await client.write("resume")
        await client.write("retryNow")
    assert (await relay.stats())["connections_accepted"] == before
    assert client.passed_over.count("token:") == 1


async def test_a_client_comes_back_after_a_restart_and_misses_no_alert(
    node: str, database_url: str, accounts: Accounts
) -> None:
    stream_id, token, service = new_stream_id(), accounts.session("ann"), accounts.service("*")
    alert = {"type": "alert", "streamId": stream_id, "severity": "low"}
    with start_relay(*MANY_ALERTS, database_url=database_url) as first:
        bind = first.url.removeprefix("http://")
        async with viewing(node, first, stream_id, token) as client:
            await client.write("publish")
            await client.line("registered:")
            async with login(first, service) as detector:
                await detector.ask(alert | {"message": "before"})
            assert json.loads(await client.line("alert:"))["message"] == "before"
            first.signal(signal.SIGTERM)
            notice = json.loads(await client.line("notice:"))
            assert notice["code"] == "SERVER_RESTARTING"
            await first.ended()
            with start_relay(*MANY_ALERTS, database_url=database_url, bind=bind) as second:
                async with login(second, service) as detector:
                    await detector.ask(alert | {"message": "meanwhile"})
                await client.line("registered:")
                heard = json.loads(await client.line("alert:"))
                assert heard["message"] == "meanwhile"
                await client.write("close")
                await client.line("closed:")
