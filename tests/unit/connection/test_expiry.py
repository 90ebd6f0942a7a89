"""The end of a session on a live connection: announced, moved, and kept to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from relay.connection.context import Timing
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.protocol.endings import Ending
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

EXPIRED = ("SESSION_EXPIRED", (4001, "session expired"))
REVOKED = ("SESSION_REVOKED", (4501, "session revoked"))
START = datetime(2030, 1, 1, tzinfo=UTC)
"""The database's clock at the beginning, which is nowhere near ours."""


@pytest.fixture
def relay(relay: MemoryRelay) -> MemoryRelay:
    """One whose database has a clock of its own, and that wants no sign of life."""
    relay.verifier.clock = lambda: START + timedelta(seconds=trio.current_time())
    relay.timing = Timing(10.0, 1e7, 2e7, 1 << 20)
    return relay


def session(lasts: float, session_id: str = "s1") -> User:
    """A session that ends so many seconds after the start."""
    return User("ann", session_id, START + timedelta(seconds=lasts))


def ends(relay: MemoryRelay, lasts: float, **fields: Any) -> None:
    relay.verifier.identities[ANN] = session(lasts, **fields)


async def how_it_ends(client: Client) -> tuple[str, tuple[int, str]]:
    error, close = await client.hear_end()
    return error["code"], close


async def until(moment: float) -> None:
    await trio.sleep_until(moment)
    await trio.testing.wait_all_tasks_blocked()


async def test_a_session_is_announced_to_end_and_ends(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 1000)
    client = await relay.login()
    notice = await client.receive_type("notice")
    assert trio.current_time() == pytest.approx(start + 940)
    assert notice["code"] == "SESSION_EXPIRING"
    assert notice["expiresAt"] == int((START + timedelta(seconds=start + 1000)).timestamp() * 1000)
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 1000)
    assert relay.connections[0].peer.ending is Ending.SESSION_EXPIRED


async def test_a_session_that_ends_soon_is_announced_at_once_and_once(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 30)
    client = await relay.login()
    assert (await client.receive())["code"] == "SESSION_EXPIRING"
    assert trio.current_time() == pytest.approx(start)
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 30)


async def test_auth_again_moves_the_end_and_loses_no_frame(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 100)
    phone, viewer = await relay.phone(), await relay.viewer()
    got: list[int] = []

    async def watch() -> None:
        while True:
            message = await viewer.receive()
            if message["type"] == "video-frame":
                got.append(message["seq"])

    async def stream() -> None:
        while True:
            await phone.send({"type": "video-frame", "data": "AAAA"})
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(stream)
        await until(start + 90)
        ends(relay, start + 500)
        for client in (phone, viewer):
            await client.send({"type": "auth", "token": ANN})
        await until(start + 300.5)
        assert got == list(range(1, 302))
        nursery.cancel_scope.cancel()
    assert await how_it_ends(phone) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 500)


async def test_another_session_of_the_same_user_moves_the_end_and_takes_over(
    relay: MemoryRelay,
) -> None:
    start = trio.current_time()
    ends(relay, start + 100)
    client = await relay.login()
    relay.verifier.identities["another"] = session(start + 500, "s2")
    reply = await client.ask({"type": "auth", "token": "another"})
    assert (reply["code"], reply["sessionId"]) == ("AUTHENTICATED", "s2")
    del relay.verifier.identities[ANN]
    relay.change_feed.tell(Change("session", "s1"))  # that one is no business of ours any more
    await until(start + 200)
    assert relay.connections[0].peer.ending is None
    del relay.verifier.identities["another"]
    relay.change_feed.tell(Change("session", "s2"))
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() == pytest.approx(start + 200)


async def test_the_token_of_another_user_moves_nothing(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 100)
    client = await relay.login()
    assert (await client.ask({"type": "auth", "token": BOB}))["code"] == "UNAUTHORIZED"
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 100)


@pytest.mark.parametrize("told", [True, False], ids=["told", "polled"])
async def test_a_session_that_slides_forward_with_its_use_goes_on(
    relay: MemoryRelay, told: bool
) -> None:
    relay.change_feed.installed_ = told
    start = trio.current_time()
    ends(relay, start + 1000)
    client = await relay.login()
    await until(start + 900)
    ends(relay, start + 2000)  # nobody tells: with triggers, this one got lost
    notice = await client.receive_type("notice")
    assert trio.current_time() == pytest.approx(start + 1940)
    assert notice["expiresAt"] == int((START + timedelta(seconds=start + 2000)).timestamp() * 1000)
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 2000)


