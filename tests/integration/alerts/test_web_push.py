"""Notifications in browsers: from a relay to a push service, encrypted for one browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import trio

from relay.alerts.targets.delivery import RetryLater
from relay.alerts.targets.webhook_message import new_secret
from relay.model.targets.alert_target import NewTarget
from relay.outgoing.webhook_client import open_webhook_client
from relay.postgres.database import open_database
from relay.postgres.tables.alert_targets import AlertTargetTable
from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.peers import login, new_stream_id
from tests.integration.push_service import (
    PushBrowser,
    PushServer,
    encoded,
    free_port,
    open_push_service,
)
from tests.integration.relay_process import RelayProcess, Response, start_relay, until
from tests.integration.web_server import open_web_server, says, silence
from tests.unit.alerts.push_scene import PushScene, alert

SETTINGS = ("--webhook-networks", "127.0.0.0/8", "--push-contact", "mailto:ops@example.org")


@pytest.fixture(scope="module")
def port() -> int:
    """Of the push service, which the relay knows before there is one."""
    return free_port()


@pytest.fixture(scope="module")
def relay(port: int, database_url: str) -> Iterator[RelayProcess]:
    # As Better Auth's admin plugin adds it.
    Accounts(database_url).execute('alter table "user" add column if not exists banned boolean')
    with start_relay(
        *SETTINGS, "--push-services", f"http://127.0.0.1:{port}", database_url=database_url
    ) as relay:
        yield relay


@pytest.fixture
async def service(port: int) -> AsyncIterator[PushServer]:
    async with open_push_service(port) as service:
        yield service


@pytest.fixture
def ann() -> str:
    """A user of one test: the tests of a module have one relay."""
    return f"ann-{uuid4().hex}"


async def ask(
    relay: RelayProcess, token: str, method: str, path: str, body: Any = None
) -> Response:
    content = None if body is None else json.dumps(body).encode()
    return await relay.get(path, method, headers={"Authorization": f"Bearer {token}"}, body=content)


async def subscribe(
    relay: RelayProcess, token: str, browser: PushBrowser, *, status: int = 201, **rules: Any
) -> Any:
    if not browser.application_key:
        browser.application_key = (await ask(relay, token, "GET", "/push")).json()["key"]
    body = {"subscription": browser.subscription, **rules}
    answer = await ask(relay, token, "POST", "/push", body)
    assert answer.status == status, answer.body
    return answer.json()


def raise_alert(accounts: Accounts, stream_id: str, message: str, severity: str = "high") -> None:
    accounts.execute("select relay.raise_alert(%s, %s, %s)", stream_id, message, severity)


def own(accounts: Accounts, user_id: str) -> str:
    stream_id = new_stream_id()
    claim = "insert into relay.streams (stream_id, owner_id) values (%s, %s)"
    accounts.execute(claim, stream_id, user_id)
    return stream_id


def let_watch(accounts: Accounts, user_id: str, stream_id: str) -> None:
    grant = "insert into relay.grants (user_id, stream_id) values (%s, %s)"
    accounts.execute(grant, user_id, stream_id)


def targets_of(accounts: Accounts, user_id: str) -> list[Any]:
    kept = "select delivered from relay.alert_targets where viewer_id = %s"
    return [delivered for (delivered,) in accounts.execute(kept, user_id)]


async def test_a_browser_is_told_of_alerts_that_only_it_can_read(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    token, stream_id = accounts.session(ann), own(accounts, ann)
    browser = service.browser()
    told = await subscribe(relay, token, browser)
    assert told["subscription"]["id"] == browser.target_id
    raise_alert(accounts, stream_id, "Smoke ☁", "critical")
    await until(lambda: browser.bodies == ["Smoke ☁"])
    [pushed] = browser.received
    assert pushed.content["title"] == f"{stream_id}: critical"
    assert pushed.headers["urgency"] == "high"
    assert "topic" not in pushed.headers
    shown = (await ask(relay, token, "GET", "/push")).json()["subscriptions"]
    await until(lambda: targets_of(accounts, ann) == [1])
    assert [each["id"] for each in shown] == [browser.target_id]
    [(private,)] = accounts.execute("select private_key from relay.push_key")
    for secret in (private, browser.endpoint, browser.subscription["keys"]["auth"]):
        assert secret not in relay.log
        assert secret not in json.dumps(shown)


async def test_it_hears_of_streams_that_its_user_may_see_at_that_moment(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    token, other, mine = accounts.session(ann), own(accounts, "bob"), own(accounts, ann)
    browser = service.browser()
    await subscribe(relay, token, browser)
    heard: list[str] = []
    for granted in (None, other, None, f"{other[:-1]}*", "*", None):
        accounts.execute("delete from relay.grants")
        if granted is not None:
            let_watch(accounts, ann, granted)
            heard.append(f"with {granted}")
        raise_alert(accounts, other, f"with {granted}")
        raise_alert(accounts, mine, "mine")
        heard.append("mine")
        await until(lambda: len(browser.bodies) == len(heard))
        assert browser.bodies == heard


async def test_its_rules_say_which(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    token = accounts.session(ann)
    one, two = own(accounts, ann), own(accounts, ann)
    browser, all_of_it = service.browser(), service.browser()
    await subscribe(relay, token, browser, streams=[one], minSeverity="high")
    await subscribe(relay, token, all_of_it, streams=[one[:3] + "*"], cooldown=3600)
    raise_alert(accounts, one, "low", "low")
    raise_alert(accounts, two, "other", "high")
    raise_alert(accounts, one, "high", "high")
    await until(lambda: browser.bodies == ["high"] and all_of_it.bodies == ["low", "other"])
    # Other rules are for the same browser.
    await subscribe(relay, token, browser, streams=[two])
    raise_alert(accounts, one, "one")
    raise_alert(accounts, two, "two")
    await until(lambda: browser.bodies == ["high", "two"])
    assert len((await ask(relay, token, "GET", "/push")).json()["subscriptions"]) == 2


async def test_streams_that_come_online_are_told(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    owner, viewer = accounts.session("bob"), accounts.session(ann)
    stream_id, browser = own(accounts, "bob"), service.browser()
    let_watch(accounts, ann, stream_id)
    await subscribe(relay, viewer, browser, events=["alert", "stream.online"])
    await until(lambda: accounts.execute("select source from relay.event_sources") != [])
    async with login(relay, owner) as phone:
        await phone.register(stream_id)
        await until(lambda: browser.titles == [f"{stream_id} is online"])
    [pushed] = browser.received
    assert pushed.headers["topic"]


@pytest.mark.slow
async def test_a_push_service_that_stalls_holds_up_no_alert_and_no_other_target(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    token, stream_id = accounts.session(ann), own(accounts, ann)
    browsers = [service.browser() for _ in range(5)]
    for browser in browsers:
        await subscribe(relay, token, browser)
    service.answers = silence
    async with open_web_server(says(b"")) as receiver, open_database(accounts.url) as database:
        await AlertTargetTable(database).add(
            NewTarget(f"{receiver.url}/hook", new_secret(), stream_id=stream_id)
        )
        for number in range(3):
            body = {"streamId": stream_id, "severity": "high", "message": str(number)}
            assert (await ask(relay, token, "POST", "/alerts", body)).status == 200
        await until(lambda: len(receiver.requests) == 3)
        assert len(service.requests) <= len(browsers)
        assert all(each.received == [] for each in browsers)
    service.answers = None

    # They come by themselves: relay tries the service again about 15 s after the first attempt.
    await until(lambda: all(each.bodies == ["0", "1", "2"] for each in browsers))


async def test_operators_list_try_and_remove_browsers(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    browser = service.browser()
    await subscribe(relay, accounts.session(ann), browser, streams=["front-*"])

    async def command(*arguments: str) -> str:
        call = partial(call_relay, "target", *arguments, database_url=accounts.url)
        code, out, err = await trio.to_thread.run_sync(call)
        assert code == 0, err
        return out

    [line] = [each for each in (await command("list")).splitlines() if browser.target_id in each]
    assert f"user={ann} streams=front-*" in line
    assert browser.endpoint not in line
    await command("test", browser.target_id, *SETTINGS, "--push-services", service.url)
    assert browser.titles == ["relay"]
    await command("remove", browser.target_id)
    assert targets_of(accounts, ann) == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "169.254.169.254"])
async def test_a_push_service_in_a_private_network_is_not_called_though_it_is_on_the_list(
    host: str,
) -> None:
    """As one whose name resolves to such an address by now."""
    scene = PushScene(services=(host,))
    async with open_webhook_client([]) as client:
        scene.adapter._client = client
        outcome = await scene.deliver(alert(), url=f"https://{host}/push/x")
    assert outcome == RetryLater("relay may not call its address: it is not in webhook_networks")


GONE = ("404 Not Found", "410 Gone")


@pytest.mark.parametrize("status", GONE)
async def test_a_browser_that_has_unsubscribed_is_forgotten(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str, status: str
) -> None:
    token, stream_id = accounts.session(ann), own(accounts, ann)
    await subscribe(relay, token, service.browser())
    service.answers = says(b"", status)
    raise_alert(accounts, stream_id, "nobody is there")
    await until(lambda: targets_of(accounts, ann) == [])


@pytest.mark.parametrize(
    "statement",
    [
        'update "user" set banned = true where id = %s',
        'delete from "user" where id = %s',
    ],
    ids=["banned", "deleted"],
)
async def test_it_ends_with_its_user(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str, statement: str
) -> None:
    token, other = accounts.session(ann), own(accounts, "bob")
    let_watch(accounts, ann, other)
    browser = service.browser()
    await subscribe(relay, token, browser)
    accounts.execute(statement, ann)
    raise_alert(accounts, other, "not for ann")
    await until(lambda: targets_of(accounts, ann) == [])
    assert browser.received == []


async def test_a_user_has_ten_browsers_and_removes_them(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str
) -> None:
    token, bob = accounts.session(ann), accounts.session("bob")
    browsers = [service.browser() for _ in range(11)]
    for browser in browsers[:10]:
        await subscribe(relay, token, browser)
    await subscribe(relay, token, browsers[0])
    refused = await subscribe(relay, token, browsers[10], status=409)
    assert "10 browsers already" in refused["error"]["message"]
    path = f"/push/{browsers[0].target_id}"
    assert (await ask(relay, bob, "DELETE", path)).status == 404
    assert (await ask(relay, token, "DELETE", path)).status == 200
    assert (await ask(relay, token, "DELETE", path)).status == 404
    await subscribe(relay, token, browsers[10])
    # The browser of somebody who has signed in there: nothing goes to the user before.
    await subscribe(relay, bob, browsers[10])
    raise_alert(accounts, own(accounts, ann), "for ann")
    await until(lambda: all(each.bodies == ["for ann"] for each in browsers[1:10]))
    assert browsers[10].received == []


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("https://127.0.0.1/push/x", "does not send to the push service"),
        ("http://169.254.169.254/latest/meta-data", "does not send to the push service"),
        ("https://push.example.org/" + "x" * 3000, "endpoint"),
        ("https://user:pass@fcm.googleapis.com/x", "no user"),
        ("not a URL", "expected an address"),
    ],
)
async def test_other_servers_are_not_called(
    relay: RelayProcess, accounts: Accounts, ann: str, endpoint: str, why: str
) -> None:
    token, browser = accounts.session(ann), PushBrowser(endpoint)
    refused = await subscribe(relay, token, browser, status=400)
    assert why in refused["error"]["message"]


@pytest.mark.parametrize(
    "keys",
    [
        {"p256dh": encoded(b"\x04" + b"\x01" * 64)},
        {"p256dh": encoded(b"\x02" + b"\x01" * 32)},
        {"p256dh": encoded(b"")},
        {"p256dh": "A" * 5000},
        {"p256dh": "?"},
        {"auth": encoded(b"short")},
    ],
    ids=["off the curve", "compressed", "empty", "huge", "no base64url", "a short secret"],
)
async def test_keys_that_are_none_are_refused(
    relay: RelayProcess, accounts: Accounts, service: PushServer, ann: str, keys: dict[str, str]
) -> None:
    token, browser = accounts.session(ann), service.browser()
    subscription = browser.subscription
    subscription["keys"] |= keys
    answer = await ask(relay, token, "POST", "/push", {"subscription": subscription})
    assert answer.status == 400
    assert targets_of(accounts, ann) == []


async def test_services_have_no_browser(relay: RelayProcess, accounts: Accounts) -> None:
    answer = await ask(relay, accounts.service("*"), "GET", "/push")
    assert answer.status == 403
