"""A browser that wants notifications, as its user and the table know it."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from attrs import field, frozen

from relay.model.targets.alert_target import AlertTarget, TargetRules, TargetViewer

MAX_SUBSCRIPTIONS_OF_USER = 10
MAX_STREAMS_OF_SUBSCRIPTION = 100
"""Ids and prefixes that one names."""


@frozen
class NewSubscription:
    """A browser that has subscribed with its push service."""

    endpoint: str = field(repr=False)
    """The URL to post to: whoever knows it, and the key of VAPID, may send."""
    p256dh: str = field(repr=False)
    auth: str = field(repr=False)
    """The keys to encrypt for it, as base64url."""
    public_key: str
    """The key of VAPID that it subscribed for."""
    viewer: TargetViewer
    rules: TargetRules
    picture: bool = True
    """Whether its notifications have a link to a picture."""

    @property
    def target_id(self) -> str:
        """Follows from the endpoint, so a browser that subscribes again has one target, and knows
        which it is. It tells nothing about the endpoint."""
        return f"webpush_{hashlib.sha256(self.endpoint.encode()).hexdigest()[:32]}"


def service_of(target: AlertTarget) -> str:
    """The host of the push service, which may be shown; empty if somebody has broken the URL."""
    try:
        return urlsplit(target.url).hostname or ""
    except ValueError:
        return ""
