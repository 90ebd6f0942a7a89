"""While the store is asked about an alert, what needs no store goes on."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from relay.connection.store_queue import MAX_QUEUED_REQUESTS, MAX_STANDSTILL
from tests.unit.memory import ANN, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

STREAM = "front-door"
FRAME = {"type": "video-frame", "data": "AAAA"}
SLOW = 5.0
"""Seconds that the store takes here."""
ASK_STORE = {"type": "alerts-since", "streamId": STREAM}


@pytest.fixture
async def slow(relay: MemoryRelay) -> MemoryRelay:
    relay.alerts.delay = SLOW
    return relay


async def replies(client: Client, number: int) -> list[Any]:
    """The ids of the next replies, in their order."""
    found: list[Any] = []
    while len(found) < number:
        message = await client.receive()
        if "id" in message:
            found.append(message["id"])
    return found


async def test_a_phone_goes_on_streaming(slow: MemoryRelay) -> None:
    phone, viewer = await slow.phone(STREAM), await slow.viewer(STREAM)
    await phone.send(ASK_STORE)
    with trio.fail_after(SLOW / 2):
        for seq in (1, 2):
            await phone.send(FRAME)
            assert (await viewer.receive_type("video-frame"))["seq"] == seq


async def test_a_viewer_s_acknowledgements_count(slow: MemoryRelay) -> None:
    phone, viewer = await slow.phone(STREAM), await slow.viewer(STREAM, window=1)
    await viewer.send(ASK_STORE)
    with trio.fail_after(SLOW / 2):
        for seq in (1, 2, 3):
            await phone.send(FRAME)
            assert (await viewer.receive_type("video-frame"))["seq"] == seq
            await viewer.send({"type": "ack", "streamId": STREAM, "seq": seq})


async def test_questions_that_need_no_store_are_answered(slow: MemoryRelay) -> None:
    await slow.phone(STREAM)
    viewer = await slow.viewer(STREAM)
    await viewer.send({**ASK_STORE, "id": "slow"})
    with trio.fail_after(SLOW / 2):
        await viewer.send({"type": "streams", "id": "list"})
        await viewer.send({"type": "unsubscribe", "streamId": STREAM, "id": "leave"})
        assert await replies(viewer, 2) == ["list", "leave"]
    assert await replies(viewer, 1) == ["slow"]


@pytest.mark.parametrize(
    "request_",
    [
        {"type": "auth", "token": ANN},
        {"type": "register", "streamId": "other"},
        {"type": "subscribe", "streamId": STREAM, "consumes": ["alert"]},
        {"type": "alert", "streamId": STREAM, "severity": "low", "message": "x"},
    ],
    ids=lambda request: str(request["type"]),
)
async def test_all_else_keeps_its_order(request_: dict[str, Any], slow: MemoryRelay) -> None:
    phone, start = await slow.phone(STREAM), trio.current_time()
    await phone.send({**ASK_STORE, "id": 1})
    await phone.send({**ASK_STORE, "id": 2})
    await phone.send({**request_, "id": 3})
    assert await replies(phone, 3) == [1, 2, 3]
    assert trio.current_time() - start == pytest.approx(2 * SLOW)


@pytest.mark.parametrize(
    "request_",
    [
        {"type": "auth", "token": ANN},
        {"type": "register", "streamId": STREAM},
        {"type": "register", "streamId": STREAM, "consumes": ["alert"], "alertsAfter": 0},
    ],
    ids=["auth", "register", "register with a position"],
)
async def test_frames_go_on_while_a_registration_or_session_is_renewed(
    request_: dict[str, Any], relay: MemoryRelay
) -> None:
    phone, viewer = await relay.phone(STREAM), await relay.viewer(STREAM)
    relay.verifier.delay = relay.owners.delay = SLOW
    await phone.send({**request_, "id": 1})
    await phone.send({"type": "subscribe", "streamId": "x", "consumes": ["alert"], "id": 2})
    await phone.send({"type": "unsubscribe", "streamId": "x", "id": 3})
    with trio.fail_after(SLOW / 2):
        for seq in (1, 2, 3):
            await phone.send(FRAME)
            assert (await viewer.receive_type("video-frame"))["seq"] == seq
    told = await replies(phone, 4 if "alertsAfter" in request_ else 3)
    assert list(dict.fromkeys(told)) == [1, 2, 3]
    await phone.send(FRAME)
    assert (await viewer.receive_type("video-frame"))["seq"] == 4


@pytest.mark.parametrize("away", [False, True])
async def test_acks_lists_and_leaving_go_on_while_a_session_is_renewed(
    relay: MemoryRelay, *, away: bool
) -> None:
    phone, viewer = await relay.phone(STREAM), await relay.viewer(STREAM, window=1)
    relay.verifier.delay, relay.verifier.away = SLOW, away
    await viewer.send({"type": "auth", "token": ANN, "id": "renewal"})
    with trio.fail_after(SLOW / 2):
        for seq in (1, 2, 3):
            await phone.send(FRAME)
            assert (await viewer.receive_type("video-frame"))["seq"] == seq
            await viewer.send({"type": "ack", "streamId": STREAM, "seq": seq})
        await viewer.send({"type": "streams", "id": "list"})
        await viewer.send({"type": "unsubscribe", "streamId": STREAM, "id": "leave"})
        assert await replies(viewer, 2) == ["list", "leave"]
    assert await replies(viewer, 1) == ["renewal"]


async def test_frames_of_the_stream_to_come_wait_for_its_registration(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(STREAM), await relay.viewer(STREAM)
    next_viewer = await relay.viewer("other")
    relay.owners.delay = SLOW
    await phone.send({"type": "register", "streamId": "other", "id": 1})
    await phone.send({"type": "unsubscribe", "streamId": "none", "id": 2})
    await phone.send({**FRAME, "streamId": STREAM})
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    await phone.send(FRAME)
    frame = await next_viewer.receive_type("video-frame")
    assert (frame["streamId"], frame["seq"]) == ("other", 1)
    assert trio.current_time() == pytest.approx(SLOW)
    assert await replies(phone, 2) == [1, 2]
    await viewer.send({"type": "unsubscribe", "streamId": "none", "id": 1})
    assert (await viewer.receive())["status"] == "offline"


async def test_frames_with_other_metadata_come_behind_it(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(STREAM), await relay.viewer(STREAM)
    relay.owners.delay = SLOW
    await phone.send({"type": "register", "streamId": STREAM, "metadata": {"codec": "h264"}})
    await phone.send(FRAME)
    assert (await viewer.receive())["metadata"] == {"codec": "h264"}
    assert (await viewer.receive_type("video-frame"))["seq"] == 1


async def test_what_comes_behind_a_registration_is_answered_behind_it(relay: MemoryRelay) -> None:
    relay.owners.delay = SLOW
    phone = await relay.login()
    await phone.send({"type": "register", "streamId": STREAM, "id": 1})
    await phone.send({"type": "streams", "id": 2})
    await phone.send({"type": "subscribe", "streamId": STREAM, "consumes": ["alert"], "id": 3})
    await phone.send({"type": "unsubscribe", "streamId": STREAM, "id": 4})
    await phone.send({"type": "streams", "id": 5})
    assert await replies(phone, 5) == [1, 2, 3, 4, 5]


async def test_a_registration_that_is_refused_leaves_the_stream_as_it_was(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(STREAM), await relay.viewer(STREAM)
    relay.owners.delay, relay.owners.away = SLOW, True
    await phone.send({"type": "register", "streamId": "other", "id": 1})
    await phone.send(FRAME)
    assert (await viewer.receive_type("video-frame"))["seq"] == 1


async def test_a_peer_can_leave_while_its_renewal_waits(relay: MemoryRelay) -> None:
    phone = await relay.phone(STREAM)
    relay.verifier.delay = relay.owners.delay = SLOW
    await phone.send({"type": "auth", "token": ANN, "id": 1})
    await phone.send({"type": "register", "streamId": STREAM, "id": 2})
    phone.link.close()
    await trio.sleep(3 * SLOW)
    assert not relay.hub.count().online


@pytest.mark.parametrize(
    "request_",
    [ASK_STORE, {"type": "alert", "streamId": STREAM, "severity": "low", "message": "x"}],
)
async def test_when_too_many_wait_for_long_more_are_refused_and_frames_go_on(
    request_: dict[str, Any], slow: MemoryRelay
) -> None:
    phone, viewer = await slow.phone(STREAM), await slow.viewer(STREAM)
    start = trio.current_time()
    for number in range(MAX_QUEUED_REQUESTS + 3):
        waits = number < MAX_QUEUED_REQUESTS
        await phone.send({**(ASK_STORE if waits else request_), "id": number})
        await phone.send(FRAME)
    for seq in range(1, MAX_QUEUED_REQUESTS + 4):
        assert (await viewer.receive_type("video-frame"))["seq"] == seq
    assert trio.current_time() - start == pytest.approx(MAX_STANDSTILL)
    refused = [await phone.receive_type("error") for _ in range(3)]
    assert [each["id"] for each in refused] == [8, 9, 10]
    assert {each["code"] for each in refused} == {"STORE_UNAVAILABLE"}
    assert all(each["retryAfter"] and each["streamId"] == STREAM for each in refused)
    assert await replies(phone, MAX_QUEUED_REQUESTS) == list(range(MAX_QUEUED_REQUESTS))


async def test_none_is_refused_while_the_store_answers(relay: MemoryRelay) -> None:
    relay.alerts.delay = MAX_STANDSTILL / 2
    phone = await relay.phone(STREAM)
    many = list(range(3 * MAX_QUEUED_REQUESTS))
    async with trio.open_nursery() as nursery:
        for number in many:
            nursery.start_soon(phone.send, {**ASK_STORE, "id": number})
            await trio.testing.wait_all_tasks_blocked()
        told = [await phone.receive_type("success") for _ in many]
    assert [each["id"] for each in told] == many


async def test_a_bug_in_one_ends_its_connection(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*_: object, **__: object) -> None:
        await trio.sleep(1)
        raise RuntimeError("a bug in the history")

    monkeypatch.setattr(type(relay.alerts), "history", break_down)
    viewer = await relay.viewer(STREAM)
    await viewer.send(ASK_STORE)
    assert await viewer.closing() == (1011, "internal error")
