"""The relay's clock steps by an hour, and the database's does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.faults.clock import STEPPED, step
from tests.integration.faults.scene import open_scene
from tests.integration.peers import Peer, login, new_stream_id, open_peer
from tests.integration.relay_process import PATIENCE, RelayProcess, start_relay
from tests.unit.tokens import AUDIENCE, ISSUER, by_hand, good_claims

SECRET = "a secret of thirty-two characters"
JWT = ("--jwt-secret", SECRET, "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
HOUR_MS = 3_600_000
SOON = 1.0


@pytest.fixture
def stepped(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*JWT, command=STEPPED, database_url=database_url) as relay:
        yield relay


def jwt(minutes: float, *, issued: float = -120) -> str:
    """A token that has so many minutes left, and was issued so many ago, by the true time."""
    now = time.time()
    claims = good_claims(exp=int(now + 60 * minutes), iat=int(now + 60 * issued))
    return by_hand({"alg": "HS256"}, claims, secret=SECRET.encode())


async def answer(relay: RelayProcess, token: str) -> str:
    """What a token gets on a connection of its own."""
    async with open_peer(relay) as peer:
        await peer.send({"type": "auth", "token": token})
        return str((await peer.receive())["code"])


async def assert_alive(peer: Peer) -> None:
    assert (await peer.ask({"type": "streams"}))["code"] == "STREAMS"


@pytest.mark.slow
async def test_a_step_forward_ends_nobody_and_keeps_no_session_out(
    stepped: RelayProcess, accounts: Accounts
) -> None:
    token, vouched = accounts.session(lasts=timedelta(minutes=30)), jwt(30)
    async with (
        open_scene(stepped, accounts) as scene,
        login(stepped, token) as with_session,
        login(stepped, vouched) as with_jwt,
    ):
        await step(stepped, 1)
        await scene.frames_go_on()
        assert scene.longest_gap < SOON
        for peer in (with_session, with_jwt):
            await assert_alive(peer)
        assert (await with_session.authenticate(token))["code"] == "AUTHENTICATED"
        assert await answer(stepped, token) == "AUTHENTICATED"
        # Nobody but the relay's clock can tell of these.
        assert await answer(stepped, vouched) == "AUTH_FAILED"
        assert await answer(stepped, jwt(90)) == "AUTHENTICATED"
        for peer in (with_session, with_jwt):
            await assert_alive(peer)
        reply = await with_session.ask({"type": "streams"})
        assert abs(reply["timestamp"] - time.time() * 1000 - HOUR_MS) < HOUR_MS / 60


async def test_a_step_back_lengthens_no_session_and_no_stream_has_an_old_epoch_again(
    stepped: RelayProcess, accounts: Accounts
) -> None:
    over = accounts.session(lasts=timedelta(seconds=-1))
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(open_scene(stepped, accounts))
        phone = await stack.enter_async_context(login(stepped, scene.token))
        short = accounts.session(lasts=timedelta(seconds=4))
        short_lived = await stack.enter_async_context(login(stepped, short))
        before, after = [{"type": "register", "streamId": new_stream_id()} for _ in range(2)]
        earlier = await phone.ask(before)
        await step(stepped, -1)
        await scene.frames_go_on()
        assert scene.longest_gap < SOON
        later = await phone.ask(after)
        assert later["epoch"] > earlier["epoch"]
        assert await answer(stepped, over) == "AUTH_FAILED"
        with trio.fail_after(PATIENCE):
            heard, close = await short_lived.hear_end()
        assert (heard[-1]["code"], close) == ("SESSION_EXPIRED", (4001, "session expired"))
        # Nobody but the relay's clock can tell of these.
        assert await answer(stepped, jwt(-50)) == "AUTHENTICATED"
        assert await answer(stepped, jwt(30, issued=0)) == "AUTH_FAILED"  # in the future
