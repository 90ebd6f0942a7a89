"""What a change of permissions does to those who watch already."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from relay.hub.ledger import Drop
from relay.model.access.change import Change
from relay.model.access.identity import User
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

GRANTED = [("front-door",), ("*",), ("front-door", "*"), ("front-*",), ("front-door*", "x*")]
OF_OTHERS = [
    "back-door",
    "front-door-*",
    "ront-door*",
    "front-doo",
    "front-*r",
    "**",
    "*-door",
    ".",
]


def grant(relay: MemoryRelay, *stream_ids: str) -> None:
    """Let Bob watch these streams of Ann's and no others, from now on."""
    bob = relay.verifier.identities[BOB]
    assert isinstance(bob, User)
    relay.verifier.identities[BOB] = evolve(bob, granted=frozenset(stream_ids))
    relay.change_feed.tell(Change("user", "bob"))


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def frame(phone: Client, **fields: Any) -> None:
    await phone.send({"type": "video-frame", "data": "AAAA", **fields})
    await settle()


async def heard(client: Client) -> list[dict[str, Any]]:
    """What was said to a client until now, in short."""
    await client.send({"type": "unsubscribe", "streamId": "none", "id": "mark"})
    said = []
    while (message := await client.receive()).get("id") != "mark":
        said.append(message)
    return said


def short(said: list[dict[str, Any]]) -> list[Any]:
    return [each.get("status", each.get("seq", each["type"])) for each in said]


@pytest.mark.parametrize("granted", GRANTED, ids=str)
async def test_a_grant_begins_the_stream_and_its_withdrawal_ends_it(
    relay: MemoryRelay, granted: tuple[str, ...]
) -> None:
    phone, bob = await relay.phone(), await relay.viewer(token=BOB)
    await frame(phone)
    assert await heard(bob) == []
    grant(relay, *granted)
    await settle()
    assert short(await heard(bob)) == ["streaming", 1]
    await frame(phone)
    assert short(await heard(bob)) == [2]
    grant(relay)
    await settle()
    said = await heard(bob)
    assert short(said) == ["offline"]
    assert said[0]["epoch"] == 0
    await frame(phone)
    assert await heard(bob) == []
    grant(relay, *granted)
    await settle()
    assert short(await heard(bob)) == ["streaming", 3]


@pytest.mark.parametrize("granted", OF_OTHERS)
async def test_a_grant_for_another_stream_changes_nothing(relay: MemoryRelay, granted: str) -> None:
    phone, bob = await relay.phone(), await relay.viewer(token=BOB)
    grant(relay, granted)
    await frame(phone)
    assert await heard(bob) == []


