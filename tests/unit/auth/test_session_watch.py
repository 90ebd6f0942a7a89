"""Sign-outs, bans and withdrawn grants take effect, however the relay learns of them."""

from __future__ import annotations

from typing import Literal

import pytest
import trio
import trio.testing
from attrs import evolve

from relay.auth.registry import MAX_CHANGES, Registry
from relay.auth.session_watch import SAFETY_INTERVAL
from relay.model.access.change import EVERYTHING, Change
from relay.model.access.identity import Identity, Service, User
from relay.protocol.reports import StreamCounts
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay, user

pytestmark = pytest.mark.mock_clock

REVOKED = ("SESSION_REVOKED", (4501, "session revoked"))


async def how_it_ends(client: Client) -> tuple[str, tuple[int, str]]:
    error, close = await client.hear_end()
    return error["code"], close


async def settle(relay: MemoryRelay) -> None:
    """Let the session watch finish what it is doing."""
    await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked()


def end_of(relay: MemoryRelay, token: str) -> Change:
    """Delete the identity of a token; returns the change that would be notified."""
    identity = relay.verifier.identities.pop(token)
    if isinstance(identity, Service):
        return Change("service", identity.name)
    return Change("session", identity.session_id)


@pytest.mark.parametrize("token", [ANN, SENTRY])
async def test_what_is_told_to_have_ended_ends_at_once(relay: MemoryRelay, token: str) -> None:
    client, other = await relay.login(token), await relay.login(BOB)
    start = trio.current_time()
    relay.change_feed.tell(end_of(relay, token))
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() == start
    assert (await other.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_who_leaves_while_they_are_read_again_does_not_disturb_the_watch(
    relay: MemoryRelay,
) -> None:
    relay.verifier.reading_delay = 1.0
    client, other = await relay.login(ANN), await relay.login(BOB)
    relay.change_feed.tell(EVERYTHING)
    await trio.sleep(0.5)
    client.link.close()
    await trio.sleep(1)
    relay.change_feed.tell(end_of(relay, BOB))
    assert await how_it_ends(other) == REVOKED


async def test_a_change_of_a_user_concerns_all_connections_of_the_user(relay: MemoryRelay) -> None:
    clients = [await relay.login(ANN) for _ in range(3)]
    other = await relay.login(BOB)
    end_of(relay, ANN)
    relay.change_feed.tell(Change("user", "ann"))
    assert [await how_it_ends(client) for client in clients] == [REVOKED] * 3
    assert (await other.ask({"type": "streams"}))["code"] == "STREAMS"


@pytest.mark.parametrize("token", [ANN, SENTRY])
async def test_without_triggers_what_has_ended_is_seen_within_half_a_second(
    relay: MemoryRelay, token: str
) -> None:
    relay.change_feed.installed_ = False
    client = await relay.login(token)
    await trio.sleep(100.2)
    end_of(relay, token)
    start = trio.current_time()
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() - start <= 0.5


async def test_a_session_that_cannot_be_read_ends_and_no_other(relay: MemoryRelay) -> None:
    clients = {token: await relay.login(token) for token in (ANN, BOB, SENTRY)}
    identity = relay.verifier.identities[ANN]
    assert isinstance(identity, User)
    relay.verifier.unreadable.add(identity.session_id)
    relay.change_feed.tell(EVERYTHING)
    assert await how_it_ends(clients[ANN]) == REVOKED
    relay.change_feed.tell(end_of(relay, BOB))
    assert await how_it_ends(clients[BOB]) == REVOKED
    assert (await clients[SENTRY].ask({"type": "streams"}))["code"] == "STREAMS"


async def test_polling_reads_all_sessions_with_one_question(relay: MemoryRelay) -> None:
    relay.change_feed.installed_ = False
    for token in (ANN, BOB, ANN, ANN):
        await relay.login(token)
    await settle(relay)
    before = relay.verifier.readings
    await trio.sleep(10)
    assert relay.verifier.readings - before == pytest.approx(20, abs=1)


async def test_nobody_is_read_where_nobody_is_connected(relay: MemoryRelay) -> None:
    relay.change_feed.installed_ = False
    client = await relay.login()
    client.link.close()
    await settle(relay)
    before = relay.verifier.readings
    await trio.sleep(100)
    assert relay.verifier.readings == before


async def test_where_nobody_is_connected_notifications_are_probed_now_and_then(
    relay: MemoryRelay,
) -> None:
    client = await relay.login()
    await trio.sleep(100)
    client.link.close()
    await trio.sleep(100)
    before = relay.change_feed.probes
    await trio.sleep(1000)
    assert relay.change_feed.probes - before <= 4
    before = relay.change_feed.probes
    client = await relay.login(BOB)
    await settle(relay)
    assert relay.change_feed.probes == before + 1
    start = trio.current_time()
    relay.change_feed.tell(end_of(relay, BOB))
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() == start


async def test_where_nobody_is_connected_a_lost_database_is_left_alone(relay: MemoryRelay) -> None:
    await settle(relay)
    relay.change_feed.lose()
    await trio.sleep(100)
    before = relay.change_feed.attempts
    await trio.sleep(1000)
    assert relay.change_feed.attempts - before <= 4
    relay.change_feed.away = False
    client = await relay.login()
    await trio.sleep(1)
    end_of(relay, ANN)
    assert await how_it_ends(client) == REVOKED


async def test_where_changes_are_told_everybody_is_still_read_now_and_then(
    relay: MemoryRelay,
) -> None:
    client = await relay.login()
    await settle(relay)
    end_of(relay, ANN)
    start = trio.current_time()
    assert await how_it_ends(client) == REVOKED
    assert 0 < trio.current_time() - start <= SAFETY_INTERVAL


async def test_when_the_connection_that_listens_is_lost_everybody_is_read(
    relay: MemoryRelay,
) -> None:
    client, other = await relay.login(ANN), await relay.login(BOB)
    await settle(relay)
    start = trio.current_time()
    end_of(relay, ANN)
    relay.change_feed.lose()
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() == start
    await trio.sleep(63)
    end_of(relay, BOB)  # there is still nothing that listens
    start = trio.current_time()
    assert await how_it_ends(other) == REVOKED
    assert trio.current_time() - start <= 0.5


async def test_when_there_is_a_connection_that_listens_again_everybody_is_read(
    relay: MemoryRelay,
) -> None:
    await relay.login(ANN)
    relay.change_feed.lose()
    await trio.sleep(30)
    relay.change_feed.away = False
    await trio.sleep(60)
    readings = relay.verifier.readings
    await trio.sleep(2 * SAFETY_INTERVAL)
    assert relay.verifier.readings - readings == pytest.approx(2, abs=1)


async def test_while_the_store_is_away_streams_go_on_and_then_everybody_is_read(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    relay.verifier.away = True
    relay.change_feed.tell(Change("session", "session-of-ann"))
    await trio.sleep(100)
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    relay.change_feed.tell(end_of(relay, ANN))
    await trio.sleep(10)
    assert relay.connections[0].peer.ending is None
    relay.verifier.away = False
    start = trio.current_time()
    assert await how_it_ends(viewer) == REVOKED
    assert await how_it_ends(phone) == REVOKED
    assert trio.current_time() - start <= 1


async def test_a_watch_that_failed_reads_everybody_when_it_is_started_again(
    relay: MemoryRelay,
) -> None:
    client = await relay.login()
    await settle(relay)
    end_of(relay, ANN)
    start = trio.current_time()
    relay.nursery.start_soon(relay.watch.run)  # as the supervisor does
    assert await how_it_ends(client) == REVOKED
    assert trio.current_time() == start


@pytest.mark.parametrize(
    "told", [Change("session", "session-of-ann"), Change("user", "ann"), EVERYTHING], ids=str
)
async def test_a_token_that_is_revoked_while_it_is_verified_does_not_get_in(
    relay: MemoryRelay, told: Change
) -> None:
    relay.verifier.delay = 2
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    await trio.sleep(1)
    end_of(relay, ANN)
    relay.change_feed.tell(told)
    error, close = await client.hear_end()
    assert (error["code"], close[0]) == ("AUTH_FAILED", 1008)
    assert relay.metrics.authenticated == 0


async def test_a_verification_is_repeated_for_changes_of_its_own_only(relay: MemoryRelay) -> None:
    relay.verifier.delay = 2
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN})
    start = trio.current_time()
    await trio.sleep(1)
    relay.change_feed.tell(Change("session", "session-of-bob"), Change("user", "bob"))
    assert (await client.receive())["code"] == "AUTHENTICATED"
    assert trio.current_time() - start == pytest.approx(2)


