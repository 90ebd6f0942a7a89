"""The adapters of all kinds of targets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from attrs import frozen

from relay.alerts.targets.delivery import TargetAdapter
from relay.alerts.targets.mqtt import (
    MQTT_KIND,
    AnnouncedStreams,
    MqttAdapter,
    MqttBrokers,
    open_brokers,
)
from relay.alerts.targets.ntfy import NTFY_KIND, NtfyAdapter, StillLinks
from relay.alerts.targets.webhook import WEBHOOK_KIND, WebhookAdapter
from relay.outgoing.webhook_client import open_webhook_client
from relay.settings.settings import Settings


@frozen
class AdapterParts:
    """The adapters, by kind, and the connections behind them."""

    adapters: Mapping[str, TargetAdapter]
    brokers: MqttBrokers


@asynccontextmanager
async def open_adapters(
    settings: Settings,
    links: StillLinks | None = None,
    announced: AnnouncedStreams | None = None,
) -> AsyncIterator[AdapterParts]:
    """The adapter of each kind of target, until the block ends. Nothing that they need is loaded or
    opened before it is used. Without `links`, messages have no pictures, and without `announced`,
    MQTT brokers get nothing but tests."""
    url, topic = base_url(settings), settings.mqtt_topic
    async with (
        open_webhook_client(settings.webhook_networks) as client,
        open_brokers(settings.webhook_networks, topic, stays=announced is not None) as brokers,
    ):
        adapters: dict[str, TargetAdapter] = {
            WEBHOOK_KIND: WebhookAdapter(client),
            NTFY_KIND: NtfyAdapter(client, url, links),
            MQTT_KIND: MqttAdapter(brokers, topic, announced, links, url),
        }
        yield AdapterParts(adapters, brokers)


def base_url(settings: Settings) -> str | None:
    """Where people reach relay, without a slash at the end; None if that is not known."""
    return None if settings.public_url is None else settings.public_url.rstrip("/")
