"""Whether the MQTT brokers of targets can be reached from this machine."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from relay.alerts.targets.mqtt import MqttBrokers, check_mqtt_installed, open_brokers
from relay.doctor.checks import Finding, fail, ok, warn
from relay.errors import ConfigError
from relay.model.targets.alert_target import AlertTarget
from relay.outgoing.webhook_client import Undelivered
from relay.settings.settings import Settings

MAX_TRIED_BROKERS = 5
REACH_TIMEOUT = 4.0
"""Seconds, since `relay doctor` as a whole is not to take long."""


async def look_at_brokers(targets: Sequence[AlertTarget], settings: Settings) -> Finding:
    """Log in at the brokers of these targets, and publish nothing."""
    if not targets:
        return ok("there are no MQTT targets")
    try:
        check_mqtt_installed()
    except ConfigError as why:
        return fail(str(why), "install paho-mqtt, or relay with its extra `mqtt`")
    failed: list[str] = []
    networks, topic = settings.webhook_networks, settings.mqtt_topic
    async with (
        open_brokers(networks, topic, stays=False) as brokers,
        trio.open_nursery() as nursery,
    ):
        for target in targets[:MAX_TRIED_BROKERS]:
            nursery.start_soon(_try, brokers, target, failed)
    if failed:
        return warn(
            f"{len(failed)} of {len(targets)} MQTT brokers cannot be used: {'; '.join(failed)}",
            "check that the broker runs, that its address is public or in webhook_networks, and the"
            " user and password that `relay target add mqtt` was given",
        )
    return ok(f"{min(len(targets), MAX_TRIED_BROKERS)} MQTT brokers accept connections of relay")


async def _try(brokers: MqttBrokers, target: AlertTarget, failed: list[str]) -> None:
    why = "no answer"
    with trio.move_on_after(REACH_TIMEOUT):
        try:
            await brokers.of(target).reach()
        except (Undelivered, ConfigError) as error:
            why = str(error)
        else:
            return
    failed.append(f"{target.target_id} ({why})")
