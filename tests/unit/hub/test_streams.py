"""Streams, consumers and alerts, as the peers see them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import trio
import trio.testing

from relay.protocol.endings import Ending
from relay.protocol.reports import StreamCounts
from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

FRAME = {"type": "video-frame", "data": "AAAA"}


async def frames(client: Client, count: int) -> list[dict[str, Any]]:
    return [await client.receive_type("video-frame") for _ in range(count)]


async def told_nothing(client: Client) -> bool:
    """Whether nothing comes for a while."""
    with trio.move_on_after(3) as scope:
        await client.receive()
    return scope.cancelled_caught


async def test_registering_answers_in_the_words_of_the_document(relay: MemoryRelay) -> None:
    client = await relay.login()
    reply = await client.ask({"type": "register", "streamId": "mobile-1700000000000"})
    assert reply["type"] == "success"
    assert reply["message"] == "Registration successful. Stream ID: mobile-1700000000000"
    status = await client.receive()
    assert (status["type"], status["status"], status["consumers"]) == ("status", "online", 0)


async def test_an_id_is_made_up_when_none_is_given(relay: MemoryRelay) -> None:
    client = await relay.login()
    first = (await client.ask({"type": "register"}))["streamId"]
    second = (await client.ask({"type": "register"}))["streamId"]
    assert first != second
    for stream_id in (first, second):
        assert re.fullmatch(r"stream_[0-9a-f]{32}", stream_id)  # 128 bits, word characters only


async def test_the_first_user_owns_an_id(relay: MemoryRelay) -> None:
    await relay.phone("s", ANN)
    other = await relay.login(BOB)
    reply = await other.ask({"type": "register", "streamId": "s"})
    assert (reply["type"], reply["code"]) == ("error", "UNAUTHORIZED")


async def test_a_service_registers_no_stream(relay: MemoryRelay) -> None:
    client = await relay.login(SENTRY)
    assert (await client.ask({"type": "register", "streamId": "s"}))["code"] == "UNAUTHORIZED"


async def test_registering_with_the_store_away_says_so(relay: MemoryRelay) -> None:
    relay.owners.away = True
    client = await relay.login()
    reply = await client.ask({"type": "register", "streamId": "s"})
    assert reply["code"] == "STORE_UNAVAILABLE"
    assert reply["retryAfter"] > 0


async def test_a_frame_reaches_a_viewer_as_it_came(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer()
    metadata = {"width": 640, "note": "é ☃", "deep": [1, {"a": None}]}
    sent = {"data": "a+/=\\u0041", "timestamp": 12.5, "keyframe": True, "metadata": metadata}
    await phone.send('{"type":"video-frame",' + json.dumps(sent)[1:].replace("\\\\", "\\"))
    frame = (await frames(viewer, 1))[0]
    assert frame["data"] == "a+/=A"
    assert (frame["streamId"], frame["seq"]) == ("front-door", 1)
    assert (frame["timestamp"], frame["keyframe"], frame["metadata"]) == (12.5, True, metadata)
    assert frame["receivedAt"] > 1_600_000_000_000


async def test_a_frame_without_timestamp_gets_the_time_of_receipt(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send(FRAME)
    frame = (await frames(viewer, 1))[0]
    assert frame["timestamp"] == frame["receivedAt"]


async def test_seq_grows_by_one(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    for _ in range(5):
        await phone.send(FRAME)
        await trio.testing.wait_all_tasks_blocked()
    assert [frame["seq"] for frame in await frames(viewer, 5)] == [1, 2, 3, 4, 5]


async def test_a_new_viewer_gets_reply_status_and_latest_frame_in_this_order(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    for _ in range(3):
        await phone.send(FRAME)
    viewer = await relay.login()
    await viewer.send({"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]})
    reply, status, frame = [await viewer.receive() for _ in range(3)]
    assert (reply["code"], reply["message"]) == ("SUBSCRIBED", "Subscription successful")
    assert (status["type"], status["status"]) == ("status", "streaming")
    assert (frame["type"], frame["seq"]) == ("video-frame", 3)
    assert reply["epoch"] == status["epoch"] > 0


async def test_metadata_of_the_stream_reaches_subscribers(relay: MemoryRelay) -> None:
    phone = await relay.login()
    metadata = {"codec": "jpeg", "width": 1280}
    await phone.ask({"type": "register", "streamId": "s", "metadata": metadata})
    viewer = await relay.login()
    reply = await viewer.ask({"type": "subscribe", "streamId": "s", "consumes": ["video-frame"]})
    assert reply["metadata"] == metadata


async def test_metadata_reaches_who_subscribed_before_the_stream_was_registered(
    relay: MemoryRelay,
) -> None:
    viewer, stranger = await relay.viewer("s"), await relay.viewer("s", BOB)
    phone = await relay.login()
    await phone.ask({"type": "register", "streamId": "s", "metadata": {"codec": "h264"}})
    await phone.send(FRAME)
    told = [await viewer.receive() for _ in range(3)]
    assert [each.get("metadata") for each in told] == [{"codec": "h264"}, None, None]
    assert [each["type"] for each in told] == ["status", "status", "video-frame"]
    assert await told_nothing(stranger)


async def test_metadata_that_changes_is_told_to_who_watches(relay: MemoryRelay) -> None:
    phone = await relay.login()
    register = {"type": "register", "streamId": "s", "metadata": {"codec": "h264"}}
    await phone.ask(register)
    viewer = await relay.viewer("s")
    await phone.ask(register)
    for metadata in ({"codec": "av1"}, {"codec": "jpeg", "width": 640}, None):
        phone = await relay.login()  # takes over
        await phone.ask({**register, "metadata": metadata})
        status = await viewer.receive()
        assert (status["status"], status["metadata"]) == ("online", metadata or {})
    await phone.send(FRAME)
    assert "metadata" not in await viewer.receive()


async def test_epochs_grow_though_the_stream_was_forgotten_and_the_clock_stepped_back(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = {"type": "register", "streamId": "s"}
    first = await relay.login()
    before = (await first.ask(register))["epoch"]
    await first.ask({**register, "streamId": "t"})
    assert "s" not in relay.hub._streams
    monkeypatch.setattr("relay.hub.hub.now_ms", lambda: before - 3_600_000)
    assert (await first.ask(register))["epoch"] > before


async def test_a_strangers_stream_looks_like_one_that_does_not_exist(relay: MemoryRelay) -> None:
    phone = await relay.phone("s", ANN)
    await phone.send(FRAME)
    stranger = await relay.login(BOB)
    answers = []
    for stream_id in ("s", "nowhere"):
        await stranger.send(
            {"type": "subscribe", "streamId": stream_id, "consumes": ["video-frame", "alert"]}
        )
        answers.append([await stranger.receive() for _ in range(2)])
    for answer in answers:
        for message in answer:
            del message["timestamp"], message["streamId"]
    assert answers[0] == answers[1]
    await phone.send(FRAME)
    assert await told_nothing(stranger)


async def test_who_subscribed_first_sees_nothing_of_another_owners_stream(
    relay: MemoryRelay,
) -> None:
    stranger = await relay.viewer("s", BOB)
    phone = await relay.phone("s", ANN)
    await phone.send(FRAME)
    assert await told_nothing(stranger)


async def test_who_subscribed_before_the_owner_registered_gets_frames_then(
    relay: MemoryRelay,
) -> None:
    viewer = await relay.viewer("s")
    phone = await relay.phone("s")
    assert (await viewer.receive())["status"] == "online"
    await phone.send(FRAME)
    assert (await viewer.receive())["status"] == "streaming"
    assert (await viewer.receive())["seq"] == 1


async def test_a_service_sees_what_its_scope_covers(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    watcher = await relay.viewer(token=SENTRY)
    await phone.send(FRAME)
    assert (await frames(watcher, 1))[0]["seq"] == 1


async def test_unsubscribing_ends_the_frames(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    reply = await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    assert reply["code"] == "UNSUBSCRIBED"
    await phone.send(FRAME)
    assert await told_nothing(viewer)
    again = await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    assert again["code"] == "INVALID_MESSAGE"


async def test_subscribing_twice_delivers_once(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await viewer.ask({"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]})
    await phone.send(FRAME)
    assert (await frames(viewer, 1))[0]["seq"] == 1
    assert await told_nothing(viewer)


async def test_subscribing_again_changes_the_terms_and_the_phone_hears_nothing(
    relay: MemoryRelay,
) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    assert (await phone.receive_type("status"))["consumers"] == 1
    request = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    assert (await viewer.ask({**request, "window": 1}))["code"] == "SUBSCRIBED"
    assert await told_nothing(phone)
    await phone.send(FRAME)
    await phone.send(FRAME)
    assert [frame["seq"] for frame in await frames(viewer, 1)] == [1]
    assert await told_nothing(viewer)


async def test_a_phone_hears_how_many_watch_once_for_all_who_come_within_a_second(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    first = await relay.viewer()
    assert (await phone.receive_type("status"))["consumers"] == 1
    others = [await relay.viewer() for _ in range(4)]
    status = await phone.receive()
    assert (status["type"], status["consumers"]) == ("status", 5)
    for viewer in others:
        await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
    assert (await phone.receive())["consumers"] == 1
    others = [await relay.viewer()]
    await others[0].ask({"type": "unsubscribe", "streamId": "front-door"})
    await first.ask({"type": "unsubscribe", "streamId": "front-door"})
    assert (await phone.receive())["consumers"] == 0
    await trio.sleep(2)
    assert await told_nothing(phone)


async def test_frames_before_register_are_refused_once_a_second(relay: MemoryRelay) -> None:
    client = await relay.login()
    for _ in range(20):
        await client.send(FRAME)
    assert (await client.receive())["code"] == "NOT_REGISTERED"
    assert await told_nothing(client)
    await client.send(FRAME)
    assert (await client.receive())["code"] == "NOT_REGISTERED"


async def test_frames_for_another_stream_are_refused(relay: MemoryRelay) -> None:
    phone = await relay.phone("s")
    await phone.send({**FRAME, "streamId": "t"})
    error = await phone.receive()
    assert (error["code"], error["streamId"]) == ("UNAUTHORIZED", "t")


async def test_frames_sent_before_register_is_answered_wait_for_it(relay: MemoryRelay) -> None:
    relay.owners.delay = 4
    viewer, phone = await relay.viewer("s"), await relay.login()
    await phone.send({"type": "register", "streamId": "s"})
    await phone.send(FRAME)
    assert (await frames(viewer, 1))[0]["seq"] == 1
    assert trio.current_time() == pytest.approx(4)


async def test_a_slow_viewer_skips_to_the_newest_and_harms_nobody(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    slow = await relay.viewer(capacity=8192)
    fast = await relay.viewer()
    fast_seqs: list[int] = []
    big = {"type": "video-frame", "data": "A" * 6000}
    for _ in range(50):
        await phone.send(big)
        fast_seqs.append((await frames(fast, 1))[0]["seq"])
    assert fast_seqs == list(range(1, 51))
    seqs = [frame["seq"] for frame in await frames(slow, 3)]
    # One that was written, one of which a part was written, and then the newest.
    assert seqs == [1, 2, 50]
    ledger = relay.hub.ledger()
    assert (ledger.accepted, ledger.written, ledger.waiting) == (100, 53, 0)
    assert ledger.dropped == {"superseded": 47}


async def test_the_producer_hears_when_viewers_come_and_when_none_is_left(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    first = await relay.viewer()
    assert (await phone.receive_type("status"))["consumers"] == 1
    await relay.viewer()
    first.link.close()
    assert await told_nothing(phone)
    for connection in relay.connections[1:]:
        connection.peer.end(Ending.SHUTDOWN)
    assert (await phone.receive_type("status"))["consumers"] == 0


async def test_who_wants_alerts_only_gets_no_frames_and_does_not_count(relay: MemoryRelay) -> None:
    phone, listener = await relay.phone(), await relay.login()
    await listener.ask({"type": "subscribe", "streamId": "front-door", "consumes": ["alert"]})
    await phone.send(FRAME)
    assert (await listener.receive_type("status"))["status"] == "online"
    assert (await listener.receive_type("status"))["status"] == "streaming"
    assert await told_nothing(listener)
    assert await told_nothing(phone)


async def test_a_short_loss_of_the_producer_is_not_seen(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send(FRAME)
    await frames(viewer, 1)
    phone.link.close()
    await trio.sleep(4.9)
    phone = await relay.phone()
    await phone.send(FRAME)
    frame = await viewer.receive()
    assert (frame["type"], frame["seq"]) == ("video-frame", 2)
    await trio.sleep(10)
    await phone.send(FRAME)
    assert (await viewer.receive())["seq"] == 3


async def test_offline_is_announced_when_the_producer_stays_away(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    lost = trio.current_time()
    phone.link.close()
    status = await viewer.receive()
    assert (status["status"], status["epoch"]) == ("offline", 0)
    assert trio.current_time() - lost == pytest.approx(5)


async def test_a_new_life_of_a_stream_has_a_new_epoch_and_seq_from_one(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    await phone.send(FRAME)
    await frames(viewer, 1)
    phone.link.close()
    before = 0
    while (status := await viewer.receive())["status"] != "offline":
        before = status["epoch"]
    phone = await relay.phone()
    assert (await viewer.receive())["epoch"] > before
    await phone.send(FRAME)
    assert (await frames(viewer, 1))[0]["seq"] == 1


async def test_a_later_connection_takes_the_stream_over(relay: MemoryRelay) -> None:
    old, viewer = await relay.phone(), await relay.viewer()
    await old.send(FRAME)
    await frames(viewer, 1)
    new = await relay.phone()
    error, close = await old.hear_end()
    assert error["code"] == "SUPERSEDED"
    assert close == (4502, "superseded by a newer connection")
    await new.send(FRAME)
    frame = await viewer.receive()
    assert (frame["type"], frame["seq"]) == ("video-frame", 2)


async def test_a_register_that_arrives_late_from_an_older_connection_ends_that_one(
    relay: MemoryRelay,
) -> None:
    old = await relay.login()
    new, viewer = await relay.phone(), await relay.viewer()
    await old.send({"type": "register", "streamId": "front-door"})
    _, close = await old.hear_end()
    assert close[0] == 4502
    await new.send(FRAME)
    assert (await frames(viewer, 1))[0]["seq"] == 1


async def test_registering_another_stream_ends_the_first(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone("s"), await relay.viewer("s")
    await phone.ask({"type": "register", "streamId": "t"})
    assert (await viewer.receive())["status"] == "offline"
    await phone.send({**FRAME, "streamId": "s"})
    assert (await phone.receive_type("error"))["code"] == "UNAUTHORIZED"


async def test_a_stream_nobody_produces_or_watches_is_forgotten(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    phone.link.close()
    viewer.link.close()
    await trio.sleep(6)
    assert relay.hub.count() == StreamCounts()
    assert not relay.hub._streams


async def test_an_alert_is_acknowledged_and_reaches_viewer_and_phone(relay: MemoryRelay) -> None:
    phone, viewer = await relay.phone(), await relay.viewer()
    sentry = await relay.login(SENTRY)
    alert = {
        "type": "alert",
        "streamId": "front-door",
        "severity": "high",
        "message": "somebody is at the door",
        "metadata": {"confidence": 0.9},
        "timestamp": 1700000000000,
        "id": "a1",
    }
    reply = await sentry.ask(alert)
    assert (reply["code"], reply["streamId"], reply["id"]) == ("ALERT_ACCEPTED", "front-door", "a1")
    for client in (phone, viewer):
        received = await client.receive_type("alert")
        assert received == {
            "type": "alert",
            "alertId": reply["alertId"],
            "streamId": "front-door",
            "severity": "high",
            "message": "somebody is at the door",
            "metadata": {"confidence": 0.9},
            "timestamp": 1700000000000,
        }


async def test_a_phone_that_also_watches_gets_an_alert_once(relay: MemoryRelay) -> None:
    phone, sentry = await relay.phone(), await relay.login(SENTRY)
    await phone.ask({"type": "subscribe", "streamId": "front-door", "consumes": ["alert"]})
    await sentry.ask({"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"})
    assert (await phone.receive_type("alert"))["message"] == "m"
    assert await told_nothing(phone)


async def test_a_phone_that_consumes_no_alerts_gets_none(relay: MemoryRelay) -> None:
    phone, sentry = await relay.login(), await relay.login(SENTRY)
    await phone.ask({"type": "register", "streamId": "s", "consumes": []})
    await phone.receive_type("status")
    await sentry.ask({"type": "alert", "streamId": "s", "severity": "low", "message": "m"})
    assert await told_nothing(phone)


async def test_alerts_of_a_strangers_stream_are_neither_taken_nor_delivered(
    relay: MemoryRelay,
) -> None:
    await relay.phone("s", ANN)
    stranger, owner = await relay.viewer("s", BOB), await relay.login(ANN)
    alert = {"type": "alert", "streamId": "s", "severity": "low", "message": "m"}
    assert (await stranger.ask(alert))["code"] == "UNAUTHORIZED"
    assert (await owner.ask(alert))["code"] == "ALERT_ACCEPTED"
    assert await told_nothing(stranger)


async def test_an_alert_with_the_store_away_is_not_acknowledged(relay: MemoryRelay) -> None:
    await relay.phone("s")
    sentry = await relay.login(SENTRY)
    relay.alerts.away = True
    reply = await sentry.ask({"type": "alert", "streamId": "s", "severity": "low", "message": "m"})
    assert reply["code"] == "STORE_UNAVAILABLE"


async def test_alerts_go_ahead_of_queued_video(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    slow = await relay.viewer(capacity=8192)
    sentry = await relay.login(SENTRY)
    for _ in range(3):
        await phone.send({"type": "video-frame", "data": "A" * 18_000})
    await trio.testing.wait_all_tasks_blocked()
    await sentry.ask({"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"})
    kinds = [(await slow.receive())["type"] for _ in range(4)]
    # The status was written before; the first frame is the one already on the wire.
    assert kinds == ["status", "video-frame", "alert", "video-frame"]


async def test_a_publish_to_many_yields_and_reaches_all(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewers = [await relay.viewer() for _ in range(150)]
    await phone.send(FRAME)
    for viewer in viewers:
        assert (await frames(viewer, 1))[0]["seq"] == 1


async def test_viewers_that_leave_during_a_publish_disturb_nobody(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewers = [await relay.viewer() for _ in range(150)]
    for viewer in viewers[::2]:
        viewer.link.close()
    for _ in range(3):
        await phone.send(FRAME)
    await trio.testing.wait_all_tasks_blocked()
    for viewer in viewers[1::2]:
        assert [frame["seq"] for frame in await frames(viewer, 1)] == [1]
    await phone.send(FRAME)
    assert (await viewers[1].receive_type("video-frame"))["seq"] > 1


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"type": "register", "streamId": "no spaces"}, "streamId"),
        ({"type": "register", "streamId": "x" * 129}, "streamId"),
        ({"type": "register", "streamId": 5}, "streamId"),
        ({"type": "register", "metadata": "text"}, "metadata"),
        ({"type": "subscribe", "streamId": "s"}, "consumes"),
        ({"type": "subscribe", "consumes": []}, "streamId"),
        ({"type": "subscribe", "streamId": "s", "consumes": "alert"}, "consumes"),
        ({"type": "subscribe", "streamId": "s", "consumes": [], "policy": "never"}, "policy"),
        ({"type": "video-frame"}, "data"),
        ({"type": "video-frame", "data": 5}, "data"),
        ({"type": "video-frame", "data": None}, "data"),
        ({"type": "video-frame", "data": "", "timestamp": "now"}, "timestamp"),
        ({"type": "video-frame", "data": "", "timestamp": -1}, "timestamp"),
        ({"type": "alert", "streamId": "s", "severity": "severe", "message": "m"}, "severity"),
        ({"type": "alert", "streamId": "s", "severity": "low"}, "message"),
        ({"type": "alert", "streamId": "s", "severity": "low", "message": "a\0b"}, "message"),
        ({"id": 5}, "type"),
    ],
)
async def test_a_message_that_cannot_be_read_is_answered_with_the_field(
    relay: MemoryRelay, message: dict[str, Any], field: str
) -> None:
    client = await relay.login()
    error = await client.ask({"id": 17, **message})
    assert error["code"] == "INVALID_MESSAGE"
    assert field in error["message"]
    assert error["id"] == message.get("id", 17)
    assert (await client.ask({"type": "register", "streamId": "s"}))["code"] == "REGISTERED"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[1]",
        '"auth"',
        '{"type": "register"} x',
        '{"type": "register", "metadata": {"a": NaN}}',
        '{"type": "register", "metadata": ' + '{"a":' * 40 + "1" + "}" * 41,
        '{"type": "register", "x": ' + "[" * 100_000,
        '{"type": "video-frame", "data": "\ud83d"}'.encode("utf-8", "surrogatepass").decode(
            "utf-8", "replace"
        ),
    ],
)
async def test_broken_text_is_answered_and_disturbs_nothing(relay: MemoryRelay, text: str) -> None:
    client = await relay.login()
    await client.send(text)
    assert (await client.receive())["type"] == "error"
    assert (await client.ask({"type": "register", "streamId": "s"}))["code"] == "REGISTERED"


async def test_a_binary_message_is_refused_on_a_json_connection(relay: MemoryRelay) -> None:
    client = await relay.login()
    await client.send(b'{"type": "register"}')
    assert (await client.receive())["code"] == "INVALID_MESSAGE"
    assert (await client.ask({"type": "register"}))["code"] == "REGISTERED"


async def test_unknown_fields_are_ignored(relay: MemoryRelay) -> None:
    client = await relay.login()
    reply = await client.ask({"type": "register", "streamId": "s", "tomorrow": {"a": [1]}})
    assert reply["code"] == "REGISTERED"