async def test_a_reading_that_is_older_than_a_renewal_changes_nothing(relay: MemoryRelay) -> None:
    client = await relay.login()
    await settle(relay)
    relay.verifier.reading_delay = 2
    identity = relay.verifier.identities.pop(ANN)
    assert isinstance(identity, User)
    relay.change_feed.tell(EVERYTHING)  # reads that there is no such session
    await trio.sleep(1)
    relay.verifier.identities["new"] = evolve(identity, session_id="s2")
    assert (await client.ask({"type": "auth", "token": "new"}))["code"] == "AUTHENTICATED"
    await trio.sleep(100)
    assert relay.connections[0].peer.ending is None


@pytest.mark.parametrize("source", ["jwt", "introspection"])
async def test_whom_an_issuer_vouches_for_has_grants_here_and_can_be_banned_here(
    relay: MemoryRelay, source: Literal["jwt", "introspection"]
) -> None:
    await relay.phone("s")
    await relay.phone("t")
    relay.verifier.identities[BOB] = evolve(user("bob"), source=source)
    relay.verifier.grants["bob"] = frozenset({"s"})
    bob = await relay.login(BOB)
    streams = (await bob.ask({"type": "streams"}))["streams"]
    assert [each["streamId"] for each in streams] == ["s"]
    relay.verifier.grants["bob"] = frozenset({"t"})
    relay.change_feed.tell(Change("user", "bob"))
    changes = [await bob.receive_type("status") for _ in range(2)]
    assert {(each["streamId"], each["status"]) for each in changes} == {
        ("s", "offline"),
        ("t", "online"),
    }
    del relay.verifier.identities[BOB]  # there is no row that could be gone
    await trio.sleep(3 * SAFETY_INTERVAL)
    relay.verifier.banned.add("bob")
    relay.change_feed.tell(Change("user", "bob"))
    assert await how_it_ends(bob) == REVOKED
    relay.verifier.identities[BOB] = evolve(user("bob"), source=source)
    client = await relay.open()
    assert (await client.ask({"type": "auth", "token": BOB}))["code"] == "AUTH_FAILED"


