"""Notifications in browsers: what is sent, to whom, and what the answers of push services mean."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import cast

import pytest
import trio
from attrs import define, evolve, field

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    GoneForGood,
    RetryLater,
    Undeliverable,
    Withheld,
)
from relay.alerts.targets.ntfy import STILL_LINK_TIMEOUT
from relay.alerts.targets.web_push.adapter import PUSH_TIMEOUT
from relay.alerts.targets.web_push.coding import MAX_PLAINTEXT_BYTES
from relay.alerts.targets.web_push.health import FIRST_SERVICE_PAUSE, MAX_SERVICE_PAUSE
from relay.alerts.targets.web_push.keys import PushKeys
from relay.alerts.targets.web_push.waking import (
    WAKE_INTERVAL,
    WAKE_POLL_INTERVAL,
    ViewerWaker,
)
from relay.concurrency.activity import Activity, always_active
from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.outgoing.webhook_client import Undelivered
from tests.integration.push_service import check_vapid
from tests.unit.alerts.push_scene import ENDPOINT, Paths, PushScene, alert, happened
from tests.unit.alerts.push_store import PushStore
from tests.unit.alerts.test_push_encryption import P256DH

pytestmark = pytest.mark.mock_clock


@pytest.fixture
def scene() -> PushScene:
    return PushScene()


async def test_an_alert_is_encrypted_for_its_browser_and_signed_for_its_service(
    scene: PushScene,
) -> None:
    raised = alert("critical")
    content, headers = await scene.delivered(raised, suppressed=3)
    assert content == {
        "kind": "alert",
        "id": raised.alert_id,
        "streamId": "door",
        "severity": "critical",
        "title": "door: critical",
        "body": "Smoke ☁",
        "tag": f"door {raised.alert_id}",
        "timestamp": 7,
        "suppressed": 3,
    }
    key = check_vapid(headers.pop("Authorization"), "https://fcm.googleapis.com")
    assert key == (await scene.keys.key()).public
    assert headers == {
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "aes128gcm",
        "User-Agent": "relay",
        "TTL": "259200",
        "Urgency": "high",
    }


@pytest.mark.parametrize(
    ("severity", "ttl", "urgency", "replaces"),
    [
        ("low", "3600", "low", True),
        ("medium", "21600", "normal", True),
        ("high", "86400", "high", False),
        ("critical", "259200", "high", False),
    ],
)
async def test_the_severity_says_how_long_and_how_urgent(
    scene: PushScene, severity: str, ttl: str, urgency: str, replaces: bool
) -> None:
    first, headers = await scene.delivered(alert(severity))
    assert (headers["TTL"], headers["Urgency"]) == (ttl, urgency)
    assert ("Topic" in headers) == replaces
    second, _ = await scene.delivered(alert(severity))
    assert (first["tag"] == second["tag"]) == replaces


async def test_a_topic_is_of_one_stream_and_severity_and_tells_neither(scene: PushScene) -> None:
    events = [alert("low"), alert("medium"), evolve(alert("low"), stream_id="gate")]
    scene.store.granted["ann"] = frozenset({"gate"})
    topics = [(await scene.delivered(each))[1]["Topic"] for each in [*events, alert("low")]]
    assert topics[3] == topics[0]
    assert len({*topics}) == 3
    assert all(len(topic) == 32 and "door" not in topic for topic in topics)


async def test_an_event_of_a_stream_replaces_the_one_before(scene: PushScene) -> None:
    online, first = await scene.delivered(happened("stream.online"))
    offline, second = await scene.delivered(happened("stream.offline"))
    watched, third = await scene.delivered(happened("stream.watched"))
    assert [each["title"] for each in (online, offline, watched)] == [
        "door is online",
        "door is offline",
        "door is being watched",
    ]
    assert first["Topic"] == second["Topic"] != third["Topic"]


@pytest.mark.parametrize(
    "message", ["x" * 8192, "☁" * 8192, "\ud83d" + "x" * 5000, "\0" * 8192, '"' * 8192]
)
async def test_a_long_message_is_cut_to_what_push_services_take(
    scene: PushScene, message: str
) -> None:
    content, _ = await scene.delivered(alert(message=message), picture=True)
    assert content["title"] == "door: high"
    assert len(json.dumps(content, ensure_ascii=False).encode()) <= MAX_PLAINTEXT_BYTES + 100


async def test_of_a_message_that_json_escapes_there_is_as_much_as_fits(scene: PushScene) -> None:
    content, _ = await scene.delivered(alert(message='"' * 1990))
    assert 900 < len(content["body"]) < 1990


async def test_an_event_of_which_no_message_can_be_made_small_enough_is_skipped(
    scene: PushScene, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that writes into the database may have named a stream so."""
    with caplog.at_level(logging.CRITICAL):
        outcome = await scene.deliver(evolve(alert(), stream_id="x" * 5000))
    assert outcome == Undeliverable()


