"""Links to the pictures of one stream: what they are good for, and when they end."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog.testing
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from relay.guard.connection_limits import Caps, ConnectionLimits
from relay.guard.failed_auths import FailedAuths
from relay.guard.guard import Guard
from relay.guard.rates import RateLimiter
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.model.access.link import LINK_PREFIX
from relay.protocol.endings import Ending
from tests.unit.memory import Client, MemoryRelay
from tests.unit.memory.verifier import ANN, BOB, SENTRY
from tests.unit.web.pictures.gallery import (
    MemoryLinks,
    answer,
    open_gallery,
    picture,
    send_picture,
)

pytestmark = pytest.mark.mock_clock

UNKNOWN = f"{LINK_PREFIX}{'x' * 22}"


@pytest.fixture
async def links(relay: MemoryRelay) -> MemoryLinks:
    return open_gallery(relay)


@pytest.fixture
async def phone(relay: MemoryRelay, links: MemoryLinks) -> Client:
    phone = await relay.phone()
    await send_picture(phone, picture())
    return phone


async def make(relay: MemoryRelay, *, token: str = ANN, **options: Any) -> str:
    """The URL of a new link."""
    body = {"streamId": "front-door", "what": "mjpeg", **options}
    made = await answer(relay, "/links", method="POST", token=token, body=body)
    assert made.status == 201, bytes(made.received)
    url: str = json.loads(await made.body())["url"]
    return url


async def test_a_link_shows_what_it_is_for_without_a_token(
    relay: MemoryRelay, phone: Client
) -> None:
    live = await answer(relay, await make(relay), token=None)
    assert (live.status, (await live.part())[1]) == (200, picture())
    still = await answer(relay, await make(relay, what="still"), token=None)
    assert (still.status, await still.body()) == (200, picture())
    assert still.headers["cross-origin-resource-policy"] == "cross-origin"
    assert still.headers["referrer-policy"] == "no-referrer"
    assert still.headers["cache-control"] == "private, no-store"


async def test_it_is_for_one_stream_and_one_use(relay: MemoryRelay, phone: Client) -> None:
    url = await make(relay, what="still")
    other_use = await answer(relay, url.replace("latest.jpg", "live.mjpeg"), token=None)
    other_stream = await answer(relay, url.replace("front", "back"), token=None)
    unknown = await answer(relay, f"/streams/front-door/latest.jpg?link={UNKNOWN}", token=None)
    assert {each.status for each in (other_use, other_stream, unknown)} == {401}
    assert await other_use.body() == await other_stream.body() == await unknown.body()


@pytest.mark.parametrize(
    "path", ["/streams", "/alerts", "/links", "/streams/front-door/latest.jpg"]
)
async def test_its_capability_is_no_token(relay: MemoryRelay, phone: Client, path: str) -> None:
    capability = (await make(relay, what="still")).partition("link=")[2]
    assert (await answer(relay, path, token=capability)).status == 401
    client = await relay.open()
    assert (await client.ask({"type": "auth", "token": capability}))["code"] == "AUTH_FAILED"


@pytest.mark.parametrize("link", ["", "x", UNKNOWN[:-1], UNKNOWN + "x", "%00" * 20, "%ff" * 33])
async def test_what_is_no_link_lets_nobody_in(relay: MemoryRelay, phone: Client, link: str) -> None:
    got = await answer(relay, f"/streams/front-door/latest.jpg?link={link}", token=None)
    assert got.status in {400, 401}


async def test_a_token_and_a_link_together_are_refused(relay: MemoryRelay, phone: Client) -> None:
    assert (await answer(relay, await make(relay), token=ANN)).status == 400


async def test_only_so_many_use_it_at_a_time(relay: MemoryRelay, phone: Client) -> None:
    url = await make(relay, readers=2)
    readers = [await answer(relay, url, token=None) for _ in range(2)]
    third = await answer(relay, url, token=None)
    assert [each.status for each in readers] == [200, 200]
    assert (third.status, "retry-after" in third.headers) == (429, True)
    readers[0].leave()
    await wait_all_tasks_blocked()
    assert (await answer(relay, url, token=None)).status == 200


async def test_readers_on_other_relays_count(
    relay: MemoryRelay, links: MemoryLinks, phone: Client
) -> None:
    url = await make(relay, readers=2)
    links.readers.append("id0")
    reader = await answer(relay, url, token=None)
    assert [reader.status, (await answer(relay, url, token=None)).status] == [200, 429]
    for number in range(2):
        await trio.sleep(20.0)
        await send_picture(phone, picture(number))
    assert links.kept == 2
    reader.leave()
    await wait_all_tasks_blocked()
    assert links.readers == ["id0"]


async def test_strangers_do_not_push_out_the_connections_of_the_maker(relay: MemoryRelay) -> None:
    caps = Caps(connections=9, per_address=9, per_user=1, unauthenticated=9)
    relay.guard = Guard(connections=ConnectionLimits(caps))
    open_gallery(relay)
    phone = await relay.phone()
    await send_picture(phone, picture())
    assert (await answer(relay, await make(relay), token=None)).status == 429
    assert relay.connections[0].peer.ending is None


async def test_guesses_are_limited_as_failed_attempts_to_authenticate_are(
    relay: MemoryRelay,
) -> None:
    failures = FailedAuths(RateLimiter("5/minute"), RateLimiter("5/minute"), 60.0)
    relay.guard = Guard(failed_auths=failures)
    open_gallery(relay)
    statuses = []
    for number in range(8):
        guess = f"{LINK_PREFIX}{number:022}"
        got = await answer(relay, f"/streams/front-door/latest.jpg?link={guess}", token=None)
        statuses.append(got.status)
    assert statuses == [401] * 5 + [429] * 3


# -- how it ends


async def ended(relay: MemoryRelay, phone: Client, url: str) -> Any:
    """A reader whose link stops to be good for it: what ends it is to be done in the block."""
    reader = await answer(relay, url, token=None)
    await reader.part()
    return reader


async def test_when_it_is_revoked_its_readers_get_nothing_more(
    relay: MemoryRelay, phone: Client
) -> None:
    relay.nursery.start_soon(relay.watch.run)
    url = await make(relay)
    reader = await ended(relay, phone, url)
    (link,) = json.loads(await (await answer(relay, "/links")).body())["links"]
    assert (await answer(relay, f"/links/{link['id']}", method="DELETE")).status == 200
    await trio.sleep(1.0)
    await send_picture(phone, picture(1))
    assert await reader.body() == b""
    assert (await answer(relay, url, token=None)).status == 401


async def test_when_it_expires_its_readers_are_ended(relay: MemoryRelay, phone: Client) -> None:
    reader = await ended(relay, phone, await make(relay, seconds=50))
    await trio.sleep(49.0)
    await send_picture(phone, picture(1))
    assert (await reader.part())[1] == picture(1)
    await trio.sleep(2.0)
    assert await reader.body() == b""
    assert Ending.SESSION_EXPIRED in {each.peer.ending for each in relay.connections}


async def test_when_its_maker_is_gone_its_readers_are_ended(
    relay: MemoryRelay, links: MemoryLinks, phone: Client
) -> None:
    relay.nursery.start_soon(relay.watch.run)
    reader = await ended(relay, phone, await make(relay))
    links.deleted.add("ann")
    relay.change_feed.tell(Change("user", "ann"))
    await trio.sleep(1.0)
    await send_picture(phone, picture(1))
    assert await reader.body() == b""


async def test_when_the_stream_gets_another_owner_its_readers_are_ended(
    relay: MemoryRelay, phone: Client
) -> None:
    url = await make(relay)
    reader = await ended(relay, phone, url)
    relay.hub.change_owner("front-door", "bob")
    assert await reader.body() == b""
    assert (await answer(relay, url, token=None)).status == 404


async def test_when_the_maker_loses_the_grant_its_readers_are_ended(
    relay: MemoryRelay, links: MemoryLinks, phone: Client
) -> None:
    relay.nursery.start_soon(relay.watch.run)
    relay.verifier.grants["bob"] = frozenset({"front-door"})
    bob = relay.verifier.identities[BOB]
    assert isinstance(bob, User)
    relay.verifier.identities[BOB] = evolve(bob, granted=frozenset({"front-door"}))
    reader = await ended(relay, phone, await make(relay, token=BOB))
    relay.verifier.grants["bob"] = frozenset()
    relay.change_feed.tell(Change("user", "bob"))
    await trio.sleep(1.0)
    await send_picture(phone, picture(1))
    assert await reader.body() == b""


# -- who makes which


async def test_nobody_makes_a_link_to_what_they_may_not_see(
    relay: MemoryRelay, phone: Client
) -> None:
    body = {"streamId": "front-door", "what": "still"}
    refused = await answer(relay, "/links", method="POST", token=BOB, body=body)
    unknown = await answer(
        relay, "/links", method="POST", token=BOB, body={**body, "streamId": "nowhere"}
    )
    assert (refused.status, unknown.status) == (404, 404)
    assert await refused.body() == await unknown.body()


async def test_services_have_none(relay: MemoryRelay, phone: Client) -> None:
    body = {"streamId": "front-door", "what": "still"}
    assert (await answer(relay, "/links", method="POST", token=SENTRY, body=body)).status == 403


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 0},
        {"seconds": 86_401},
        {"seconds": 1e99},
        {"readers": 0},
        {"readers": 101},
        {"what": "video"},
        {"streamId": "a b"},
        {"more": 1},
    ],
)
async def test_absurd_links_are_not_made(
    relay: MemoryRelay, links: MemoryLinks, phone: Client, change: dict[str, Any]
) -> None:
    body = {"streamId": "front-door", "what": "still", **change}
    assert (await answer(relay, "/links", method="POST", body=body)).status == 400
    assert not links.made


async def test_links_of_others_are_neither_listed_nor_revoked(
    relay: MemoryRelay, links: MemoryLinks, phone: Client
) -> None:
    await make(relay)
    assert json.loads(await (await answer(relay, "/links", token=BOB)).body()) == {"links": []}
    assert (await answer(relay, "/links/id0", method="DELETE", token=BOB)).status == 404
    assert links.made


# -- what is told of it


async def test_no_audit_log_list_or_figure_holds_the_capability(
    relay: MemoryRelay, links: MemoryLinks, phone: Client
) -> None:
    with structlog.testing.capture_logs() as logged:
        url = await make(relay)
        capability = url.partition("link=")[2]
        reader = await answer(relay, url, token=None)
        await reader.part()
        await answer(relay, url.replace("front", "back"), token=None)
        refused = await (await answer(relay, f"{url}&width=1", token=None)).body()
        listed = await (await answer(relay, "/links")).body()
    told = [str(logged), str(relay.audit._waiting), str(relay.hub.figures()), str(relay.metrics)]
    told += [refused.decode(), listed.decode(), repr(await links.find(capability))]
    assert "id0" in told[1]
    assert not [each for each in told if capability in each]
