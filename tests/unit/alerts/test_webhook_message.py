"""Messages to webhooks are signed as Standard Webhooks say."""

from __future__ import annotations

import base64
import json

import pytest

from relay.alerts.webhook_message import alert_message, headers, new_secret, sign
from relay.model.alert import StoredAlert

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
    assert json.loads(alert_message(ALERT)) == {
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


@pytest.mark.parametrize("timestamp", [0, 2**53])
def test_any_time_that_a_sender_may_name_can_be_posted(timestamp: int) -> None:
    alert = StoredAlert(1, "s", "ann", "x", "low", "m", timestamp)
    assert json.loads(alert_message(alert))["data"]["timestamp"] == timestamp


def test_the_headers_sign_the_body() -> None:
    secret, body = new_secret(), alert_message(ALERT)
    given = headers(secret, "msg_1", body)
    timestamp = int(given["webhook-timestamp"])
    assert given["webhook-id"] == "msg_1"
    assert given["webhook-signature"] == sign(secret, "msg_1", timestamp, body)
    assert given["webhook-signature"] != sign(secret, "msg_1", timestamp, body + b" ")
