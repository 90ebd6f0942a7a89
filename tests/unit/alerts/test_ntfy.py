"""Messages to topics of ntfy, and what its answers mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import trio
from attrs import define, evolve, field

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    GoneForGood,
    RetryLater,
    Undeliverable,
)
from relay.alerts.targets.ntfy import (
    MAX_NTFY_BODY_BYTES,
    MAX_NTFY_MESSAGE_BYTES,
    STILL_LINK_TIMEOUT,
    NtfyAdapter,
    authorization,
    check_credentials,
    check_ntfy_url,
    ntfy_message,
    server_of,
    topic_of,
)
from relay.errors import ConfigError
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.stream_event import StreamEvent, StreamEventKind
from relay.outgoing.webhook_client import Undelivered

pytestmark = pytest.mark.mock_clock

TARGET = AlertTarget(
    *("ntfy_1", "ntfy", "https://ntfy.example.org/base/door", "", 0, None, "front-door"),
    *(datetime.now(UTC), 0, 0, None, None, None),
)
ALERT = StoredAlert(42, "front-door", "ann", "service:fire", "critical", "Smoke ☁", 1_700_000_000)
ONLINE = StreamEvent(43, "front-door", "ann", "stream.online", 7, 1_700_000_000)


@define(eq=False)
class NtfyClient:
    """Notes what is published."""

    problem: Exception | None = None
    posted: list[tuple[str, dict[str, Any], dict[str, str]]] = field(factory=list)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        self.posted.append((url, json.loads(body), headers))
        if self.problem is not None:
            raise self.problem


@define(eq=False)
class Links:
    seconds: float = 0

    async def link_to(self, target: AlertTarget, stream_id: str) -> str | None:
        await trio.sleep(self.seconds)
        return f"https://relay/streams/{stream_id}/latest.jpg?link=x"


async def published(
    event: Any, target: AlertTarget = TARGET, *, suppressed: int = 0, **adapter: Any
) -> dict[str, Any]:
    client = NtfyClient()
    outcome = await NtfyAdapter(client, **adapter).deliver(target, Delivery(event, suppressed))
    assert outcome == Delivered()
    [(url, content, _)] = client.posted
    assert url == "https://ntfy.example.org/base"
    return content


async def test_an_alert_has_a_title_a_priority_and_tags() -> None:
    assert await published(ALERT) == {
        "topic": "door",
        "title": "front-door: critical",
        "message": "Smoke ☁",
        "priority": 5,
        "tags": ["rotating_light", "front-door"],
    }


@pytest.mark.parametrize(
    ("severity", "priority"), [("low", 2), ("medium", 3), ("high", 4), ("critical", 5)]
)
async def test_the_priority_is_that_of_the_severity(severity: str, priority: int) -> None:
    assert (await published(evolve(ALERT, severity=severity)))["priority"] == priority


async def test_an_event_says_what_has_become_of_the_stream() -> None:
    content = await published(ONLINE)
    assert (content["title"], content["tags"]) == (
        "front-door is online",
        ["green_circle", "front-door"],
    )


async def test_what_was_suppressed_is_told() -> None:
    content = await published(ALERT, suppressed=7)
    assert content["message"] == "Smoke ☁\n(7 more were suppressed since the last one)"
    content = await published(ALERT, suppressed=1)
    assert content["message"].endswith("(1 more was suppressed since the last one)")


async def test_a_tap_opens_the_stream_on_the_page() -> None:
    content = await published(ALERT, public_url="https://relay.example.org/base")
    assert content["click"] == "https://relay.example.org/base/#watch/front-door"


async def test_a_picture_is_linked_only_if_the_target_wants_it() -> None:
    assert "attach" not in await published(ALERT, links=Links())
    wants = evolve(TARGET, options={"picture": True})
    content = await published(ALERT, wants, links=Links())
    assert content["attach"] == "https://relay/streams/front-door/latest.jpg?link=x"
    assert content["filename"] == "front-door.jpg"
    assert "attach" not in await published(ALERT, wants)


async def test_a_message_does_not_wait_for_its_picture() -> None:
    wants = evolve(TARGET, options={"picture": True})
    began = trio.current_time()
    assert "attach" not in await published(ALERT, wants, links=Links(seconds=1000))
    assert trio.current_time() - began <= STILL_LINK_TIMEOUT


@pytest.mark.parametrize("text", ["x" * 8192, "☁" * 8192, "\ud83d" + "x" * 5000])
async def test_a_long_message_is_cut(text: str) -> None:
    content = await published(evolve(ALERT, message=text))
    assert len(content["message"].encode()) <= MAX_NTFY_MESSAGE_BYTES + len("…".encode())
    assert content["message"].endswith("…")


@pytest.mark.parametrize("text", ["\0" * 8192, "\x1b" * 3000, '"' * 8192])
async def test_a_message_fits_also_if_json_escapes_it(text: str) -> None:
    """ntfy would refuse it again and again, and what is behind it would wait for a day."""
    delivery = Delivery(evolve(ALERT, message=text), suppressed=3)
    body = ntfy_message(TARGET, delivery, public_url="https://relay.example.org", picture=None)
    assert len(body) <= MAX_NTFY_BODY_BYTES
    assert json.loads(body)["message"].startswith(text[:500])


async def test_an_empty_message_has_words() -> None:
    """ntfy would say `triggered`."""
    assert (await published(evolve(ALERT, message="")))["message"] == "critical"


async def test_what_a_sender_writes_becomes_no_header_and_no_field() -> None:
    evil = 'x\r\nX-Priority: 1\r\n\r\n{"topic":"other"}'
    client = NtfyClient()
    await NtfyAdapter(client).deliver(TARGET, Delivery(evolve(ALERT, message=evil)))
    [(_, content, headers)] = client.posted
    assert content["message"] == evil
    assert content["topic"] == "door"
    assert headers.keys() == {"Content-Type", "User-Agent"}


@pytest.mark.parametrize(
    ("credentials", "header"),
    [("tk_AgQdq7mVBoFD37zQVN29RhuMzNIz2", "Bearer tk_Ag"), ("ann:pass:word", "Basic YW5uOnBhc3M6")],
)
async def test_credentials_are_a_token_or_a_password(credentials: str, header: str) -> None:
    assert authorization(credentials).startswith(header)
    client = NtfyClient()
    target = evolve(TARGET, secret=credentials)
    assert await NtfyAdapter(client).test(target) == Delivered()
    assert client.posted[0][2]["Authorization"] == authorization(credentials)
    assert credentials not in repr(target)
    assert target.url not in repr(target)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (401, RetryLater("status 401: it wants credentials")),
        (403, RetryLater("status 403: relay may not publish to this topic")),
        (410, GoneForGood("status 410")),
        (413, Undeliverable()),
        (500, RetryLater("status 500")),
    ],
)
async def test_an_answer_says_what_to_do(status: int, outcome: object) -> None:
    client = NtfyClient(Undelivered(f"status {status}", status=status))
    assert await NtfyAdapter(client).deliver(TARGET, Delivery(ALERT)) == outcome


async def test_a_server_that_is_busy_is_left_alone_as_long_as_it_says() -> None:
    client = NtfyClient(Undelivered("status 429", status=429, retry_after=120.0))
    outcome = await NtfyAdapter(client).deliver(TARGET, Delivery(ALERT))
    assert outcome == RetryLater("status 429: too many messages", 120.0)


async def test_a_poisoned_event_is_skipped() -> None:
    poisoned = evolve(ONLINE, kind=cast("StreamEventKind", "stream.of_a_newer_relay"))
    outcome = await NtfyAdapter(NtfyClient()).deliver(TARGET, Delivery(poisoned))
    assert outcome == Undeliverable()


@pytest.mark.parametrize(
    ("url", "server", "topic"),
    [
        ("https://ntfy.sh/door", "https://ntfy.sh/", "door"),
        ("https://ntfy.example.org:8443/a/b/door-1_X", "https://ntfy.example.org:8443/a/b", None),
    ],
)
async def test_a_url_is_that_of_a_topic(url: str, server: str, topic: str | None) -> None:
    check_ntfy_url(url)
    assert server_of(url) == server
    assert topic_of(url) == (topic or "door-1_X")


@pytest.mark.parametrize(
    "url",
    ["https://ntfy.sh", "https://ntfy.sh/", "https://ntfy.sh/a b", "https://ntfy.sh/a?auth=x"],
)
async def test_a_url_without_a_topic_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL of a topic"):
        check_ntfy_url(url)


@pytest.mark.parametrize("text", ["", "two words", "x" * 513, "ключ"])
async def test_credentials_that_cannot_be_any_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_credentials(text, "the file")
    assert not text or text not in str(caught.value)
