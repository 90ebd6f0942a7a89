"""The adapters of all kinds of targets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

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
from relay.alerts.targets.web_push.adapter import Viewers, WebPushAdapter
from relay.alerts.targets.web_push.keys import PushKeys, StoredPushKey
from relay.alerts.targets.webhook import WEBHOOK_KIND, WebhookAdapter
from relay.model.targets.alert_target import WEBPUSH_KIND
from relay.model.targets.push_service import PushService, push_services_of
from relay.outgoing.webhook_client import open_webhook_client
from relay.settings.settings import Settings


@frozen(eq=False, repr=False)
class AdapterParts:
    """The adapters, by kind, and the connections behind them."""

    adapters: Mapping[str, TargetAdapter]
    brokers: MqttBrokers


class PushStore(Viewers, StoredPushKey, Protocol):
    """The users, and the key that push services know relay by; `StoreUnavailable`."""


@frozen(eq=False, repr=False)
class PushParts:
    """What notifications in browsers need beside an HTTP client."""

    services: Sequence[PushService]
    """Those that may be sent to; none: Web Push is off."""
    keys: PushKeys
    viewers: Viewers
    contact: str | None

    @classmethod
    def build(cls, settings: Settings, store: PushStore) -> PushParts:
        contact = settings.push_contact
        if contact is None and (base_url(settings) or "").startswith("https://"):
            contact = base_url(settings)
        services = push_services_of(settings.push_services)
        return cls(services, PushKeys(store, settings.push_key), store, contact)


@frozen(eq=False, repr=False)
class StillLinkMakers:
    """What makes links to the newest picture of a stream."""

    urls: StillLinks | None = None
    """None where it is not known what URLs of relay begin with."""
    paths: StillLinks | None = None


@asynccontextmanager
async def open_adapters(
    settings: Settings,
    push: PushParts,
    links: StillLinkMakers | None = None,
    announced: AnnouncedStreams | None = None,
) -> AsyncIterator[AdapterParts]:
    """The adapter of each kind of target, until the block ends. Nothing that they need is loaded or
    opened before it is used. Without `links`, messages have no pictures, and without `announced`,
    MQTT brokers get nothing but tests."""
    url, topic = base_url(settings), settings.mqtt_topic
    links = StillLinkMakers() if links is None else links
    async with (
        open_webhook_client(settings.webhook_networks) as client,
        open_brokers(settings.webhook_networks, topic, stays=announced is not None) as brokers,
    ):
        adapters: dict[str, TargetAdapter] = {
            WEBHOOK_KIND: WebhookAdapter(client),
            NTFY_KIND: NtfyAdapter(client, url, links.urls),
            MQTT_KIND: MqttAdapter(brokers, topic, announced, links.urls, url),
        }
        if push.services:
            adapters[WEBPUSH_KIND] = WebPushAdapter(
                client, push.services, push.keys, push.viewers, push.contact, links.paths
            )
        yield AdapterParts(adapters, brokers)


def base_url(settings: Settings) -> str | None:
    """Where people reach relay, without a slash at the end; None if that is not known."""
    return None if settings.public_url is None else settings.public_url.rstrip("/")
