"""An adapter for browsers with a browser behind it, in memory."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, cast

import trio
from attrs import define, field

from relay.alerts.targets.delivery import Delivered, Delivery, DeliveryOutcome
from relay.alerts.targets.web_push.adapter import WebPushAdapter
from relay.alerts.targets.web_push.keys import PushKeys
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import AlertTarget, TargetViewer
from relay.model.targets.push_service import push_services_of
from relay.model.targets.stream_event import StreamEvent, StreamEventKind
from tests.integration.push_service import PushBrowser
from tests.unit.alerts.push_store import PushStore

ENDPOINT = "https://fcm.googleapis.com/fcm/send/x"


def event_id(*, age: float = 0) -> int:
    return round((time.time() - age) * 1_000_000)


def alert(severity: str = "high", message: str = "Smoke ☁", *, age: float = 0) -> StoredAlert:
    return StoredAlert(event_id(age=age), "door", "ann", "service:fire", severity, message, 7)


def happened(kind: str) -> StreamEvent:
    return StreamEvent(event_id(), "door", "ann", cast("StreamEventKind", kind), 3, 7)


@define(eq=False)
class PushClient:
    """Notes what is posted."""

    problem: Exception | None = None
    seconds: float = 0
    posted: list[tuple[str, bytes, dict[str, str]]] = field(factory=list)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        self.posted.append((url, body, headers))
        await trio.sleep(self.seconds)
        if self.problem is not None:
            raise self.problem


@define(eq=False)
class Paths:
    seconds: float = 0

    async def link_to(self, target: AlertTarget, stream_id: str) -> str | None:
        await trio.sleep(self.seconds)
        return f"/streams/{stream_id}/latest.jpg?link=x"


@define(eq=False)
class PushScene:
    """An adapter, and a browser of ann's."""

    store: PushStore = field(factory=PushStore)
    client: PushClient = field(factory=PushClient)
    browser: PushBrowser = field(factory=lambda: PushBrowser(ENDPOINT))
    links: Paths | None = None
    services: tuple[str, ...] = ("fcm.googleapis.com", "*.notify.windows.com")
    keys: PushKeys = field(init=False)
    adapter: WebPushAdapter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.keys = PushKeys(self.store)
        self.adapter = WebPushAdapter(
            *(self.client, push_services_of(self.services), self.keys, self.store),
            *("mailto:ops@example.org", self.links),
        )

    async def target(self, url: str = ENDPOINT, **options: Any) -> AlertTarget:
        keys = self.browser.subscription["keys"]
        return AlertTarget(
            *("webpush_1", "webpush", url, "", 0, None, None, datetime.now(UTC)),
            *(0, 0, None, None, None),
            options={**keys, "key": (await self.keys.key()).public, **options},
            viewer=TargetViewer("ann", by_session=True),
        )

    async def deliver(self, event: Any, *, suppressed: int = 0, **options: Any) -> DeliveryOutcome:
        target = await self.target(**options)
        return await self.adapter.deliver(target, Delivery(event, suppressed))

    async def delivered(self, event: Any, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """What the browser has, and the headers for its push service."""
        assert await self.deliver(event, **more) == Delivered()
        url, body, headers = self.client.posted[-1]
        assert url == ENDPOINT
        return json.loads(self.browser.decrypt(body)), headers
