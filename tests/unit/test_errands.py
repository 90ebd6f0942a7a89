"""While the store is asked about an alert, what needs no store goes on."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from relay.errands import MOST
from tests.unit.memory import ANN, Client, Relay

pytestmark = pytest.mark.mock_clock

STREAM = "front-door"
FRAME = {"type": "video-frame", "data": "AAAA"}
SLOW = 5.0
"""Seconds that the store takes here."""
ASK_STORE = {"type": "alerts-since", "streamId": STREAM}


@pytest.fixture
async def slow(relay: Relay) -> Relay:
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


async def test_a_phone_goes_on_streaming(slow: Relay) -> None:
    phone, viewer = await slow.phone(STREAM), await slow.viewer(STREAM)
    await phone.send(ASK_STORE)
    with trio.fail_after(SLOW / 2):
        for seq in (1, 2):
            await phone.send(FRAME)
            assert (await viewer.receive_type("video-frame"))["seq"] == seq


async def test_a_viewer_s_acknowledgements_count(slow: Relay) -> None:
    phone, viewer = await slow.phone(STREAM), await slow.viewer(STREAM, window=1)
    await viewer.send(ASK_STORE)
    with trio.fail_after(SLOW / 2):
        for seq in (1, 2, 3):
            await phone.send(FRAME)
            assert (await viewer.receive_type("video-frame"))["seq"] == seq
            await viewer.send({"type": "ack", "streamId": STREAM, "seq": seq})


async def test_questions_that_need_no_store_are_answered(slow: Relay) -> None:
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
async def test_all_else_keeps_its_order(request_: dict[str, Any], slow: Relay) -> None:
    phone, start = await slow.phone(STREAM), trio.current_time()
    await phone.send({**ASK_STORE, "id": 1})
    await phone.send({**ASK_STORE, "id": 2})
    await phone.send({**request_, "id": 3})
    assert await replies(phone, 3) == [1, 2, 3]
    assert trio.current_time() - start == pytest.approx(2 * SLOW)


async def test_when_too_many_wait_frames_wait_too(slow: Relay) -> None:
    phone, viewer = await slow.phone(STREAM), await slow.viewer(STREAM)
    start = trio.current_time()
    for _ in range(MOST + 1):
        await phone.send(ASK_STORE)
    await phone.send(FRAME)
    await viewer.receive_type("video-frame")
    assert trio.current_time() - start == pytest.approx(SLOW)


async def test_a_bug_in_one_ends_its_connection(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*_: object, **__: object) -> None:
        await trio.sleep(1)
        raise RuntimeError("a bug in the history")

    monkeypatch.setattr(type(relay.alerts), "history", break_down)
    viewer = await relay.viewer(STREAM)
    await viewer.send(ASK_STORE)
    assert await viewer.closing() == (1011, "internal error")
