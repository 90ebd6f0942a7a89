"""Services that produce streams in the name of a user."""

from __future__ import annotations

import pytest
from attrs import evolve

from relay.guard.guard import Guard, SessionLimits
from relay.model.access.change import Change
from relay.model.access.identity import Service
from tests.unit.hub.test_grants import frame, heard, short
from tests.unit.memory import ANN, BOB, CAMERA, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock


async def register(client: Client, stream_id: str | None = "porch") -> str:
    named = {} if stream_id is None else {"streamId": stream_id}
    code: str = (await client.ask({"type": "register", **named}))["code"]
    return code


async def test_a_user_owns_and_watches_what_a_service_produces_in_their_name(
    relay: MemoryRelay,
) -> None:
    camera = await relay.login(CAMERA)
    assert await register(camera) == "REGISTERED"
    assert relay.owners.owners["porch"] == "ann"
    ann = await relay.viewer("porch", token=ANN)
    await frame(camera, stream_id="porch")
    assert short(await heard(ann)) == ["streaming", 1]


@pytest.mark.parametrize("stream_id", ["porch2", "site-a", "site-b:1", "yard", None])
async def test_a_service_registers_only_what_its_scope_covers(
    relay: MemoryRelay, stream_id: str | None
) -> None:
    camera = await relay.login(CAMERA)
    assert await register(camera, stream_id) == "UNAUTHORIZED"
    assert not relay.owners.owners
    assert await register(camera, "site-a:1") == "REGISTERED"


async def test_a_service_takes_no_stream_of_another_user(relay: MemoryRelay) -> None:
    relay.owners.owners["porch"] = "bob"
    assert await register(await relay.login(CAMERA)) == "UNAUTHORIZED"
    assert relay.owners.owners["porch"] == "bob"


async def test_what_a_service_registered_is_taken_for_other_users_and_not_for_its_own(
    relay: MemoryRelay,
) -> None:
    camera = await relay.login(CAMERA)
    await register(camera)
    assert await register(await relay.login(BOB)) == "UNAUTHORIZED"
    assert await register(await relay.login(ANN)) == "REGISTERED"
    error, _close = await camera.hear_end()
    assert error["code"] == "SUPERSEDED"


async def test_a_service_without_the_scope_registers_nothing(relay: MemoryRelay) -> None:
    assert await register(await relay.login(SENTRY)) == "UNAUTHORIZED"


async def test_the_streams_of_a_service_count_as_those_of_its_user(relay: MemoryRelay) -> None:
    relay.guard = Guard(session_limits=SessionLimits(max_streams=1))
    await register(await relay.login(CAMERA), "site-a:1")
    assert await register(await relay.login(CAMERA), "site-a:2") == "TOO_MANY_CONNECTIONS"
    assert await register(await relay.login(ANN), "front-door") == "TOO_MANY_CONNECTIONS"


async def test_a_service_sees_nothing_of_what_it_produces(relay: MemoryRelay) -> None:
    camera = await relay.login(CAMERA)
    await register(camera)
    ann, viewer = await relay.viewer("porch"), await relay.viewer("porch", token=CAMERA)
    await frame(camera, stream_id="porch")
    assert short(await heard(viewer)) == []
    assert short(await heard(ann)) == ["streaming", 1]


async def test_a_service_that_loses_its_scope_loses_its_stream(relay: MemoryRelay) -> None:
    camera = await relay.login(CAMERA)
    await register(camera)
    before = relay.verifier.identities[CAMERA]
    assert isinstance(before, Service)
    relay.verifier.identities[CAMERA] = evolve(before, produce=frozenset({"yard"}))
    relay.change_feed.tell(Change("service", "camera"))
    error, close = await camera.hear_end()
    assert (error["code"], close[0]) == ("UNAUTHORIZED", 4009)


async def test_a_service_ends_with_its_user(relay: MemoryRelay) -> None:
    camera = await relay.login(CAMERA)
    await register(camera)
    del relay.verifier.identities[CAMERA]  # as the store answers when the user is gone
    relay.change_feed.tell(Change("user", "ann"))
    error, _close = await camera.hear_end()
    assert error["code"] == "SESSION_REVOKED"
