"""Alerts and states of streams at a real MQTT broker, set up with `relay target`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from relay.doctor.checks import Examined, Finding, Outcome, examine
from relay.doctor.database import DatabaseChecks
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.mosquitto import Mosquitto, with_mosquitto
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import start_relay, until

pytestmark = with_mosquitto

LOOPBACK = ("--webhook-networks", "127.0.0.0/8")
PASSWORD = "a:5ecret of the broker"
JPEG = b"\xff\xd8\xff\xe0 a picture"


async def command(accounts: Accounts, *arguments: str, code: int = 0) -> str:
    call = partial(call_relay, "target", *arguments, database_url=accounts.url)
    ended, out, err = await trio.to_thread.run_sync(call)
    assert ended == code, err
    return out if code == 0 else err


@pytest.mark.slow
async def test_alerts_states_and_discovery_come_to_a_broker_with_a_password(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    broker = Mosquitto(tmp_path)
    broker.set_password("relay", PASSWORD)
    file = tmp_path / "login"
    file.write_text(f"relay:{PASSWORD}\n")
    public = ("--public-url", "https://relay.example.org")
    async with broker.run(), broker.subscribed("relay/#") as published:
        added = await command(
            accounts,
            *("add", "mqtt", broker.url, "--stream", "*", "--credentials-file", str(file)),
            *("--picture", *LOOPBACK, *public),
        )
        target_id = added.strip()
        assert "accepted it" in await command(accounts, "test", target_id, *LOOPBACK)
        await until(lambda: [each.topic for each in published] == ["relay/test"])
        grace = ("--offline-grace", "0.5")
        with start_relay(*LOOPBACK, *public, *grace, database_url=postgres_url) as relay:
            [status] = await broker.retained("relay/status", 1)
            assert status.payload == "online"
            async with login(relay, token) as phone:
                await phone.register(stream_id)
                # Until the event of the stream is told, relay may repeat what was known before.
                await until(
                    lambda: any(
                        (each.topic, each.payload) == (f"relay/{stream_id}/state", "online")
                        for each in published
                    )
                )
                [state] = await broker.retained("relay/+/state", 1)
                assert (state.topic, state.payload) == (f"relay/{stream_id}/state", "online")
                await phone.send_frame(JPEG)
                alert = {"type": "alert", "streamId": stream_id, "severity": "high"}
                for message in ("Smoke", "Fire"):
                    await phone.ask({**alert, "message": message})

                def of(topic: str) -> list[str]:
                    return [each.payload for each in published if each.topic.endswith(topic)]

                await until(lambda: len(of("/alert")) == 2)
                smoke, fire = [each for each in published if each.topic.endswith("/alert")]
                assert not smoke.retained
                assert (smoke.content["event_type"], smoke.content["message"]) == ("high", "Smoke")
                assert fire.content["message"] == "Fire"
                assert smoke.content["alertId"] < fire.content["alertId"]
                assert of("/picture") == [smoke.content["picture"]] * 2
                [config] = await broker.retained("homeassistant/#", 1)
                components = config.content["components"]
                assert {*components} == {"alert", "picture", "online", "watched"}
                assert components["alert"]["state_topic"] == smoke.topic
                assert components["online"]["state_topic"] == state.topic
            await until(lambda: of("/state")[-1] == "offline")
            free = partial(call_relay, "stream", "free", stream_id, database_url=postgres_url)
            await trio.to_thread.run_sync(free)
            await broker.retained("homeassistant/#", 0)
            await broker.retained("relay/+/state", 0)
            counted = "select count(*) from relay.mqtt_streams"
            await until(lambda: accounts.execute(counted) == [(0,)])
            assert PASSWORD not in relay.log
        [status] = await broker.retained("relay/status", 1)
        assert status.payload == "offline"
        assert PASSWORD not in await command(accounts, "list")


@pytest.mark.slow
async def test_a_broker_that_is_restarted_gets_what_was_missed_and_what_it_has_forgotten(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts, stream_id = Accounts(postgres_url), "porch"
    token = accounts.session()
    broker = Mosquitto(tmp_path)
    add = ("add", "mqtt", broker.url, "--stream", stream_id, *LOOPBACK)
    target_id = (await command(accounts, *add)).strip()
    with start_relay(*LOOPBACK, database_url=postgres_url) as relay:
        async with login(relay, token) as phone:
            async with broker.run():
                await phone.register(stream_id)
                await broker.retained(f"relay/{stream_id}/state", 1)
            await phone.ask(
                {"type": "alert", "streamId": stream_id, "severity": "low", "message": "missed"}
            )
            await relay.until_logged("mqtt fails")
            async with broker.run(), broker.subscribed("relay/#") as published:
                await until(lambda: any(each.topic.endswith("/alert") for each in published))
                [state] = await broker.retained(f"relay/{stream_id}/state", 1)
                assert state.payload == "online"
                await broker.retained("homeassistant/#", 1)
                relay.signal(signal.SIGKILL)
                await until(lambda: published[-1].payload == "offline")
                assert published[-1].topic == "relay/status"
                said = await command(accounts, "remove", target_id, *LOOPBACK)
                assert said == f"removed {target_id}\n"
                await broker.retained("homeassistant/#", 0)
                await broker.retained("relay/+/state", 0)


async def test_a_broker_is_reached_by_tls_with_an_authority_of_its_own(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts = Accounts(postgres_url)
    authority, certificate = trustme.CA(), tmp_path / "broker.pem"
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(certificate)
    certificate.chmod(0o644)
    broker = Mosquitto(tmp_path)
    broker.options = (
        "allow_anonymous true",
        f"certfile {certificate}",
        f"keyfile {certificate}",
    )
    url = f"mqtts://localhost:{broker.port}"
    async with broker.run():
        add = ("add", "mqtt", url, "--stream", "*")
        ids = [
            (await command(accounts, *add, *more)).strip()
            for more in ((), ("--ca-file", str(tmp_path / "ca.pem")))
        ]
        said = await command(accounts, "test", ids[0], *LOOPBACK, code=2)
        assert "its certificate is not accepted" in said
        assert "accepted it" in await command(accounts, "test", ids[1], *LOOPBACK)
        said = await command(accounts, "test", ids[1], code=2)
        assert "relay may not call its address: it is not in webhook_networks" in said
        settings = Settings(database_url=postgres_url, webhook_networks=("127.0.0.0/8",))
        assert "its certificate is not accepted" in await brokers_by_doctor(settings)
    assert "cannot be connected to" in await brokers_by_doctor(settings)


async def brokers_by_doctor(settings: Settings) -> str:
    """What `relay doctor` says of brokers."""
    found: dict[str, Finding] = {}

    def tell(examined: Examined) -> None:
        found[examined.name] = examined.finding

    checks = DatabaseChecks(settings).checks()
    await examine([each for each in checks if each.name in {"database", "brokers"}], (), tell)
    assert found["brokers"].outcome is Outcome.WARN
    return found["brokers"].said


async def test_a_target_is_removed_though_its_broker_is_away(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts, broker = Accounts(postgres_url), Mosquitto(tmp_path)
    target_id = await announced_target(accounts, broker)
    said = await command(accounts, "remove", target_id, *LOOPBACK)
    assert said == (
        f"removed {target_id}; its broker still retains messages of 1 stream:"
        " the broker cannot be connected to\n"
    )
    assert accounts.execute("select target_id from relay.alert_targets") == []


async def test_a_target_is_removed_once_no_relay_publishes_to_it(
    postgres_url: str, tmp_path: Path
) -> None:
    """What came behind the removal would be retained for good."""
    accounts, broker = Accounts(postgres_url), Mosquitto(tmp_path)
    target_id = await announced_target(accounts, broker)
    lease = "update relay.alert_targets set lease = gen_random_uuid(), leased_until = %s"
    accounts.execute(lease, "infinity")
    async with broker.run(), trio.open_nursery() as nursery:
        nursery.start_soon(command, accounts, "remove", target_id, *LOOPBACK)
        await trio.sleep(1)
        assert accounts.execute("select target_id from relay.alert_targets") == [(target_id,)]
        accounts.execute(lease, "-infinity")
    assert accounts.execute("select target_id from relay.alert_targets") == []


async def announced_target(accounts: Accounts, broker: Mosquitto) -> str:
    """One that has published a stream."""
    added = await command(accounts, "add", "mqtt", broker.url, "--stream", "*", *LOOPBACK)
    target_id = added.strip()
    announce = "insert into relay.mqtt_streams (target_id, stream_id) values (%s, 'door')"
    accounts.execute(announce, target_id)
    return target_id


async def test_an_alert_that_the_broker_finds_too_large_comes_in_brief_and_holds_up_no_other(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts, broker = Accounts(postgres_url), Mosquitto(tmp_path)
    token = accounts.session()
    broker.options = ("allow_anonymous true", "message_size_limit 2000")
    async with broker.run(), broker.subscribed("relay/#") as published:
        add = ("add", "mqtt", broker.url, "--stream", "*", "--no-discovery", *LOOPBACK)
        await command(accounts, *add)
        with start_relay(*LOOPBACK, database_url=postgres_url) as relay:
            async with login(relay, token) as phone:
                await phone.register("hall")
                alert = {"type": "alert", "streamId": "hall", "severity": "high"}
                await phone.ask({**alert, "message": "large", "metadata": {"text": "x" * 3000}})
                await phone.ask({**alert, "message": "small"})
            await until(lambda: any(each.payload.find("small") > 0 for each in published))
            assert sum(" as relay-" in line for line in broker.log) == 1
    told = [each.content for each in published if each.topic == "relay/hall/alert"]
    assert [(each["message"], each.get("truncated")) for each in told] == [
        ("large", True),
        ("small", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("mqtt://x",), "must begin with mqtts://"),
        (("https://x",), "must begin with mqtts://"),
        (("mqtts://u:geheim@x",), "leave user and password out"),
        (("mqtts://x/topic",), "ends with its host"),
        (("mqtts://x", "--cooldown", "5m"), "--event alert"),
        (("mqtts://x", "--picture"), "public_url"),
        (("mqtts://x", "--discovery-prefix", "a/#"), "no topic"),
        (("mqtts://x", "--ca-file", "/dev/null"), "no certificates"),
    ],
)
async def test_a_target_that_cannot_work_is_not_added(
    postgres_url: str, arguments: tuple[str, ...], why: str
) -> None:
    accounts = Accounts(postgres_url)
    said = await command(accounts, "add", "mqtt", *arguments, "--stream", "*", code=2)
    assert why in said
    assert "geheim" not in said


def has_all(alerts: Callable[[str], list[str]], stream_id: str) -> bool:
    return len(alerts(stream_id)) >= 20


@pytest.mark.slow
async def test_workers_publish_each_alert_once_and_in_order_with_a_client_id_each(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts, broker = Accounts(postgres_url), Mosquitto(tmp_path)
    token = accounts.session()
    async with broker.run(), broker.subscribed("relay/#") as published:
        await command(accounts, "add", "mqtt", broker.url, "--stream", "*", *LOOPBACK)
        with start_relay(*LOOPBACK, "--workers", "2", database_url=postgres_url) as relay:
            async with login(relay, token) as phone, login(relay, token) as other:
                for number in range(20):
                    for each, stream_id in ((phone, "hall"), (other, "yard")):
                        if number == 0:
                            await each.register(stream_id)
                        alert = {"type": "alert", "streamId": stream_id, "severity": "low"}
                        await each.ask({**alert, "message": f"{stream_id} {number}"})

                def alerts(stream_id: str) -> list[str]:
                    topic = f"relay/{stream_id}/alert"
                    return [each.content["message"] for each in published if each.topic == topic]

                for stream_id in ("hall", "yard"):
                    await until(partial(has_all, alerts, stream_id))
                    assert alerts(stream_id) == [f"{stream_id} {number}" for number in range(20)]
                ids = [line.partition(" as relay-")[2].split() for line in broker.log]
                joined = [found[0] for found in ids if found]
                assert len({*joined}) == len(joined) == 2
        await until(lambda: published[-1].payload == "offline")
