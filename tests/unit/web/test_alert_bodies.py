"""An alert in the body of an HTTP request is read like a message."""

from __future__ import annotations

import pytest

from relay.protocol.codec import InvalidMessage
from relay.web.api import _alert_in


def test_an_alert_is_understood_however_its_fields_are_spelled() -> None:
    plain = _alert_in(b'{"streamId": "s", "severity": "low", "message": "m", "timestamp": 7}')
    spelled = (
        b'{"type": null, "streamId": "s", "severity": "low", "message": "m", "timestamp": 7.0,'
        b' "metadata": null, "alertKey": null, "id": null}'
    )
    assert _alert_in(spelled) == plain
    assert isinstance(_alert_in(spelled).timestamp, int)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (rb'{"streamId": "s", "severity": "low", "message": "\ud83d"}', "`$.message`"),
        (
            rb'{"streamId": "s", "severity": "low", "message": "m", "alertKey": "\ude00"}',
            "`$.alertKey`",
        ),
        (b'{"streamId": "s"', "truncated"),
        (b"[]", "object"),
        (b"", "truncated"),
        (b"\xff", ""),
    ],
)
def test_what_is_no_alert_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        _alert_in(body)
    assert reason in refused.value.message
