"""Messages to webhooks are signed as Standard Webhooks say."""

from __future__ import annotations

import base64
import json

import pytest
from attrs import evolve

from relay.alerts.targets.delivery import Delivery, picture_links_of
from relay.alerts.targets.webhook_message import headers, message_of, new_secret, sign
from relay.model.alerts.alert import StoredAlert
from relay.model.alerts.picture_link import PictureLinks
from relay.model.targets.stream_event import StreamEvent

ALERT = StoredAlert(
    42, "porch", "ann", "service:fire", "high", "Smoke", 1_700_000_001_400, {"zone": 3}
)


def test_the_signature_is_that_of_the_published_example() -> None:
    assert (
        sign(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_a_secret_is_32_random_bytes() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32


def test_an_alert_is_posted_with_its_kind_and_its_time() -> None:
    assert json.loads(message_of(Delivery(ALERT))) == {
        "type": "alert",
        "timestamp": "2023-11-14T22:13:21.400Z",
        "data": {
            "alertId": 42,
            "streamId": "porch",
            "severity": "high",
            "message": "Smoke",
            "metadata": {"zone": 3},
            "timestamp": 1_700_000_001_400,
        },
    }


def test_the_bytes_for_an_alert_are_those_that_receivers_know() -> None:
    assert message_of(Delivery(ALERT)) == (
        b'{"type":"alert","timestamp":"2023-11-14T22:13:21.400Z","data":{"alertId":42,'
        b'"streamId":"porch","severity":"high","message":"Smoke","metadata":{"zone":3},'
        b'"timestamp":1700000001400}}'
    )


def test_what_was_suppressed_is_told_in_a_field_of_its_own() -> None:
    plain = json.loads(message_of(Delivery(ALERT)))
    told = json.loads(message_of(Delivery(ALERT, suppressed=7)))
    assert told["data"].pop("suppressed") == 7
    assert told == plain


def test_a_stream_event_is_posted_with_its_kind_and_its_time() -> None:
    event = StreamEvent(43, "porch", "ann", "stream.online", 1_700_000_000_000, 1_700_000_001_400)
    assert json.loads(message_of(Delivery(event))) == {
        "type": "stream.online",
        "timestamp": "2023-11-14T22:13:21.400Z",
        "data": {
            "eventId": 43,
            "streamId": "porch",
            "epoch": 1_700_000_000_000,
            "timestamp": 1_700_000_001_400,
        },
    }


@pytest.mark.parametrize("timestamp", [0, 2**53])
def test_any_time_that_a_sender_may_name_can_be_posted(timestamp: int) -> None:
    alert = StoredAlert(1, "s", "ann", "x", "low", "m", timestamp)
    assert json.loads(message_of(Delivery(alert)))["data"]["timestamp"] == timestamp


def test_it_has_links_to_what_is_kept_and_the_same_ones_at_each_attempt() -> None:
    links = PictureLinks(b"key", "https://relay.example.org")
    pending = evolve(ALERT, still="pending", clip="pending")
    kept = evolve(ALERT, still="kept", clip="failed")

    def message(alert: StoredAlert) -> bytes:
        return message_of(Delivery(alert, picture_links=picture_links_of(alert, links)))

    data = json.loads(message(pending))["data"]
    assert data["stillUrl"].startswith("https://relay.example.org/alerts/42/still.jpg?expires=")
    assert data["clipUrl"].startswith("https://relay.example.org/alerts/42/clip.mjpeg?expires=")
    assert message(pending) == message(kept)
    assert message(ALERT) == message_of(Delivery(ALERT))
    assert b"key" not in repr(links).encode()


def test_the_headers_sign_the_body() -> None:
    secret, body = new_secret(), message_of(Delivery(ALERT))
    given = headers(secret, "msg_1", body)
    timestamp = int(given["webhook-timestamp"])
    assert given["webhook-id"] == "msg_1"
    assert given["webhook-signature"] == sign(secret, "msg_1", timestamp, body)
    assert given["webhook-signature"] != sign(secret, "msg_1", timestamp, body + b" ")
