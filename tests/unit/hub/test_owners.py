"""What happens to a live stream when it gets another owner."""

from __future__ import annotations

import pytest
import trio
from attrs import evolve

from relay.model.access.change import EVERYTHING, Change
from relay.model.access.identity import User
from tests.unit.hub.test_grants import frame, heard, settle, short
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

LOST = ("UNAUTHORIZED", (4009, "stream has another owner"))


def change_owner(relay: MemoryRelay, user_id: str | None, *, told: bool = True) -> None:
    """Change the owner as SQL does, which notifies the relay."""
    if user_id is None:
        del relay.owners.owners["front-door"]
    else:
        relay.owners.owners["front-door"] = user_id
    if told:
        relay.change_feed.tell(Change("stream", "front-door"))


async def how_it_ended(client: Client) -> tuple[str, tuple[int, str]]:
    error, close = await client.hear_end()
    return error["code"], close


async def test_the_former_owner_gets_nothing_of_the_new_one(relay: MemoryRelay) -> None:
    phone, ann = await relay.phone(), await relay.viewer()
    await frame(phone)
    await heard(ann)
    change_owner(relay, "bob")
    assert await how_it_ended(phone) == LOST
    assert short(await heard(ann)) == ["offline"]
    new = await relay.phone(token=BOB)
    await frame(new)
    await new.send({"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"})
    await settle()
    assert await heard(ann) == []
    bob = await relay.viewer(token=BOB)
    assert short(await heard(bob)) == [1]


async def test_a_registration_of_the_new_owner_is_enough(relay: MemoryRelay) -> None:
    # The notification is lost, and the older connection is not that of the former owner.
    new = await relay.login(BOB)
    phone, ann = await relay.phone(), await relay.viewer()
    sentry = await relay.viewer(token=SENTRY)
    await frame(phone)
    await heard(ann)
    epoch = (await sentry.receive_type("status"))["epoch"]
    await heard(sentry)
    await settle()
    change_owner(relay, "bob", told=False)
    reply = await new.ask({"type": "register", "streamId": "front-door"})
    assert reply["code"] == "REGISTERED"
    assert reply["epoch"] > epoch
    assert await how_it_ended(phone) == LOST
    await frame(new)
    assert short(await heard(ann)) == ["offline"]
    # Who may see both sees one life end and another begin.
    assert short(await heard(sentry)) == ["offline", "online", "streaming", 1]


async def test_a_stream_that_waits_for_its_producer_ends_at_once(relay: MemoryRelay) -> None:
    phone, ann = await relay.phone(), await relay.viewer()
    phone.link.close()
    await settle()
    change_owner(relay, "bob")
    await settle()
    assert short(await heard(ann)) == ["offline"]
    await relay.phone(token=BOB)
    await trio.sleep(60)  # the grace of the first one must not end the second
    listed = await (await relay.login(BOB)).ask({"type": "streams"})
    assert [each["streamId"] for each in listed["streams"]] == ["front-door"]
    assert relay.hub.count_streams_of("ann", but=()) == 0
    assert relay.hub.count_streams_of("bob", but=()) == 1


async def test_who_may_see_the_new_life_gets_it_whatever_was_before(relay: MemoryRelay) -> None:
    bob = relay.verifier.identities[BOB]
    assert isinstance(bob, User)
    viewer = await relay.viewer(token=BOB)
    phone = await relay.phone()
    for granted in ({"front-door"}, set()):
        relay.verifier.identities[BOB] = evolve(bob, granted=frozenset(granted))
        relay.change_feed.tell(Change("user", "bob"))
        await settle()
    await frame(phone)
    assert short(await heard(viewer)) == ["online", "offline"]
    change_owner(relay, "bob")
    await settle()
    new = await relay.phone(token=BOB)
    await frame(new)
    assert short(await heard(viewer)) == ["online", "streaming", 1]


async def test_a_list_of_streams_follows(relay: MemoryRelay) -> None:
    await relay.phone()
    ann, bob = await relay.login(ANN), await relay.login(BOB)
    for client, streams in ((ann, 1), (bob, 0)):
        assert len((await client.ask({"type": "streams"}))["streams"]) == streams
    change_owner(relay, "bob")
    await settle()
    assert short(await heard(ann)) == ["offline"]
    assert await heard(bob) == []
    await relay.phone(token=BOB)
    assert await heard(ann) == []
    assert short(await heard(bob)) == ["online"]


async def test_alerts_reach_the_owner_that_they_are_of(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await settle()
    change_owner(relay, "bob", told=False)
    bob = await relay.login(BOB)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    assert (await bob.ask(alert))["code"] == "ALERT_ACCEPTED"
    assert await heard(phone) == []


async def test_a_stream_without_an_owner_ends(relay: MemoryRelay) -> None:
    phone, sentry = await relay.phone(), await relay.viewer(token=SENTRY)
    change_owner(relay, None)
    assert await how_it_ended(phone) == LOST
    assert short(await heard(sentry)) == ["offline"]
    await relay.phone(token=BOB)
    assert short(await heard(sentry)) == ["online"]


async def test_an_owner_who_is_still_the_owner_notices_nothing(relay: MemoryRelay) -> None:
    phone, ann = await relay.phone(), await relay.viewer()
    relay.change_feed.tell(Change("stream", "front-door"), EVERYTHING, Change("stream", "another"))
    await settle()
    assert relay.owners.readings > 0
    await frame(phone)
    assert short(await heard(ann)) == ["streaming", 1]


async def test_a_change_between_the_claim_and_the_registration_is_noticed(
    relay: MemoryRelay,
) -> None:
    phone = await relay.login()

    def change() -> None:
        # The relay hears of it while the claim, which read the former owner, is being answered.
        relay.owners.on_answer = lambda: None
        relay.owners.owners["front-door"] = "bob"
        relay.owner_watch.note(Change("stream", "front-door"))

    relay.owners.on_answer = change
    await phone.send({"type": "register", "streamId": "front-door"})
    assert (await phone.receive())["code"] == "REGISTERED"
    assert await how_it_ended(phone) == LOST


@pytest.mark.parametrize("installed", [True, False])
async def test_a_change_is_noticed_though_no_notification_comes(
    relay: MemoryRelay, installed: bool
) -> None:
    relay.change_feed.installed_ = installed
    phone = await relay.phone()
    change_owner(relay, "bob", told=False)
    assert await how_it_ended(phone) == LOST


async def test_while_the_store_is_away_streams_go_on(relay: MemoryRelay) -> None:
    phone, ann = await relay.phone(), await relay.viewer()
    relay.owners.away = True
    change_owner(relay, "bob")
    await settle()
    await frame(phone)
    assert short(await heard(ann)) == ["streaming", 1]
    relay.owners.away = False
    assert await how_it_ended(phone) == LOST