@pytest.mark.parametrize(
    "endpoint", ["https://FCM.googleapis.com/x", "https://fcm.googleapis.com:443/x"]
)
async def test_a_service_knows_itself_in_what_is_signed_for_it(
    scene: PushScene, endpoint: str
) -> None:
    assert await scene.deliver(alert(), url=endpoint) == Delivered()
    [(_, _, headers)] = scene.client.posted
    check_vapid(headers["Authorization"], "https://fcm.googleapis.com")


async def test_a_picture_is_a_path_and_is_not_waited_for() -> None:
    scene = PushScene(links=Paths())
    assert "picture" not in (await scene.delivered(alert()))[0]
    content, _ = await scene.delivered(alert(), picture=True)
    assert content["picture"] == "/streams/door/latest.jpg?link=x"
    target = await scene.target(picture=True)
    kept = "https://relay.example.org/cams/alerts/7/still.jpg?expires=9&signature=x"
    await scene.adapter.deliver(target, Delivery(alert(), picture_links={"stillUrl": kept}))
    content = json.loads(scene.browser.decrypt(scene.client.posted[-1][1]))
    assert content["picture"] == "/alerts/7/still.jpg?expires=9&signature=x"
    slow, began = PushScene(links=Paths(seconds=1000)), trio.current_time()
    assert "picture" not in (await slow.delivered(alert(), picture=True))[0]
    assert trio.current_time() - began <= STILL_LINK_TIMEOUT


async def test_its_user_has_to_be_there_and_to_see_the_stream_at_that_moment(
    scene: PushScene,
) -> None:
    theirs = evolve(alert(), owner_id="bob")
    assert await scene.deliver(theirs) == Withheld()
    for granted in ("door", "do*", "*"):
        scene.store.granted["ann"] = frozenset({granted})
        assert await scene.deliver(theirs) == Delivered()
    scene.store.deleted = {"ann"}
    assert await scene.deliver(theirs) == GoneForGood("its user was deleted", forget=True)
    del scene.store.granted["ann"]
    assert await scene.deliver(theirs) == GoneForGood("its user is banned", forget=True)
    assert len(scene.client.posted) == 3


async def test_what_is_old_is_not_sent(scene: PushScene) -> None:
    assert await scene.deliver(alert("low", age=3601)) == Withheld()
    assert await scene.deliver(alert("medium", age=3601)) == Delivered()
    assert await scene.deliver(alert("critical", age=4 * 24 * 3600)) == Withheld()


STATUSES: dict[int, DeliveryOutcome] = {
    400: RetryLater("status 400: the push service does not accept relay's key"),
    401: RetryLater("status 401: the push service does not accept relay's key"),
    403: RetryLater("status 403: the push service does not accept relay's key"),
    404: GoneForGood("the browser has unsubscribed", forget=True),
    410: GoneForGood("the browser has unsubscribed", forget=True),
    413: Undeliverable(),
    429: RetryLater("status 429", 30.0),
    500: RetryLater("status 500", 30.0),
    503: RetryLater("status 503", 30.0),
}


@pytest.mark.parametrize(("status", "outcome"), STATUSES.items())
async def test_an_answer_says_what_to_do(
    scene: PushScene, status: int, outcome: DeliveryOutcome
) -> None:
    scene.client.problem = Undelivered(f"status {status}", status=status, retry_after=30.0)
    assert await scene.deliver(alert()) == outcome


async def test_a_service_that_is_not_on_the_list_any_more_is_not_called(scene: PushScene) -> None:
    outcome = await scene.deliver(alert(), url="https://169.254.169.254/x")
    assert outcome == GoneForGood("its push service is not in push_services")
    assert scene.client.posted == []


