"""The adapters of all kinds of targets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from relay.alerts.targets.delivery import TargetAdapter
from relay.alerts.targets.webhook import WEBHOOK_KIND, WebhookAdapter
from relay.outgoing.webhook_client import open_webhook_client
from relay.settings.settings import Settings


@asynccontextmanager
async def open_adapters(settings: Settings) -> AsyncIterator[Mapping[str, TargetAdapter]]:
    """The adapter of each kind of target, until the block ends. Nothing that they need is loaded or
    opened before the first delivery."""
    async with open_webhook_client(settings.webhook_networks) as client:
        yield {WEBHOOK_KIND: WebhookAdapter(client)}