async def test_nothing_reaches_who_was_revoked_but_the_goodbye(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    connection = relay.connections[1]
    assert connection._session is not None
    ((stream, _),) = connection._session._consumers.values()
    connection._session.revoked()
    assert not stream.watchers
    await phone.send({"type": "video-frame", "data": "AAAA"})
    error, close = await viewer.hear_end()
    assert (error["code"], close) == REVOKED


async def test_who_is_revoked_while_registering_produces_nothing(relay: MemoryRelay) -> None:
    client = await relay.login()
    relay.owners.delay = 1
    await client.send({"type": "register", "streamId": "s"})
    await settle(relay)
    relay.change_feed.tell(end_of(relay, ANN))
    assert await how_it_ends(client) == REVOKED
    await trio.sleep(10)
    assert relay.hub.count() == StreamCounts()


async def test_a_service_loses_and_gains_what_its_token_allows(relay: MemoryRelay) -> None:
    await relay.phone("s")
    sentry = await relay.viewer("s", SENTRY)
    service = relay.verifier.identities[SENTRY]
    assert isinstance(service, Service)
    relay.verifier.identities[SENTRY] = evolve(service, consume=frozenset())
    relay.change_feed.tell(Change("service", "sentry"))
    status = await sentry.receive_type("status")
    assert (status["epoch"], status["status"]) == (0, "offline")
    relay.verifier.identities[SENTRY] = service
    relay.change_feed.tell(Change("service", "sentry"))
    assert (await sentry.receive_type("status"))["status"] == "online"


async def test_what_is_remembered_of_changes_is_bounded_and_errs_on_the_side_of_doubt() -> None:
    registry = Registry()
    ann, bob = user("ann"), user("bob")
    before = registry.mark()
    registry.note(Change("user", "ann"))
    middle = registry.mark()
    assert not registry.still_holds(ann, before)
    assert registry.still_holds(bob, before)
    assert registry.still_holds(ann, middle)
    for number in range(2 * MAX_CHANGES):
        registry.note(Change("session", str(number)))
    assert not registry.still_holds(bob, before)
    assert registry.still_holds(bob, registry.mark())
    assert len(registry._recent) <= MAX_CHANGES


async def test_the_registry_keeps_nothing_of_who_left() -> None:
    class Someone:
        def __init__(self, identity: Identity) -> None:
            self.identity = identity

        def become(self, identity: Identity) -> None: ...

        def revoked(self) -> None: ...

    registry = Registry()
    several = [Someone(user("ann")), Someone(user("ann")), Someone(user("bob"))]
    for each in several:
        registry.enter(each)
    several[2].identity = User("bob", "another", several[2].identity.expires_at)  # type: ignore[union-attr]
    registry.enter(several[2])
    assert list(registry.concerned(Change("user", "ann"))) == several[:2]
    assert not list(registry.concerned(Change("session", "session-of-bob")))
    for each in several:
        registry.leave(each)
        registry.leave(each)
    assert not registry
    assert not registry._by_change