async def test_a_browser_that_has_subscribed_for_another_key_is_left_alone(
    scene: PushScene,
) -> None:
    outcome = await scene.deliver(alert(), key="another")
    assert outcome == RetryLater("it has subscribed for another key: is push_key as it was?", 900.0)
    assert scene.client.posted == []


async def test_a_broken_row_is_given_up(scene: PushScene) -> None:
    assert isinstance(await scene.deliver(alert(), auth="x"), GoneForGood)
    assert isinstance(await scene.deliver(alert(), p256dh=None), GoneForGood)
    assert isinstance(await scene.deliver(alert(), url="https://[broken"), GoneForGood)


async def test_a_poisoned_event_is_skipped(
    scene: PushScene, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = evolve(alert(), message=cast("str", 7))
    with caplog.at_level(logging.CRITICAL):
        assert await scene.deliver(poisoned) == Undeliverable()


async def test_while_the_database_is_away_it_is_tried_later(scene: PushScene) -> None:
    target = await scene.target()

    def fail() -> None:
        raise StoreUnavailable

    scene.store.before_query = fail
    outcome = await scene.adapter.deliver(target, Delivery(alert()))
    assert outcome == RetryLater("the database does not answer")


async def test_a_browser_can_be_tried(scene: PushScene) -> None:
    assert await scene.adapter.test(await scene.target()) == Delivered()
    [(_, body, headers)] = scene.client.posted
    assert json.loads(scene.browser.decrypt(body))["kind"] == "test"
    assert headers["TTL"] == "60"


async def test_a_service_that_stalls_is_asked_by_one_browser_at_a_time(scene: PushScene) -> None:
    scene.client.seconds = 1000
    outcomes: list[DeliveryOutcome] = []

    async def deliver(url: str = ENDPOINT) -> None:
        outcomes.append(await scene.deliver(alert(), url=url))

    await scene.keys.key()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(deliver)
    assert trio.current_time() - began == PUSH_TIMEOUT
    assert {*outcomes} == {RetryLater(f"its push service did not answer within {PUSH_TIMEOUT:g} s")}
    asked, outcomes[:] = len(scene.client.posted), []
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(deliver)
    assert len(scene.client.posted) == asked
    assert all(isinstance(each, RetryLater) and each.after for each in outcomes)
    # Others are not held up.
    scene.client.seconds = 0
    outcomes.clear()
    await deliver("https://a.notify.windows.com/x")
    assert outcomes == [Delivered()]
    # It is tried again by one of them, and then serves all.
    await trio.sleep(400)
    assert await scene.deliver(alert()) == Delivered()
    assert await scene.deliver(alert()) == Delivered()


async def test_a_slow_service_leaves_places_for_others(scene: PushScene) -> None:
    scene.client.seconds = PUSH_TIMEOUT - 0.5
    outcomes: list[DeliveryOutcome] = []

    async def deliver() -> None:
        outcomes.append(await scene.deliver(alert()))

    await scene.keys.key()
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(deliver)
        await trio.sleep(2)
        for _ in range(40):
            nursery.start_soon(deliver)
    assert len(scene.client.posted) == 40
    assert outcomes.count(Delivered()) == 40


async def test_many_that_a_short_stall_meets_at_once_make_no_long_pause_of_it(
    scene: PushScene,
) -> None:
    scene.client.seconds = 1000

    async def deliver() -> None:
        assert isinstance(await scene.deliver(alert()), RetryLater)

    await scene.keys.key()
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(deliver)
    scene.client.seconds = 0
    await trio.sleep(FIRST_SERVICE_PAUSE)
    assert await scene.deliver(alert()) == Delivered()


async def test_the_pauses_of_a_service_become_longer(scene: PushScene) -> None:
    scene.client.seconds = 1000
    for _ in range(4):
        await scene.deliver(alert())
    times: list[float] = []
    while len(times) < 8:
        posted = len(scene.client.posted)
        await scene.deliver(alert())
        if len(scene.client.posted) > posted:
            times.append(trio.current_time())
        await trio.sleep(1)
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 30
    assert MAX_SERVICE_PAUSE <= pauses[-1] < MAX_SERVICE_PAUSE + 10


async def test_while_a_service_stalls_its_browsers_ask_the_database_for_nothing(
    scene: PushScene,
) -> None:
    scene.client.seconds = 1000
    for _ in range(4):
        await scene.deliver(alert())
    target, queries, waits = await scene.target(), 0, set()

    def count() -> None:
        nonlocal queries
        queries += 1

    scene.store.before_query = count
    for _ in range(20):
        outcome = await scene.adapter.deliver(target, Delivery(alert()))
        assert isinstance(outcome, RetryLater)
        waits.add(outcome.after)
    assert queries == 0
    assert len(waits) > 10  # they do not all come back at once


@pytest.mark.parametrize("status", [410, 503])
async def test_errors_of_one_browser_say_nothing_about_its_service(
    scene: PushScene, status: int
) -> None:
    """A user may have found a URL of the service that answers so."""
    scene.client.problem = Undelivered(f"status {status}", status=status)
    for _ in range(20):
        await scene.deliver(alert())
    assert len(scene.client.posted) == 20


async def test_all_nodes_have_the_key_that_was_stored_first() -> None:
    store = PushStore()
    first, second = PushKeys(store), PushKeys(store)
    assert (await first.key()).public == (await second.key()).public
    assert (await first.key()) is (await first.key())
    private, store.private_key = store.private_key, ""
    assert private not in repr(first)


async def test_a_key_of_the_settings_is_not_stored() -> None:
    store = PushStore()
    keys = PushKeys(store, "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")
    assert (await keys.key()).public == P256DH  # by RFC 8291
    assert store.private_key == ""
    assert "q1dXpw3" not in repr(keys)
    with pytest.raises(ConfigError):
        await PushKeys(store, "A" * 43).key()


# -- which browsers are woken


@define(eq=False)
class Waking:
    """A waker, and how often it has told the outbox."""

    store: PushStore = field(factory=PushStore)
    activity: Activity = field(factory=always_active)
    told: int = 0
    waker: ViewerWaker = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.waker = ViewerWaker(self.store, self._tell, self.activity)

    def _tell(self) -> None:
        self.told += 1


@asynccontextmanager
async def waking(activity: Activity | None = None) -> AsyncIterator[Waking]:
    scene = Waking() if activity is None else Waking(activity=activity)
    async with trio.open_nursery() as nursery:
        await nursery.start(scene.waker.run)
        yield scene
        nursery.cancel_scope.cancel()


async def test_the_outbox_is_told_when_something_waits_for_browsers() -> None:
    async with waking() as scene:
        await trio.sleep(WAKE_INTERVAL * 1.5)
        assert (len(scene.store.looks), scene.told) == (1, 0)
        scene.store.answers = [False]
        scene.waker.wake()
        await trio.sleep(WAKE_INTERVAL / 2)
        assert (len(scene.store.looks), scene.told) == (2, 1)


async def test_many_alerts_are_looked_at_in_parts_one_after_the_other() -> None:
    async with waking() as scene:
        scene.store.answers = [True, True, False]
        scene.waker.wake()
        await trio.sleep(WAKE_INTERVAL * 4)
        assert (len(scene.store.looks), scene.told) == (4, 3)


async def test_it_looks_now_and_then_but_not_while_nobody_is_connected() -> None:
    async with waking() as scene:
        await trio.sleep(10 * WAKE_POLL_INTERVAL)
        assert 9 <= len(scene.store.looks) <= 11
    async with waking(Activity()) as scene:
        await trio.sleep(100)
        assert len(scene.store.looks) == 1
        scene.activity.note(active=True)
        await trio.sleep(1)
        assert len(scene.store.looks) == 2


@pytest.mark.parametrize("problem", [StoreUnavailable("away"), StoreRejects("no")])
async def test_a_look_that_fails_is_made_again_at_fewer(problem: Exception) -> None:
    def fail() -> None:
        raise problem

    async with waking() as scene:
        scene.store.before_query = fail
        scene.waker.wake()
        await trio.sleep(3600)
        assert scene.store.looks[1:4] == [2000, 1000, 500]
        assert scene.store.looks[-1] == 1
        assert len(scene.store.looks) < 300
        scene.store.before_query = lambda: None
        scene.store.answers = [False]
        await trio.sleep(20)
        assert scene.told == 1
