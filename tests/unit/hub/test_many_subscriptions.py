"""What subscriptions cost others: those to streams that do not exist, and lists of many streams."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from relay.guard.guard import Guard, SessionLimits
from relay.guard.rates import RateLimiter
from relay.hub.stream import Stream
from relay.model.access import permissions
from relay.model.access.change import Change
from relay.model.access.identity import Service, User
from relay.protocol.reports import StreamCounts
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay, user

pytestmark = pytest.mark.mock_clock

WATCH = {"type": "subscribe", "consumes": ["video-frame"]}
FRAME = {"type": "video-frame", "data": "AAAA"}


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def watch_nothing(relay: MemoryRelay, count: int, token: str = BOB) -> Client:
    """A client that has subscribed to so many streams that do not exist."""
    client = await relay.login(token)
    for number in range(count):
        await client.ask({**WATCH, "streamId": f"none-{number}"})
    return client


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The streams at which somebody looked to find out who may see them."""
    looked: list[str] = []
    may_watch = permissions.may_watch

    def counting(identity: Any, stream_id: str, owner_id: str | None) -> bool:
        looked.append(stream_id)
        return may_watch(identity, stream_id, owner_id)

    monkeypatch.setattr(permissions, "may_watch", counting)
    return looked


async def test_totals_are_read_without_a_look_at_any_stream(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer()
    await phone.send(FRAME)
    await viewer.receive_type("video-frame")
    bob = await watch_nothing(relay, 100)
    assert relay.hub.count() == StreamCounts(online=0, streaming=1, consumers=101)
    ledger = relay.hub.ledger()
    assert (ledger.accepted, ledger.written, ledger.waiting) == (1, 1, 0)

    class Unlooked(dict[str, Stream]):
        def values(self) -> Any:
            raise AssertionError("a walk over all streams")

        items = __iter__ = values

    monkeypatch.setattr(relay.hub, "_streams", Unlooked(relay.hub._streams))
    assert relay.hub.count().consumers == 101
    assert relay.hub.ledger() == ledger
    await viewer.ask({"type": "streams"})
    for each in (bob, viewer, phone):
        each.link.close()
    await trio.sleep(10)
    assert relay.hub.count() == StreamCounts(online=0, streaming=0, consumers=0)
    assert relay.hub.ledger() == ledger
    assert not relay.hub._subscriptions


async def test_the_list_of_streams_takes_no_look_at_streams_that_do_not_exist(
    relay: MemoryRelay, looks: list[str]
) -> None:
    await relay.phone()
    await watch_nothing(relay, 100)
    for token, seen in ((ANN, ["front-door"]), (BOB, []), (SENTRY, ["front-door"])):
        client = await relay.login(token)
        looks.clear()
        reply = await client.ask({"type": "streams"})
        assert [each["streamId"] for each in reply["streams"]] == seen
        assert len(looks) <= 1


async def test_a_grant_takes_no_look_at_other_streams(relay: MemoryRelay, looks: list[str]) -> None:
    for number in range(20):
        await relay.phone(f"cam-{number}")
    bob = await watch_nothing(relay, 100)
    await bob.ask({"type": "streams"})
    before = relay.verifier.identities[BOB]
    assert isinstance(before, User)
    looks.clear()
    relay.verifier.identities[BOB] = evolve(before, granted=frozenset({"cam-7", "other"}))
    relay.change_feed.tell(Change("user", "bob"))
    status = await bob.receive_type("status")
    assert (status["streamId"], status["status"]) == ("cam-7", "online")
    assert set(looks) <= {"cam-7"}


async def test_a_change_of_a_stream_takes_no_look_at_observers_that_may_not_see_it(
    relay: MemoryRelay, looks: list[str]
) -> None:
    for name in map(str, range(20)):
        relay.verifier.identities[name] = user(name)
        await (await relay.login(name)).ask({"type": "streams"})
    sentry = await relay.login(SENTRY)
    await sentry.ask({"type": "streams"})
    looks.clear()
    await relay.phone()
    assert (await sentry.receive_type("status"))["status"] == "online"
    assert len(looks) < 5


async def test_an_observer_is_told_by_what_it_may_see_now(relay: MemoryRelay) -> None:
    bob = await relay.login(BOB)
    await bob.ask({"type": "streams"})
    before = relay.verifier.identities[BOB]
    assert isinstance(before, User)
    for granted in ({"front-door"}, {"*"}, set(), {"front-door", "x"}):
        relay.verifier.identities[BOB] = evolve(before, granted=frozenset(granted))
        relay.change_feed.tell(Change("user", "bob"))
        await settle()
        phone = await relay.phone()
        if granted:
            assert (await bob.receive_type("status"))["status"] == "online"
        phone.link.close()
        await trio.sleep(6)
        if granted:
            assert (await bob.receive_type("status"))["status"] == "offline"
        await bob.send({"type": "unsubscribe", "streamId": "none", "id": "mark"})
        assert (await bob.receive())["id"] == "mark"


async def test_a_grant_that_is_withdrawn_and_given_while_nobody_streams_counts(
    relay: MemoryRelay,
) -> None:
    bob = await relay.login(BOB)
    before = relay.verifier.identities[BOB]
    assert isinstance(before, User)
    await bob.ask({**WATCH, "streamId": "front-door"})
    for granted in ({"front-door"}, set(), {"*"}, set(), {"front-door"}):
        phone = await relay.phone()
        phone.link.close()
        await trio.sleep(6)
        relay.verifier.identities[BOB] = evolve(before, granted=frozenset(granted))
        relay.change_feed.tell(Change("user", "bob"))
        await settle()
    phone = await relay.phone()
    await phone.send(FRAME)
    assert (await bob.receive_type("video-frame"))["seq"] == 1


async def test_a_subscription_to_a_stream_that_does_not_exist_costs_little_memory(
    relay: MemoryRelay,
) -> None:
    client = await watch_nothing(relay, 100)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(500):
            await client.ask({**WATCH, "streamId": f"other-{number}"})
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / 500 < 2500


async def test_a_user_may_have_so_many_subscriptions_on_all_connections(relay: MemoryRelay) -> None:
    relay.guard = Guard(session_limits=SessionLimits(max_subscriptions_of_user=5))
    first, second = await watch_nothing(relay, 3), await watch_nothing(relay, 2)
    reply = await second.ask({**WATCH, "streamId": "one-more"})
    assert reply["code"] == "TOO_MANY_CONNECTIONS"
    assert reply["retryAfter"] > 0
    assert (await second.ask({**WATCH, "streamId": "none-1"}))["code"] == "SUBSCRIBED"  # again
    ann, sentry = await watch_nothing(relay, 5, ANN), await watch_nothing(relay, 6, SENTRY)
    assert (await ann.ask({**WATCH, "streamId": "x"}))["code"] == "TOO_MANY_CONNECTIONS"
    assert (await sentry.ask({**WATCH, "streamId": "x"}))["code"] == "SUBSCRIBED"
    await first.ask({"type": "unsubscribe", "streamId": "none-0"})
    assert (await second.ask({**WATCH, "streamId": "one-more"}))["code"] == "SUBSCRIBED"
    first.link.close()
    await settle()
    assert (await second.ask({**WATCH, "streamId": "another"}))["code"] == "SUBSCRIBED"


async def test_the_list_of_streams_has_a_rate(relay: MemoryRelay) -> None:
    relay.guard = Guard(session_limits=SessionLimits(stream_list_rate=RateLimiter("3/minute")))
    clients = [await relay.login(), await relay.login()]
    replies = [await each.ask({"type": "streams"}) for each in clients * 2]
    assert [each["code"] for each in replies] == [*["STREAMS"] * 3, "RATE_LIMITED"]
    assert replies[-1]["retryAfter"] > 0
    assert (await (await relay.login(BOB)).ask({"type": "streams"}))["code"] == "STREAMS"


# -- pages


async def pages(client: Client, **request: Any) -> list[dict[str, Any]]:
    """All pages of the list."""
    read = [await client.ask({"type": "streams", **request})]
    while read[-1].get("more"):
        last = read[-1]["streams"][-1]["streamId"]
        read.append(await client.ask({"type": "streams", "after": last, **request}))
    return read


@pytest.mark.parametrize("msgpack", [False, True])
async def test_a_list_of_large_metadata_comes_in_pages(relay: MemoryRelay, msgpack: bool) -> None:
    for number in range(12):
        phone = await relay.login()
        metadata = {"big": "x" * 63_000, "number": number}
        await phone.ask({"type": "register", "streamId": f"cam-{number}", "metadata": metadata})
    client = await relay.login(msgpack=msgpack)
    read = await pages(client)
    assert len(read) == 3
    assert all(len(str(page)) < 300_000 for page in read)
    listed = [each for page in read for each in page["streams"]]
    assert [each["streamId"] for each in listed] == sorted(f"cam-{n}" for n in range(12))
    assert all(each["streamId"] == f"cam-{each['metadata']['number']}" for each in listed)


async def test_a_page_has_at_most_as_many_streams_as_asked_for(relay: MemoryRelay) -> None:
    for number in range(5):
        await relay.phone(f"cam-{number}")
    client = await relay.login()
    sizes = [len(page["streams"]) for page in await pages(client, limit=2)]
    assert sizes == [2, 2, 1]
    assert "more" not in await client.ask({"type": "streams", "limit": 5})
    assert (await client.ask({"type": "streams", "after": "cam-4"}))["streams"] == []
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after": ""}, {"after": 7}):
        assert (await client.ask({"type": "streams", **wrong}))["code"] == "INVALID_MESSAGE"


async def test_a_page_can_follow_a_stream_that_is_gone(relay: MemoryRelay) -> None:
    phones = [await relay.phone(f"cam-{number}") for number in range(3)]
    client = await relay.login()
    await client.ask({"type": "streams", "limit": 1})
    phones[0].link.close()
    await trio.sleep(6)
    reply = await client.ask({"type": "streams", "after": "cam-0"})
    assert [each["streamId"] for each in reply["streams"]] == ["cam-1", "cam-2"]


async def test_metadata_that_grows_as_json_counts_as_it_is_sent(relay: MemoryRelay) -> None:
    for number in range(3):
        phone = await relay.login(msgpack=True)
        metadata = {"big": "\x01" * 40_000}
        await phone.ask({"type": "register", "streamId": f"cam-{number}", "metadata": metadata})
    assert len(await pages(await relay.login())) == 3


async def test_a_service_lists_the_streams_in_its_scope(relay: MemoryRelay) -> None:
    scope = frozenset({"cam-1", "cam-3", "nowhere"})
    relay.verifier.identities["scoped"] = Service("scoped", scope, alerts=False, operate=False)
    for number in range(5):
        await relay.phone(f"cam-{number}")
    client = await relay.login("scoped")
    ids = [each["streamId"] for page in await pages(client, limit=1) for each in page["streams"]]
    assert ids == ["cam-1", "cam-3"]
