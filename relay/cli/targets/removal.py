"""Removes a target, with what an MQTT broker retains for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

import trio

from relay.alerts.targets.mqtt import MQTT_KIND, check_mqtt_installed, open_brokers
from relay.alerts.targets.mqtt_streams import withdraw_streams
from relay.errors import ConfigError
from relay.model.targets.alert_target import AlertTarget
from relay.outgoing.webhook_client import Undelivered
from relay.postgres.store import Store
from relay.settings.settings import Settings

WITHDRAWAL_TIMEOUT = 30.0
HOLD_RETRIES, HOLD_RETRY_INTERVAL = 50, 0.25
"""How often, and every how many seconds, to look whether a relay still publishes to the target: one
that was killed keeps its lease."""


async def remove_target(store: Store, settings: Settings, target_id: str) -> str:
    """Returns what is to be said; `ConfigError` if there is no such target."""
    found = await store.alert_targets.find(target_id)
    if found.kind == MQTT_KIND:
        await _hold(store, found)
    retained = await store.mqtt_streams.announced(found)
    await store.alert_targets.remove(target_id)
    left = await _withdraw(found, retained, settings) if retained else ""
    return f"removed {target_id}{left}"


async def _hold(store: Store, target: AlertTarget) -> None:
    """See to it that no relay publishes for the target any more: what came behind the withdrawal
    would be retained for good."""
    lease, lasts = uuid4(), timedelta(seconds=WITHDRAWAL_TIMEOUT)
    for _ in range(HOLD_RETRIES):
        if await store.mqtt_streams.lease(target, lease, lasts=lasts):
            return
        await trio.sleep(HOLD_RETRY_INTERVAL)


async def _withdraw(target: AlertTarget, stream_ids: Sequence[str], settings: Settings) -> str:
    """Remove what a broker retains of these streams; returns what is to be said if that failed."""
    topic = settings.mqtt_topic
    problem: Exception | None
    try:
        check_mqtt_installed()
        with trio.fail_after(WITHDRAWAL_TIMEOUT):
            async with open_brokers(settings.webhook_networks, topic, stays=False) as brokers:
                problem = await withdraw_streams(brokers.of(target), target, topic, stream_ids)
    except (ConfigError, Undelivered, trio.TooSlowError) as error:
        problem = error
    if problem is None:
        return ""
    why = str(problem) or "it takes too long"
    streams = "1 stream" if len(stream_ids) == 1 else f"{len(stream_ids)} streams"
    return f"; its broker still retains messages of {streams}: {why}"