async def test_a_session_that_slides_forward_after_the_notice_is_announced_again(
    relay: MemoryRelay,
) -> None:
    start = trio.current_time()
    ends(relay, start + 100)
    client = await relay.login()
    assert (await client.receive_type("notice"))["code"] == "SESSION_EXPIRING"
    await until(start + 97)
    ends(relay, start + 300)
    assert (await client.receive_type("notice"))["code"] == "SESSION_EXPIRING"
    assert trio.current_time() == pytest.approx(start + 240)
    assert await how_it_ends(client) == EXPIRED


async def test_with_the_store_away_the_end_that_is_known_counts(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 100)
    client = await relay.login()
    relay.verifier.away = True
    assert (await client.receive_type("notice"))["code"] == "SESSION_EXPIRING"
    assert trio.current_time() == pytest.approx(start + 40)
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTH_UNAVAILABLE"
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 100)


async def test_an_auth_that_is_being_verified_holds_up_no_end(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 100)
    client = await relay.login()
    relay.verifier.delay = 10
    await until(start + 95)
    await client.send({"type": "auth", "token": ANN})
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 100)


async def test_a_session_that_is_cut_short_ends_then_as_revoked(relay: MemoryRelay) -> None:
    start = trio.current_time()
    ends(relay, start + 1000)
    client = await relay.login()
    await until(start + 10)
    ends(relay, start + 30)
    relay.change_feed.tell(Change("session", "s1"))
    assert (await client.receive())["code"] == "SESSION_EXPIRING"
    assert trio.current_time() == pytest.approx(start + 10)
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() == pytest.approx(start + 30)


async def test_a_session_that_was_cut_short_and_renewed_expires_like_any_other(
    relay: MemoryRelay,
) -> None:
    start = trio.current_time()
    ends(relay, start + 1000)
    client = await relay.login()
    ends(relay, start + 30)
    relay.change_feed.tell(Change("session", "s1"))
    await until(start + 1)
    assert (await client.ask({"type": "auth", "token": ANN}))["code"] == "AUTHENTICATED"
    assert await how_it_ends(client) == EXPIRED


async def test_a_session_that_was_cut_short_and_extended_expires_like_any_other(
    relay: MemoryRelay,
) -> None:
    start = trio.current_time()
    ends(relay, start + 1000)
    client = await relay.login()
    for moment, end in ((1, start + 500), (2, start + 800)):
        ends(relay, end)
        relay.change_feed.tell(Change("session", "s1"))
        await until(start + moment)
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 800)


async def test_a_clock_that_is_wrong_changes_nothing(relay: MemoryRelay) -> None:
    """By ours, this session ended long ago."""
    start = trio.current_time()
    relay.verifier.clock = lambda: datetime(1999, 1, 1, tzinfo=UTC)
    relay.verifier.identities[ANN] = User("ann", "s1", datetime(1999, 1, 1, 0, 1, 40, tzinfo=UTC))
    client = await relay.login()
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 100)


async def test_without_the_remaining_time_our_own_clock_counts(relay: MemoryRelay) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    relay.verifier.clock = None
    relay.verifier.identities[ANN] = User("ann", "s1", soon)
    start = trio.current_time()
    client = await relay.login()
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 100, abs=5)


async def test_a_session_without_end_and_a_service_do_not_expire(relay: MemoryRelay) -> None:
    relay.verifier.identities[ANN] = User("ann", "s1", datetime(9999, 12, 31, tzinfo=UTC))
    clients = [await relay.login(ANN), await relay.login(SENTRY)]
    with trio.move_on_after(86_400):
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.receive)
    assert [connection.peer.ending for connection in relay.connections] == [None, None]


async def test_a_renewal_to_an_earlier_end_counts_while_the_session_is_read_again(
    relay: MemoryRelay,
) -> None:
    """Passed at ebfb761: the reading of the session holds up the end that the peer has set."""
    start = trio.current_time()
    ends(relay, start + 100)
    client = await relay.login()
    relay.verifier.identities["shorter"] = session(start + 37, "s2")
    relay.verifier.reading_delay = 5
    await until(start + 35.5)  # 65 s before the end it is being read
    assert (await client.ask({"type": "auth", "token": "shorter"}))["code"] == "AUTHENTICATED"
    assert await how_it_ends(client) == EXPIRED
    assert trio.current_time() == pytest.approx(start + 37)
