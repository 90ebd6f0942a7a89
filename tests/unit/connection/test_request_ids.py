"""Each reply names the request that it answers, whatever came in between."""

from __future__ import annotations

import math

import pytest

from tests.unit.memory import ANN, MemoryRelay

pytestmark = pytest.mark.mock_clock


async def test_a_register_that_comes_too_late_is_named_in_the_goodbye(relay: MemoryRelay) -> None:
    early = await relay.login()
    await relay.phone()
    await early.send({"type": "register", "streamId": "front-door", "id": "late"})
    error, close = await early.hear_end()
    assert (error["code"], error["id"], close[0]) == ("SUPERSEDED", "late", 4502)


async def test_who_is_superseded_without_asking_for_anything_gets_no_id(relay: MemoryRelay) -> None:
    phone = await relay.login()
    await phone.ask({"type": "register", "streamId": "front-door", "id": "first"})
    await relay.phone()
    error, _ = await phone.hear_end()
    assert error["code"] == "SUPERSEDED"
    assert "id" not in error


async def test_an_auth_that_is_under_way_at_the_deadline_is_named_in_the_goodbye(
    relay: MemoryRelay,
) -> None:
    relay.verifier.delay = 100
    client = await relay.open()
    await client.send({"type": "auth", "token": ANN, "id": 7})
    error, close = await client.hear_end()
    assert (error["code"], error["id"], close[0]) == ("AUTH_UNAVAILABLE", 7, 4013)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
async def test_an_id_that_is_no_number_is_refused_and_not_repeated(
    relay: MemoryRelay, odd: float
) -> None:
    client = await relay.login(msgpack=True)
    for request in ({"type": "streams"}, {"type": "video-frame", "data": b""}, {"type": "ack"}):
        reply = await client.ask({**request, "id": odd})
        assert reply["code"] == "INVALID_MESSAGE"
        assert "id" not in reply
    assert (await client.ask({"type": "streams", "id": 1.5}))["id"] == 1.5


async def test_an_auth_whose_id_is_no_number_is_told_so(relay: MemoryRelay) -> None:
    client = await relay.open(msgpack=True)
    reply = await client.ask({"type": "auth", "token": ANN, "id": math.nan})
    assert (reply["code"], reply["message"][-9:]) == ("INVALID_MESSAGE", "at `$.id`")