async def test_the_producer_hears_of_a_viewer_who_comes_and_goes_by_a_grant(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    await relay.viewer(token=BOB)
    grant(relay, "front-door")
    assert (await phone.receive_type("status"))["consumers"] == 1
    grant(relay)
    assert (await phone.receive_type("status"))["consumers"] == 0


async def test_a_stream_that_is_not_live_is_not_told_of(relay: MemoryRelay) -> None:
    bob = await relay.viewer(token=BOB)
    grant(relay, "front-door")
    await settle()
    assert await heard(bob) == []
    phone = await relay.phone()
    await frame(phone)
    assert short(await heard(bob)) == ["online", "streaming", 1]


@pytest.mark.parametrize("policy", ["latest", "lossless"])
async def test_what_waits_for_a_slow_viewer_is_not_sent_after_the_withdrawal(
    relay: MemoryRelay, policy: str
) -> None:
    phone = await relay.phone()
    grant(relay, "front-door")
    bob = await relay.viewer(token=BOB, policy=policy, window=1)
    for _ in range(5):
        await frame(phone)
    grant(relay)
    await settle()
    await bob.send({"type": "ack", "streamId": "front-door", "seq": 1})
    assert short(await heard(bob)) == ["streaming", 1, "offline"]
    ledger = relay.hub.ledger()
    assert ledger.waiting == 0
    assert ledger.accepted == ledger.written + sum(ledger.dropped.values())
    assert ledger.dropped[Drop.LEFT] >= 1
    grant(relay, "front-door")
    await settle()
    assert short(await heard(bob)) == ["streaming", 5]  # with a window of its own


async def test_what_was_not_acknowledged_before_the_withdrawal_closes_no_window_after_it(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    grant(relay, "front-door")
    bob = await relay.viewer(token=BOB, window=1)
    for _ in range(2):
        await frame(phone)
    grant(relay)
    await settle()
    grant(relay, "front-door")
    await settle()
    assert short(await heard(bob)) == ["streaming", 1, "offline", "streaming", 2]


async def test_a_viewer_of_deltas_begins_again_with_a_keyframe(relay: MemoryRelay) -> None:
    phone, bob = await relay.phone(), await relay.viewer(token=BOB)
    await frame(phone, keyframe=True)
    await frame(phone, keyframe=False)
    grant(relay, "front-door")
    await settle()
    await frame(phone, keyframe=False)
    await frame(phone, keyframe=True)
    assert short(await heard(bob)) == ["streaming", 1, 4]


async def test_an_audience_that_is_served_in_slices_loses_who_may_not_see_meanwhile(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    others = [await relay.viewer() for _ in range(200)]
    grant(relay, "front-door")
    bob = await relay.viewer(token=BOB)
    await phone.send({"type": "video-frame", "data": "AAAA"})
    first = relay.connections[1]
    assert first._session is not None
    ((_, consumer),) = first._session._consumers.values()
    for _ in range(1000):  # until the publish has begun; it has not come to the last then
        if consumer.ledger.written:
            break
        await trio.lowlevel.checkpoint()
    session = relay.connections[-1]._session
    assert session is not None
    assert isinstance(session.identity, User)
    session.become(evolve(session.identity, granted=frozenset()))
    await settle()
    assert "video-frame" not in [each["type"] for each in await heard(bob)]
    assert (await others[-1].receive_type("video-frame"))["seq"] == 1


async def test_alerts_end_with_the_grant_also_those_that_wait_for_a_replay(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    grant(relay, "front-door")
    bob = await relay.viewer(token=BOB)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    await phone.ask(alert)
    assert (await bob.receive_type("alert"))["alertId"] == 1
    relay.alerts.delay = 2
    await bob.send({"type": "alerts-since", "after": 1})
    await trio.sleep(1)
    await phone.ask(alert)  # held back while the page is read
    grant(relay)
    await trio.sleep(10)
    said = await heard(bob)
    assert [each["type"] for each in said] == ["status", "error"]
    assert said[-1]["code"] == "INVALID_MESSAGE"  # after what may not be seen


async def test_a_page_that_was_read_before_the_withdrawal_is_read_again(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    grant(relay, "front-door")
    bob = await relay.viewer(token=BOB)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    await phone.ask(alert)
    await bob.receive_type("alert")
    relay.alerts.answer_delay = 2
    await bob.send({"type": "alerts-since"})
    await trio.sleep(1)
    grant(relay)
    await trio.sleep(10)
    assert [each["type"] for each in await heard(bob)] == ["status", "success"]


async def test_the_list_of_streams_changes_with_the_grant(relay: MemoryRelay) -> None:
    await relay.phone()
    bob = await relay.login(BOB)
    assert (await bob.ask({"type": "streams"}))["streams"] == []
    grant(relay, "*")
    assert (await bob.receive())["status"] == "online"
    await relay.phone("back-door")
    assert (await bob.receive())["streamId"] == "back-door"
    grant(relay, "back-door")
    gone = await bob.receive()
    assert (gone["streamId"], gone["status"], gone["epoch"]) == ("front-door", "offline", 0)


async def test_a_grant_lets_nobody_produce_or_alert(relay: MemoryRelay) -> None:
    await relay.phone()
    grant(relay, "*")
    bob = await relay.login(BOB)
    reply = await bob.ask({"type": "register", "streamId": "front-door"})
    assert reply["code"] == "UNAUTHORIZED"
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    assert (await bob.ask(alert))["code"] == "UNAUTHORIZED"


async def test_an_alert_for_a_foreign_stream_reaches_nobody(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    assert (await (await relay.login(BOB)).ask(alert))["code"] == "UNAUTHORIZED"
    assert (await (await relay.login(SENTRY)).ask(alert))["code"] == "ALERT_ACCEPTED"
    assert len(relay.alerts.stored) == 1
    assert (await phone.receive_type("alert"))["alertId"] == 1


async def test_renewing_with_a_session_that_may_see_less_counts_at_once(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    bob_ = relay.verifier.identities[BOB]
    grant(relay, "front-door")
    bob = await relay.viewer(token=BOB)
    relay.verifier.identities[BOB] = bob_  # and nobody tells
    await bob.send({"type": "auth", "token": BOB})
    await settle()
    await frame(phone)
    said = await heard(bob)
    assert [each.get("status", each["type"]) for each in said] == ["offline", "success"]
    assert (await (await relay.login(ANN)).ask({"type": "streams"}))["streams"]
