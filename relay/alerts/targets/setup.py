"""The adapters of all kinds of targets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from relay.alerts.targets.delivery import TargetAdapter
from relay.alerts.targets.ntfy import NTFY_KIND, NtfyAdapter, StillLinks
from relay.alerts.targets.webhook import WEBHOOK_KIND, WebhookAdapter
from relay.outgoing.webhook_client import open_webhook_client
from relay.settings.settings import Settings


@asynccontextmanager
async def open_adapters(
    settings: Settings, links: StillLinks | None = None
) -> AsyncIterator[Mapping[str, TargetAdapter]]:
    """The adapter of each kind of target, until the block ends. Nothing that they need is loaded or
    opened before the first delivery. Without `links`, messages have no pictures."""
    async with open_webhook_client(settings.webhook_networks) as client:
        yield {
            WEBHOOK_KIND: WebhookAdapter(client),
            NTFY_KIND: NtfyAdapter(client, base_url(settings), links),
        }


def base_url(settings: Settings) -> str | None:
    """Where people reach relay, without a slash at the end; None if that is not known."""
    return None if settings.public_url is None else settings.public_url.rstrip("/")
