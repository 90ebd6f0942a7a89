"""Better Auth itself signs people in and out, in either style of its columns, and relay follows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import frozen
from psycopg.conninfo import conninfo_to_dict

from tests.integration.accounts import Accounts
from tests.integration.node import SCRIPTS, NodeClient, open_script
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, run_relay, start_relay, within

REVOKED = ("SESSION_REVOKED", (4501, "session revoked"))


@frozen
class BetterAuth:
    """A process with Better Auth in it."""

    script: NodeClient

    async def do(self, what: str, *arguments: str) -> dict[str, Any]:
        await self.script.write(json.dumps([what, *arguments]))
        answer: dict[str, Any] = json.loads(await self.script.line("done:"))
        return answer

    async def token(self, what: str, email: str) -> str:
        return str((await self.do(what, email))["token"])


@asynccontextmanager
async def better_auth(node: str, url: str, style: str) -> AsyncIterator[BetterAuth]:
    """Better Auth on a database, whose tables it makes."""
    address = conninfo_to_dict(url)
    environment = {
        "PGHOST": str(address["host"]),
        "PGPORT": str(address["port"]),
        "PGUSER": str(address["user"]),
        "PGPASSWORD": str(address["password"]),
        "PGDATABASE": str(address["dbname"]),
    }
    async with open_script([node, SCRIPTS / "sign_in_and_out.js", style], environment) as script:
        await script.line("ready:")
        auth = BetterAuth(script)
        await auth.do("migrate")
        yield auth


async def is_revoked(peer: Peer) -> bool:
    async with within(1):
        heard, close = await peer.hear_end()
    return (heard[-1]["code"], close) == REVOKED


@asynccontextmanager
async def watching_relay(url: str, how: str) -> AsyncIterator[RelayProcess]:
    flags = ["--watch-sessions"] if how == "notifications" else []
    done = run_relay("db", "migrate", *flags, database_url=url)
    assert done.returncode == 0, done.stderr
    with start_relay(database_url=url) as relay:
        await relay.until_logged(f"by={how}")
        yield relay


@pytest.mark.parametrize(
    ("style", "how"),
    [
        ("camel", "notifications"),
        ("snake", "polling"),
        pytest.param("camel", "polling", marks=pytest.mark.slow),
        pytest.param("snake", "notifications", marks=pytest.mark.slow),
    ],
)
async def test_who_signs_in_is_let_in_and_who_signs_out_is_out_within_a_second(
    node: str, empty_postgres_url: str, style: str, how: str
) -> None:
    async with (
        better_auth(node, empty_postgres_url, style) as auth,
        watching_relay(empty_postgres_url, how) as relay,
    ):
        phone_token = await auth.token("signUp", "ann@example.org")
        viewer_token = await auth.token("signIn", "ann@example.org")
        assert phone_token != viewer_token
        async with login(relay, phone_token) as phone, login(relay, viewer_token) as viewer:
            stream_id = new_stream_id()
            await phone.register(stream_id)
            await viewer.subscribe(stream_id)
            await phone.send_frame(b"a picture")
            assert (await viewer.receive_type("video-frame"))["seq"] == 1

            await auth.do("signOut", viewer_token)
            assert await is_revoked(viewer)
            await phone.send_frame(b"another")
            assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"

            third = await auth.token("signIn", "ann@example.org")
            await auth.do("revokeOthers", third)
            assert await is_revoked(phone)


@pytest.mark.parametrize("style", ["camel", pytest.param("snake", marks=pytest.mark.slow)])
async def test_whom_the_admin_plugin_bans_or_removes_is_out_within_a_second(
    node: str, empty_postgres_url: str, style: str
) -> None:
    async with (
        better_auth(node, empty_postgres_url, style) as auth,
        watching_relay(empty_postgres_url, "notifications") as relay,
    ):
        admin = await auth.do("signUp", "root@example.org")
        Accounts(empty_postgres_url).execute("update public.\"user\" set role = 'admin'")
        for deed in ("ban", "remove"):
            person = await auth.do("signUp", f"{deed}@example.org")
            async with login(relay, person["token"]) as peer:
                await auth.do(deed, admin["token"], person["userId"])
                assert await is_revoked(peer)
